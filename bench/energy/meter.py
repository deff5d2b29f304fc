"""What a meter is, and how its total is kept up to date while a run goes on."""

from __future__ import annotations

import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

Clock = Callable[[], float]


class NoMeter(Exception):
    """Nothing measures here. The text gives the reason and, where possible, what to do."""


class MeterLost(Exception):
    """What measured no longer does, or not the same: readings from now on would be wrong. One line."""


class Meter(Protocol):
    """Energy since it was opened."""

    name: str
    """The reader and its counters: "RAPL: package-0, dram"."""
    what: str
    """What it measures, in words: "processor packages and memory"."""

    def joules(self) -> float:
        """Since opened; never falls. Raises ``MeterLost``."""

    def error(self, seconds: float, joules: float) -> float:
        """Largest relative error, by sampling alone, of a reading over so long.

        The counter's step and how seldom it is refreshed; what the sensor itself is wrong by is not
        known here (docs/reference/energy.md). 1 or more: the reading is useless.
        """

    def close(self) -> None:
        """Stop. May be called twice."""


class Polled(ABC):
    """A meter that a daemon thread brings up to date every ``interval`` seconds, and every reading does."""

    name: str
    what: str

    def __init__(self, interval: float, step: float, clock: Clock) -> None:
        """``step`` in joules. The subclass has read its first value when it calls this."""
        self.interval = interval
        self.step = step
        self._clock = clock
        self._at = self._changed = clock()
        self._refresh = 0.0
        self._joules = 0.0
        self._lost = ""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.on_close: Callable[[], None] = lambda: None

    @abstractmethod
    def _drawn(self, elapsed: float) -> float:
        """Joules since the last call, ``elapsed`` seconds ago. Raises what ``poll`` catches."""

    def watch(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._watch, name=self.name, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._lost and not self._closed.wait(self.interval):
            self.poll()

    def poll(self) -> None:
        """Bring the total up to now."""
        with self._lock:
            if self._lost:
                return
            now = self._clock()
            try:
                self._joules += self._drawn(now - self._at)
            except (MeterLost, OSError, ValueError, subprocess.SubprocessError) as error:
                self._lost = " ".join(f"{self.name}: {error}".split())[:300]
            self._at = now

    def joules(self) -> float:
        self.poll()
        if self._lost:
            raise MeterLost(self._lost)
        return self._joules

    def error(self, seconds: float, joules: float) -> float:
        return self._lag() / seconds + self.step / max(joules, self.step, 1e-9)

    def _lag(self) -> float:
        """Seconds by which a reading may be old."""
        return max(self.interval, self._refresh, self._clock() - self._changed)

    def _has_changed(self) -> None:
        """The sensor has a new value: it is refreshed as seldom as the longest time between two of these."""
        now = self._clock()
        self._refresh = max(self._refresh, now - self._changed)
        self._changed = now

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=1)
        self.on_close()


class Counter(Polled):
    """A counter of joules that only grows."""

    def __init__(
        self,
        name: str,
        what: str,
        read: Callable[[], float],
        *,
        step: float,
        interval: float,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.name, self.what, self._read = name, what, read
        self._last = read()
        super().__init__(interval, step, clock)

    def _drawn(self, elapsed: float) -> float:
        joules = self._read()
        drawn, self._last = joules - self._last, joules
        if drawn < 0:
            raise MeterLost("its counter fell: it was reset")
        if drawn:
            self._has_changed()
        return drawn


class Power(Polled):
    """A sensor of watts, integrated by trapezoids over the moments when it was read."""

    GAP = 30.0
    """Seconds without a reading that are too long to draw a line across."""

    def __init__(
        self,
        name: str,
        what: str,
        read: Callable[[], float],
        *,
        interval: float,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.name = f"{name}, power read every {interval:g} s"
        self.what, self._read = what, read
        self._last = read()
        self._longest = interval
        super().__init__(interval, 0.0, clock)

    def _drawn(self, elapsed: float) -> float:
        if elapsed > self.GAP:
            raise MeterLost(f"it was not read for {elapsed:.0f} s")
        watts = self._read()
        drawn, changed = (watts + self._last) / 2 * elapsed, watts != self._last
        self._last = watts
        self._longest = max(self._longest, elapsed)
        if changed:
            self._has_changed()
        return drawn

    def _lag(self) -> float:
        """A change is seen when the sensor is refreshed, and drawn half a step too early or too late."""
        return super()._lag() + self._longest / 2


def read_text(path: Path) -> str:
    """A small file of the kernel's, without the end of its line. Raises ``OSError`` or ``ValueError``."""
    with path.open("rb") as file:
        return file.read(200).decode("ascii").strip()


def read_number(path: Path) -> int:
    """Likewise, a whole number."""
    text = read_text(path)
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{path} holds {text[:40]!r}, which is no number") from None
