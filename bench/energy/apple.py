"""Apple silicon: the counters of the chip's "Energy Model", by IOReport, without root.

Taken: ``zeus-apple-silicon`` (of Zeus' authors, tested, no dependencies), imported here alone:
``pip install zeus-apple-silicon``. Not taken: ``powermetrics``, which reads the same and wants root; asitop and its
like print its output.

Apple calls these figures estimates, and warns against comparing devices by them: ``what`` repeats that.
"""

from __future__ import annotations

import importlib
import platform
import sys
import time
from typing import Any

from .meter import Clock, Counter, Meter, MeterLost, NoMeter

PARTS = {
    "cpu_total_mj": "processor",
    "gpu_mj": "GPU",
    "gpu_sram_mj": "GPU SRAM",
    "ane_mj": "neural engine",
    "dram_mj": "memory",
}
INTERVAL_S = 0.1


def open_meter(
    library: Any = None, *, clock: Clock = time.perf_counter, watch: bool = True
) -> Meter:
    """Raises ``NoMeter``. ``library`` stands in for ``zeus_apple_silicon``."""
    if library is None:
        if sys.platform != "darwin" or platform.machine() != "arm64":
            raise NoMeter("this is no Mac with Apple silicon")
        try:
            library = importlib.import_module("zeus_apple_silicon")
        except ImportError:
            raise NoMeter("pip install zeus-apple-silicon") from None
    try:
        monitor = library.AppleEnergyMonitor()
        energy = monitor.get_cumulative_energy()
    except RuntimeError as error:
        raise NoMeter(f"IOReport does not answer ({error})") from None
    parts = [part for part in PARTS if getattr(energy, part) is not None]
    if "cpu_total_mj" not in parts:
        raise NoMeter("this chip does not report what its processor draws")

    def read() -> float:
        try:
            energy = monitor.get_cumulative_energy()
        except RuntimeError as error:
            raise MeterLost(f"IOReport does not answer ({error})") from None
        values = [getattr(energy, part) for part in parts]
        if None in values:
            raise MeterLost("a part of the chip no longer reports what it draws")
        return float(sum(values)) / 1000

    words = [PARTS[part] for part in parts]
    what = f"{', '.join(words)} of the chip, by Apple's own model of its energy"
    step = 0.001 * len(parts)
    meter = Counter("IOReport", what, read, step=step, interval=INTERVAL_S, clock=clock)
    if watch:
        meter.watch()
    return meter
