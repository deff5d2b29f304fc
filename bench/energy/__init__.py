"""Measured energy; where nothing measures, ``NoMeter`` gives the reason (docs/reference/energy.md).

The readers are our own where a library would estimate what it cannot read, or brings more than it reads; each file
says what was looked at. Zeus and codecarbon are neither taken nor copied: pandas (and scikit-learn) for a few
counters, and codecarbon prints nominal power times load where nothing metrics.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from . import android, apple, battery, nvml, rapl
from .meter import Clock, Meter, MeterLost, NoMeter

__all__ = ["READERS", "Meter", "MeterLost", "NoMeter", "idle_watts", "open_meter"]

READERS: dict[str, Callable[[Path], Meter]] = {
    "rapl": rapl.open_meter,
    "apple": lambda root: apple.open_meter(),
    "android": android.open_meter,
    "battery": battery.open_meter,
    "nvml": lambda root: nvml.open_meter(),
}
"""In the order in which they are tried: the finest counter of the most of the machine first."""

PIECES = 10


def open_meter(prefer: str | None = None, *, root: Path = Path("/sys")) -> Meter:
    """The first reader that measures here, or the one preferred.

    NVML is opened only by name: what a processor does is not in it, and reading it keeps a laptop's GPU awake.
    Raises ``NoMeter``, with a line of why not for every reader that was tried.
    """
    if prefer is not None and prefer not in READERS:
        raise NoMeter(f"{prefer}: there is no such reader; there are {', '.join(READERS)}")
    reasons = []
    for name in READERS if prefer is None else [prefer]:
        if name == "nvml" and prefer is None:
            reasons.append("nvml: measures NVIDIA GPUs alone; opened only by name")
            continue
        try:
            return READERS[name](root)
        except NoMeter as why:
            reasons.append(f"{name}: {' '.join(str(why).split())}")
    raise NoMeter("\n".join(reasons))


def idle_watts(
    meter: Meter,
    seconds: float,
    *,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[float, float]:
    """Mean and standard deviation of the power over ten pieces of the time, the machine left alone.

    Raises ``MeterLost``.
    """
    readings = [(clock(), meter.joules())]
    for _ in range(PIECES):
        sleep(seconds / PIECES)
        readings.append((clock(), meter.joules()))
    watts = [(j1 - j0) / (t1 - t0) for (t0, j0), (t1, j1) in itertools.pairwise(readings)]
    (t0, j0), (t1, j1) = readings[0], readings[-1]
    return (j1 - j0) / (t1 - t0), statistics.stdev(watts)
