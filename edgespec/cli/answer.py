"""Prints an answer as it streams, and its statistics."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from edgespec.cli.options import notice
from edgespec.cli.progress import ProgressBar

if TYPE_CHECKING:
    from edgespec.session import Session

# Output text must not control the terminal (cursor, clipboard, bell): it gets U+FFFD there.
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def print_answer(pieces: Generator[str, None, None], progress: ProgressBar) -> None:
    """Print the pieces as they come, and end the line."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    last = "\n"
    with closing(pieces):  # an interrupt while printing must end the answer
        try:
            for piece in pieces:
                progress.stop()
                last = piece[-1:]
                click.echo(piece.translate(_CONTROL) if terminal else piece, nl=False)
        finally:
            progress.stop()
            if last != "\n":
                click.echo()


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
