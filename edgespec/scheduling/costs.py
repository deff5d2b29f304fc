"""What a target pass costs, learnt from the passes themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt

from edgespec.runtimes import Runtime

_KEPT = 5
"""Samples kept of each size; their lower median is the estimate."""
_STALE = 256
"""A size not seen for so many passes is forgotten: load, heat and context change its time."""
_TABLE = np.arange(1, 65)
"""The sizes estimated at once."""


class PassCosts:
    """Seconds that a pass over n tokens takes on this device, now.

    Sizes not seen yet are estimated from those that were, along the prior R(n) = 1 + slope (n - 1):
    the factor by which the device departs from it is interpolated between them. The default slope
    is that of ONNX Runtime's 4-bit products on a CPU; a steeper curve is found out in a few passes.
    The first pass of a size pays for its allocations, and is not counted.
    """

    def __init__(self, slope: float = 0.09) -> None:
        self.slope = slope
        self._passes = 0
        self._samples: dict[int, deque[float]] = {}
        self._seen_at: dict[int, int] = {}
        self._curve: list[float] = []

    def record(self, size: int, seconds: float) -> None:
        """Learn that a pass over ``size`` tokens (padding included) took ``seconds``."""
        self._passes += 1
        self._seen_at[size] = self._passes
        if size not in self._samples:
            self._samples[size] = deque(maxlen=_KEPT)
            return
        self._samples[size].append(seconds)
        for old in [s for s, at in self._seen_at.items() if self._passes - at > _STALE]:
            self._samples[old].clear()
        self._curve = []

    def seconds(self, size: int) -> float:
        """Expected time of a pass over ``size`` tokens; relative to n=1 before any is known."""
        if size > len(_TABLE):
            return float(self._estimate(np.array([size]))[0])
        if not self._curve:
            self._curve = self._estimate(_TABLE).tolist()
        return self._curve[size - 1]

    def _estimate(self, sizes: npt.NDArray[np.int_]) -> npt.NDArray[np.float64]:
        prior = 1.0 + self.slope * (sizes.astype(np.float64) - 1)
        known = sorted((size, samples) for size, samples in self._samples.items() if samples)
        if not known:
            return prior
        factors = [
            sorted(samples)[(len(samples) - 1) // 2] / (1 + self.slope * (size - 1))
            for size, samples in known
        ]
        factor: npt.NDArray[np.float64] = np.interp(sizes, [size for size, _ in known], factors)
        return prior * factor


def measure(runtime: Runtime, costs: PassCosts, sizes: Sequence[int] = (1, 2, 4, 8)) -> None:
    """Teach ``costs`` a few sizes of pass before the first answer needs them.

    Costs about thirty times a pass of one token on a flat curve. Nothing stays in the cache.
    """
    info, room = runtime.info, runtime.info.context - runtime.length
    for size, tokens in {info.padded(n): n for n in sizes if n <= room}.items():
        for _ in range(3):  # the first is not counted
            started = perf_counter()
            runtime.forward([0] * tokens)
            costs.record(size, perf_counter() - started)
    runtime.keep([])
