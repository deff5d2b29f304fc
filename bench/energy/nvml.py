"""NVIDIA's GPUs, by NVML: a counter of millijoules since the driver started (Volta and later), or power integrated.

Taken: ``nvidia-ml-py``, NVIDIA's own bindings (one file, no dependencies; Zeus, codecarbon and nvitop read by it
too). It is imported here alone and not installed by edgespec: ``pip install nvidia-ml-py``.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable
from typing import Any

from .meter import Clock, Counter, Meter, MeterLost, NoMeter, Polled, Power

INTERVAL_S = 0.1
"""The counter and the sensor are refreshed about as often, on most GPUs."""


def open_meter(
    library: Any = None, *, clock: Clock = time.perf_counter, watch: bool = True
) -> Meter:
    """All GPUs together. Raises ``NoMeter``. ``library`` stands in for ``pynvml``."""
    if library is None:
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            raise NoMeter("pip install nvidia-ml-py, if there is an NVIDIA GPU") from None
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise NoMeter(f"NVIDIA's driver does not answer ({error})") from None
    try:
        meter = _open(library, clock)
    except (library.NVMLError, MeterLost, NoMeter) as error:
        library.nvmlShutdown()
        raise NoMeter(f"the GPU does not report what it draws ({error})") from None
    meter.on_close = library.nvmlShutdown
    if watch:
        meter.watch()
    return meter


def _open(library: Any, clock: Clock) -> Polled:
    count = library.nvmlDeviceGetCount()
    if not count:
        raise NoMeter("there is none")
    gpus = [library.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
    name = "NVML: " + ", ".join(dict.fromkeys(library.nvmlDeviceGetName(gpu) for gpu in gpus))
    what = "GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"

    def total(function: Callable[[Any], int]) -> float:
        """Of all GPUs, from thousandths."""
        try:
            return sum(function(gpu) for gpu in gpus) / 1000
        except library.NVMLError as error:
            raise MeterLost(f"the GPU does not answer ({error})") from None

    try:
        for gpu in gpus:
            library.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except library.NVMLError_NotSupported:
        read = functools.partial(total, library.nvmlDeviceGetPowerUsage)
        return Power(name, what, read, interval=INTERVAL_S, clock=clock)
    read = functools.partial(total, library.nvmlDeviceGetTotalEnergyConsumption)
    return Counter(name, what, read, step=0.001 * count, interval=INTERVAL_S, clock=clock)
