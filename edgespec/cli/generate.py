"""``edgespec generate``: one completion."""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

import click

from edgespec.cli.options import max_tokens_option, model_argument, opened, session_options
from edgespec.errors import UserError

_LONGEST = 16 << 20
"""Characters of a prompt. No model's context holds more, and a pipe may never end."""


@click.command()
@model_argument
@click.argument("stdin", metavar="[-]", required=False, type=click.Choice(["-"]))
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt.")
@click.option("-f", "--file", metavar="FILE", help="The prompt is this file's text; -: stdin.")
@click.option(
    "--chat/--raw",
    default=None,
    help="Answer the prompt in the model's chat format, or go on with the text as it stands. "
    "Default: --chat if the model has such a format.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@max_tokens_option(256)
@session_options
def generate(
    model: str,
    stdin: str | None,
    prompt: str | None,
    file: str | None,
    chat: bool | None,
    as_json: bool,
    max_tokens: int,
    **options: Any,
) -> None:
    """Complete one prompt, from TEXT, a FILE or standard input (-).

    MODEL is a name of `edgespec models list` or a .gguf file; smollm2-135m-instruct by default. The
    answer goes to stdout while it is made, what it cost to stderr. One line end at the end of a
    file or of standard input is not part of the prompt.

    \b
    Ask a question:
      edgespec generate -p "Why is the sky blue?"
    Go on with a text, the same way every time:
      edgespec generate --raw -p "Once upon a time" --temperature 0.8 --seed 1
    Give a model some work from a pipe:
      cat notes.txt | edgespec generate qwen2.5-coder-1.5b-instruct - --system "Summarize."
    The answer's figures:
      edgespec generate -p Hello --json | jq .stats
    """
    if model == "-":  # `edgespec generate -`: no model named
        model, stdin = DEFAULT_MODEL, "-"
    text = _prompt(prompt, file, stdin)
    ...
