"""The scheduler's choices in the last answer, with expected and measured results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from edgespec.cli.table import table_lines

if TYPE_CHECKING:
    from edgespec.core.statistics import Statistics, Tally

_HEADS = ("passes", "drafted", "accepted", "tokens: exp.", "got", "ms: exp.", "got", "drafting")


def print_explanation(stats: Statistics) -> None:
    """Print on stderr how often each drafter was used, and the expected speed of plain decoding."""
    for line in explanation(stats):
        click.echo(line, err=True)


def explanation(stats: Statistics) -> Iterator[str]:
    """Lines of at most 100 columns; tokens and milliseconds are of a pass."""
    if not stats.target_passes:
        yield "No token was decoded."
        return
    names = {"none": "plain"}
    yield from _table("drafter", ((names.get(k, k), t) for k, t in stats.by_drafter.items()))
    yield ""
    yield from _table("tokens in a pass", ((str(n), t) for n, t in sorted(stats.by_size.items())))
    yield ""
    tallies = stats.by_drafter.values()
    seconds = sum(tally.draft_s + tally.expected_pass_s for tally in tallies)
    plain = stats.target_passes / sum(tally.plain_s for tally in tallies)
    expected = sum(tally.expected_tokens for tally in tallies) / seconds
    got = stats.decode_tokens_per_s
    yield (
        f"Plain decoding: {plain:.1f} tokens/s expected. This: {expected:.1f} expected "
        f"({expected / plain:.2f}×), {got:.1f} got ({got / plain:.2f}×)."
    )


def _table(head: str, rows: Iterable[tuple[str, Tally]]) -> list[str]:
    lines = [
        (
            name,
            f"{tally.steps}",
            f"{tally.drafted}",
            f"{tally.accepted}",
            f"{tally.expected_tokens / tally.steps:.2f}",
            f"{tally.tokens / tally.steps:.2f}",
            f"{1e3 * tally.expected_pass_s / tally.steps:.1f}",
            f"{1e3 * tally.pass_s / tally.steps:.1f}",
            f"{1e3 * tally.draft_s / tally.steps:.1f}",
        )
        for name, tally in rows
    ]
    return table_lines([(head, *_HEADS), *lines], left=1)
