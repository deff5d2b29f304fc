"""The time to render long conversations, against transformers' renderer, template by template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import process_time

import click

from edgespec.bench.experiments.common import Failure, experiment, machine, report, table
from edgespec.errors import UserError
from edgespec.local_model import find
from edgespec.models.chat_template import ChatTemplate
from edgespec.models.tokenizer import Tokenizer
from edgespec.progress import silent

_TURNS = (100, 300, 1000)
_LIMIT = 5.0
"""The most that a rendering may take, in times of transformers' renderer."""
_REPEATED = 3
_LONG_S = 1.0
"""A rendering that takes longer is not repeated."""


@experiment
@click.option(
    "--templates",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with *.jinja files, such as models/templates of llama.cpp. Default: the model's template.",
)
def main(model: str, templates: Path | None, json_path: Path | None) -> None:
    """Render conversations of 100, 300 and 1,000 turns; fail where that takes too long."""
    tokenizer = find(model, silent).tokenizer
    sources = {"the model's": tokenizer.chat_template or ""}
    if templates is not None:
        files = sorted(templates.glob("*.jinja"))
        sources = {file.stem: file.read_text(encoding="utf-8") for file in files}
    figures = {name: _measure(source, tokenizer) for name, source in sources.items()}
    rows = [
        [name, *(f"{ours * 1e3:.1f} ({ours / theirs:.1f}×)" for theirs, ours in found)]
        for name, found in figures.items()
        if isinstance(found, list)
    ]
    failed = [f"- {name}: {found}" for name, found in figures.items() if isinstance(found, str)]
    header = ["template", *(f"{turns} turns, ms (× transformers)" for turns in _TURNS)]
    report(
        "Rendering of long conversations",
        machine(model),
        [table(header, rows), *(["Not rendered:\n" + "\n".join(failed)] if failed else [])],
        json_path,
        figures,
    )
    slow = [
        name
        for name, found in figures.items()
        if isinstance(found, list) and any(ours > _LIMIT * theirs for theirs, ours in found)
    ]
    if slow:
        raise Failure(f"more than {_LIMIT:g} times as slow as transformers: {', '.join(slow)}")


def _measure(source: str, tokenizer: Tokenizer) -> list[tuple[float, float]] | str:
    """Seconds of transformers and of edgespec for each length; or why there are none."""
    from transformers.utils.chat_template_utils import render_jinja_template

    names = {
        role: "" if id is None else tokenizer.token_text(id)
        for role, id in (("bos_token", tokenizer.bos), ("eos_token", tokenizer.eos))
    }

    def theirs(messages: list[dict[str, str]]) -> str:
        options = {"chat_template": source, "add_generation_prompt": True, **names}
        return str(render_jinja_template([messages], **options)[0][0])

    try:
        template = ChatTemplate(source, tokenizer)
        found = []
        for messages in map(_conversation, _TURNS):
            if template.text(messages) != theirs(messages):
                return "another text than transformers'"
            found.append((_seconds(theirs, messages), _seconds(template.text, messages)))
    except UserError as error:
        return str(error)
    except Exception as error:  # whatever a template provokes in Jinja
        return f"transformers: {error}"
    return found


def _conversation(turns: int) -> list[dict[str, str]]:
    messages = []
    for turn in range(turns):
        question = f"Question {turn}: how high is the tower, and who built it?"
        answer = f"The tower is {turn} metres high. I do not know who built it."
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return [*messages, {"role": "user", "content": "And now?"}]


def _seconds(
    render: Callable[[list[dict[str, str]]], str], messages: list[dict[str, str]]
) -> float:
    """The processor time of a rendering, the least of some."""
    best = float("inf")
    for _ in range(_REPEATED):
        started = process_time()
        render(messages)
        best = min(best, process_time() - started)
        if best > _LONG_S:
            break
    return best
