"""Prints an answer as it streams, and its statistics."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, TextIO

import click

from edgespec.cli.options import notice
from edgespec.cli.progress import ProgressBar

if TYPE_CHECKING:
    from edgespec.session import Session

# Output text must not control the terminal (cursor, clipboard, bell): it gets U+FFFD there.
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


class ReasoningPrinter:
    """Prints the pieces of a separate reasoning on stderr, dim."""

    def __init__(self, progress: ProgressBar) -> None:
        self._progress = progress
        self._last = "\n"

    def __call__(self, piece: str) -> None:
        self._progress.stop()
        self._last = piece[-1:]
        click.secho(_for_terminal(piece, sys.stderr), err=True, nl=False, dim=True)

    def end(self) -> None:
        """End the line."""
        if self._last != "\n":
            click.echo(err=True)
            self._last = "\n"


def print_answer(
    pieces: Generator[str, None, None],
    progress: ProgressBar,
    reasoning: ReasoningPrinter | None = None,
) -> None:
    """Print the pieces as they come, after the ``reasoning``, and end the line."""
    reasoning = reasoning or ReasoningPrinter(progress)
    last = "\n"
    with closing(pieces):  # an interrupt while printing must end the answer
        try:
            for piece in pieces:
                progress.stop()
                reasoning.end()
                last = piece[-1:]
                click.echo(_for_terminal(piece, sys.stdout), nl=False)
        finally:
            progress.stop()
            reasoning.end()
            if last != "\n":
                click.echo()


def _for_terminal(text: str, stream: TextIO | None) -> str:
    return text.translate(_CONTROL) if stream is not None and stream.isatty() else text


def print_status(session: Session, max_tokens: int) -> None:
    """Print one line on stderr: speed, acceptance and the end of the last answer."""
    stats = session.statistics
    parts = [
        f"{stats.generated_tokens} tokens",
        f"{stats.decode_tokens_per_s:.1f} tokens/s",
        f"block efficiency {stats.block_efficiency:.2f}",
        f"acceptance {stats.acceptance_rate:.0%} of {stats.drafted}"
        if stats.drafted
        else "no drafts",
        f"{stats.drafter} draft on {stats.runtime} {stats.device}",
    ]
    if stats.acceptance != "lossless":
        parts.append(f"lossy: {stats.acceptance} acceptance")
    if session.finish_reason == "length":
        cut = stats.generated_tokens >= max_tokens
        parts.append("cut by --max-tokens" if cut else "cut by the context's end")
    elif session.finish_reason is None:
        parts.append("stopped")
    notice(", ".join(parts))
