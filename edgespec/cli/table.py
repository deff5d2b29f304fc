"""Tables on stdout."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from rich.table import Table

_UNLIMITED = 1 << 16
"""Columns of a console that neither wraps nor cuts a cell."""


def print_table(rows: Sequence[Sequence[str]], *, left: int | None = None) -> None:
    """Print a header row and data rows.

    The first ``left`` columns (default: all) are aligned left, the others right. On a terminal
    rich fits the table to the width. Elsewhere each row is one line of plain text.
    """
    if sys.stdout is not None and sys.stdout.isatty():
        from rich.console import Console  # imported late: no help text needs it

        Console(file=sys.stdout).print(_table(rows, left))
        return
    for line in table_lines(rows, left=left):
        click.echo(line)


def table_lines(rows: Sequence[Sequence[str]], *, left: int | None = None) -> list[str]:
    """The table of ``print_table`` as lines of plain text, one for each row."""
    from rich.console import Console

    plain = io.StringIO()
    console = Console(file=plain, width=_UNLIMITED, color_system=None, force_terminal=False)
    console.print(_table(rows, left))
    return [line.rstrip() for line in plain.getvalue().splitlines()]


def _table(rows: Sequence[Sequence[str]], left: int | None) -> Table:
    from rich.table import Table
    from rich.text import Text

    header, *body = rows
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, name in enumerate(header):
        justify: Literal["left", "right"] = "left" if left is None or i < left else "right"
        table.add_column(name, justify=justify, no_wrap=i == 0, overflow="fold")
    for row in body:
        table.add_row(*map(Text, row))  # Text: a name in brackets is no markup
    return table
