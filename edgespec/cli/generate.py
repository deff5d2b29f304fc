"""``edgespec generate``: one completion."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

import click

from edgespec.cli.answer import ReasoningPrinter, print_answer, print_status
from edgespec.cli.explain import print_explanation
from edgespec.cli.options import (
    explain_option,
    max_tokens_option,
    model_argument,
    opened,
    session_options,
)
from edgespec.cli.progress import ProgressBar
from edgespec.errors import UserError
from edgespec.models.catalogue import DEFAULT_MODEL

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
    help="--chat: put the prompt into the model's chat template. --raw: continue the text. "
    "Default: --chat if the model has a chat template.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@explain_option
@click.option(
    "--trace",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a trace for `edgespec plan --trace`: the token ids of prompt and answer, the scheduler's "
    "choices and their times, and the guesses of a draft model.",
)
@max_tokens_option(256)
@session_options
def generate(
    model: str,
    stdin: str | None,
    prompt: str | None,
    file: str | None,
    chat: bool | None,
    as_json: bool,
    explain: bool,
    trace: Path | None,
    max_tokens: int,
    **options: Any,
) -> None:
    """Complete one prompt, from TEXT, a FILE or standard input (-).

    MODEL is a name from `edgespec models list`, a .gguf file, a bundle or a safetensors folder;
    smollm2-135m-instruct by default. The answer streams to stdout; speed and acceptance go to
    stderr. One newline at the end of a file or of standard input is not part of the prompt.

    \b
    Ask a question:
      edgespec generate -p "Why is the sky blue?"
    Continue a text with a fixed seed:
      edgespec generate --raw -p "Once upon a time" --temperature 0.8 --seed 1
    Read the prompt from a pipe:
      cat notes.txt | edgespec generate qwen2.5-coder-1.5b-instruct - --system "Summarize."
    Print the statistics as JSON:
      edgespec generate -p Hello --json | jq .stats
    Explain the scheduler's choices:
      edgespec generate -p "Count to fifty." --explain
    """
    if model == "-":  # `edgespec generate -`: no model named
        model, stdin = DEFAULT_MODEL, "-"
    if chat is False and options["system"] is not None:
        raise click.UsageError("--system needs a chat template; leave --system or --raw out")
    text = _prompt(prompt, file, stdin)
    if trace is not None and trace.exists():
        raise UserError(f"{trace} exists; name another file for the trace")
    progress = ProgressBar()
    reasoning = ReasoningPrinter(progress)
    if not as_json:
        options["on_reasoning"] = reasoning
    with opened(model, progress, **options) as (engine, session):
        answer = session.chat if (engine.can_chat if chat is None else chat) else session.complete
        pieces = answer(text, max_tokens=max_tokens)
        if as_json:
            text = "".join(pieces)
            progress.stop()
            apart = options["reasoning"] == "separate"
            result = {
                "text": text,
                **({"reasoning": session.reasoning} if apart else {}),
                "token_ids": session.token_ids,
                "finish_reason": session.finish_reason,
                "stats": session.statistics.as_dict(),
            }
            click.echo(json.dumps(result))
        else:
            print_answer(pieces, progress, reasoning)
            print_status(session, max_tokens)
        if explain:
            print_explanation(session.statistics)
        if trace is not None:
            from edgespec.simulation.trace import write_trace

            write_trace(session.trace(), trace)


def _prompt(text: str | None, file: str | None, stdin: str | None) -> str:
    """The prompt, from the one place that was given."""
    if (text is not None) + (file is not None) + (stdin is not None) != 1:
        raise click.UsageError("give one prompt: -p TEXT, -f FILE or - for standard input")
    if text is not None:
        return text
    if stdin or file == "-":
        return _read(sys.stdin, "standard input") if sys.stdin else ""
    assert file is not None
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as stream:
            return _read(stream, file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check the path") from error


def _read(stream: TextIO, name: str) -> str:
    text = stream.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise UserError(f"{name} holds more than {_LONGEST >> 20} million characters; shorten it")
    if "\0" in text:
        raise UserError(f"{name} is not UTF-8 text; give a file that is")
    return text.removesuffix("\n")
