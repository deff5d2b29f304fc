"""Progress of long work, on stderr."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_PATIENCE = 0.5
"""Seconds: shorter stages are not shown."""


class ProgressBar:
    """An ``edgespec.progress.Progress``: a bar on a terminal, elsewhere one line per stage.

    It appears when a stage has taken half a second and goes with ``stop``.
    """

    def __init__(self) -> None:
        self._stage = ""
        self._done = self._total = 0
        self._timer: threading.Timer | None = None
        self._bar: RichProgress | None = None
        self._lock = threading.Lock()

    def __call__(self, what: str, done: int, total: int, /) -> None:
        with self._lock:
            self._done, self._total = done, total
            if what != self._stage:
                self._clear()
                self._stage = what
                self._timer = threading.Timer(_PATIENCE, self._show, (what,))
                self._timer.daemon = True
                self._timer.start()
            elif self._bar:
                self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def stop(self) -> None:
        """Remove the bar."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._bar:
            self._bar.stop()
        self._stage, self._timer, self._bar = "", None, None

    def _show(self, stage: str) -> None:
        """Show a stage that takes long. Runs in the timer's thread."""
        if sys.stderr is None or not sys.stderr.isatty():
            with self._lock:
                if stage == self._stage:
                    click.echo(f"{stage} ...", err=True)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), Remaining())
        with self._lock:
            if stage != self._stage:  # it ended while rich was being imported
                return
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(stage, completed=self._done, total=self._total or None)
            self._bar.start()
