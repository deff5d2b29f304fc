"""Tokens a pass, τ, of drafters that need no model, each alone and always with as many guesses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from edgespec.bench.experiments.common import (
    chosen_prompts,
    context_option,
    experiment,
    machine,
    max_tokens_option,
    note,
    prompts_option,
    report,
    runtime_option,
    table,
)
from edgespec.bench.experiments.switching import Mode, Switch
from edgespec.bench.workloads import Prompt
from edgespec.core.runtime import MAX_ROWS
from edgespec.drafting.model_free import MODEL_FREE
from edgespec.engine import Engine
from edgespec.session import Session


@dataclass(frozen=True)
class Turn:
    """What one answer took."""

    draft: str
    prompt: int
    category: str
    tokens: int
    passes: int
    drafted: int
    accepted: int


def converse(switch: Switch, mode: Mode, prompt: Prompt, max_tokens: int) -> list[Turn]:
    """All turns of a conversation, each answered to the model's end."""
    session = Session(switch.to(mode))
    turns = []
    for text in prompt.turns:
        for _ in session.chat(text, max_tokens=max_tokens):
            pass
        s = session.statistics
        counts = s.generated_tokens, s.target_passes, s.drafted, s.accepted
        turns.append(Turn(mode.draft, prompt.id, prompt.category, *counts))
    return turns


def efficiency_table(turns: Sequence[Turn]) -> str:
    """Per category and of all: answers and tokens, then for each drafter τ and α."""
    drafts = list(dict.fromkeys(turn.draft for turn in turns))
    categories = [*dict.fromkeys(turn.category for turn in turns), "**all**"]
    rows = []
    for category in categories:
        alike = [turn for turn in turns if category in (turn.category, "**all**")]
        own = [turn for turn in alike if turn.draft == drafts[0]]
        row = [category, str(len(own)), f"{sum(turn.tokens for turn in own):,}"]
        for draft in drafts:
            own = [turn for turn in alike if turn.draft == draft]
            tau = sum(turn.tokens for turn in own) / sum(turn.passes for turn in own)
            guesses = sum(turn.drafted for turn in own)
            right = f"{sum(turn.accepted for turn in own) / guesses:.0%}" if guesses else "–"
            row.append(f"{tau:.2f} · {right}")
        rows.append(row)
    return table(["category", "answers", "tokens", *drafts], rows)


@experiment
@runtime_option
@click.option(
    "--draft",
    "drafts",
    multiple=True,
    type=click.Choice(MODEL_FREE[1:]),
    default=("suffix", "ngram-cache", "recycling"),
    show_default=True,
    help="What guesses. May be repeated.",
)
@click.option(
    "--guesses",
    type=click.IntRange(1, MAX_ROWS - 1),
    default=8,
    show_default=True,
    help="To a pass, wherever that many can be made: a tree of them, not padded to be exact.",
)
@prompts_option
@click.option("--per-category", type=click.IntRange(1), help="Default: all.")
@max_tokens_option(default=160)
@context_option(default=4096)
def main(
    model: str,
    runtime: str,
    drafts: tuple[str, ...],
    guesses: int,
    path: Path | None,
    per_category: int | None,
    max_tokens: int,
    context: int,
    json_path: Path | None,
) -> None:
    """Greedy conversations, one after the other, from which each drafter learns as it goes.

    Nothing is timed: `python -m edgespec.bench.experiments speed` measures what such drafts gain.
    """
    prompts = chosen_prompts(path, per_category)
    turns: list[Turn] = []
    with Engine.open(model, runtime=runtime, draft="none", context=context) as engine:
        switch = Switch(engine)
        for draft in drafts:
            for number, prompt in enumerate(prompts, 1):
                turns += converse(switch, Mode(draft, False, guesses), prompt, max_tokens)
                note(f"{draft}: {number}/{len(prompts)} {prompt.category}")
    title = f"τ · α of {guesses} guesses a pass: {runtime}, {max_tokens} tokens at most"
    report(title, machine(model), [efficiency_table(turns)], json_path, [asdict(t) for t in turns])
