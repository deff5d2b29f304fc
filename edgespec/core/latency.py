"""The latency model of passes: a measured curve, corrected by the times of later passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LARGEST = 64
"""The largest pass of ``LatencyCurve.at``, in tokens."""
_SIZES = np.arange(1.0, 65)
"""The estimated pass sizes. The time of larger ones is proportional to the last."""
_LENGTH_BUCKET = 64
"""Cached tokens per entry of the tables: the difference within an entry is negligible."""


@dataclass(frozen=True)
class LatencyConstants:
    """Constants of the latency model. All of them are guesses."""

    prior_slope: float = 0.09
    """Latency of a further token in a pass, in passes over one token, without a measured curve."""
    size_forgetting: float = 0.75
    """Factor on the weight of earlier passes of a size, per pass of that size: about four passes count."""
    forgetting: float = 0.99
    """Factor on the weight of all earlier passes, per pass: load, heat and power change."""
    pace_weight: float = 0.5
    """Weight of the factor that all sizes share, in passes of the size."""
    slowest_surprise: float = 1.5
    """Largest factor above the expected time; longer times are clipped, because outliers are always long."""
    fastest_surprise: float = 20.0
    """Largest factor below the expected time; shorter times are clipped."""
    stale_weight: float = 0.5
    """Weight of plain decoding's passes below which it is measured again: 70 passes after one."""
    trusted_passes: int = 8
    """Passes for which the measured curve is trusted about plain decoding."""
    neighbour_octaves: float = 0.35
    """Standard deviation, in octaves, of the weight of a pass for other sizes: about a half at a third of an octave."""


CONSTANTS = LatencyConstants()


@dataclass(frozen=True)
class LatencyCurve:
    """Seconds of a pass over n tokens (all logits) after L tokens in the cache.

    ``rows`` are the measured sizes n, padding included. ``rows`` and ``lengths`` are in ascending order.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    """[length][rows], medians."""
    spread: tuple[tuple[float, ...], ...]
    """[length][rows], (p90 - p10) / median."""

    def at(self, length: int) -> npt.NDArray[np.float64]:
        """Seconds of passes over 1…64 tokens after ``length`` cached ones; index n - 1 for n tokens.

        Linear between measured points. Beyond them it follows the last slope, if that is positive,
        so it is never less than the nearest measured time.
        """
        sizes, rows = np.arange(1.0, LARGEST + 1), np.asarray(self.rows, np.float64)
        table = np.array([np.interp(sizes, rows, seconds) for seconds in self.seconds])
        if len(rows) > 1:
            rise = np.diff(np.asarray(self.seconds)[:, -2:]).clip(0) / (rows[-1] - rows[-2])
            table += rise * (sizes - rows[-1]).clip(0)
        if len(self.lengths) == 1:
            return np.asarray(table[0])
        after = min(max(int(np.searchsorted(self.lengths, length)), 1), len(self.lengths) - 1)
        start, end = self.lengths[after - 1 : after + 1]
        share = max((length - start) / (end - start), 0.0)
        change = table[after] - table[after - 1]
        falls_on = (share > 1) & (change < 0)
        return np.asarray(table[after - 1] + change * np.where(falls_on, 1.0, share))


class LatencyModel:
    """The expected seconds of a pass over n tokens on this device now.

    ``curve`` is the measured curve. Without one, a pass takes 1 + ``slope`` (n - 1) (default: ``prior_slope``), in a
    unit that the first passes give. The model learns the device's deviation from the curve from every pass: one factor
    for all sizes (load, heat), and one factor per size, which neighbouring sizes share. If passes become half as
    long again, the estimate follows within five passes; a single outlier hardly changes it. Plain decoding's size,
    ``plain``, has the lower of its own estimate and the shared one: when only other sizes become slower, plain
    decoding is tried. No size takes longer than a larger one. The first pass of a size includes its allocations and
    is not counted.
    """

    plain = 1
    """The size of a plain decoding pass, in tokens."""

    def __init__(self, curve: LatencyCurve | None = None, *, slope: float | None = None) -> None:
        self._curve, self._slope = curve, CONSTANTS.prior_slope if slope is None else slope
        self._passes = 0
        # By size: the weight of its passes, and the weighted sum of the logarithms of their factors.
        self._weight, self._sum = np.zeros(len(_SIZES)), np.zeros(len(_SIZES))
        self._log_factors = self._sum.copy()
        octaves = np.log2(_SIZES[:, None] / _SIZES)
        self._nearness = np.exp(-0.5 * (octaves / CONSTANTS.neighbour_octaves) ** 2)
        self._seen: set[int] = set()
        # By bucket of cached tokens: the curve, and the expected times now.
        self._bases: dict[int, npt.NDArray[np.float64]] = {}
        self._tables: dict[int, list[float]] = {}

    def seconds(self, size: int, length: int = 0) -> float:
        """Expected seconds of a pass over ``size`` tokens after ``length`` cached ones."""
        bucket = length // _LENGTH_BUCKET
        if bucket not in self._tables:
            self._tables[bucket] = (self._base(length) * np.exp(self._log_factors)).tolist()
        table = self._tables[bucket]
        return table[size - 1] if size <= len(table) else table[-1] * size / len(table)

    @property
    def plain_is_stale(self) -> bool:
        """Whether plain decoding must be measured again."""
        weight = self._weight[self.plain - 1]
        return self._passes > CONSTANTS.trusted_passes and bool(weight < CONSTANTS.stale_weight)

    def record(self, size: int, seconds: float, length: int = 0) -> None:
        """Record that a pass over ``size`` tokens (padding included) took ``seconds``."""
        index = min(size, len(_SIZES)) - 1
        self._passes += 1
        if size not in self._seen or seconds <= 0:
            self._seen.add(size)
            return
        log_factor = np.log(seconds / (self._base(length)[index] * size / (index + 1)))
        if self._weight.any():
            expected = self._log_factors[index]
            log_factor = max(log_factor, expected - np.log(CONSTANTS.fastest_surprise))
            log_factor = min(log_factor, expected + np.log(CONSTANTS.slowest_surprise))
        self._weight *= CONSTANTS.forgetting
        self._sum *= CONSTANTS.forgetting
        self._weight[index] = CONSTANTS.size_forgetting * self._weight[index] + 1
        self._sum[index] = CONSTANTS.size_forgetting * self._sum[index] + log_factor
        self._log_factors = self._estimate()
        self._tables.clear()

    def _base(self, length: int) -> npt.NDArray[np.float64]:
        bucket = length // _LENGTH_BUCKET
        if bucket not in self._bases:
            prior = 1 + self._slope * (_SIZES - 1)
            base = self._curve.at(length) if self._curve else prior
            # A size that took longer than a larger one was measured while the machine was busy.
            self._bases[bucket] = np.minimum.accumulate(base[::-1])[::-1]
        return self._bases[bucket]

    def _estimate(self) -> npt.NDArray[np.float64]:
        """By size: the posterior mean of its log factor, from its own and neighbouring passes."""
        weight = self._weight.sum()
        pace = self._sum.sum() / weight if weight else 0.0
        factors: npt.NDArray[np.float64] = (
            self._nearness @ self._sum + CONSTANTS.pace_weight * pace
        ) / (self._nearness @ self._weight + CONSTANTS.pace_weight)
        plain = self.plain - 1
        if self._weight[plain]:
            measured = self._sum[plain] / self._weight[plain]
            factors[plain] = min(factors[plain], measured)
        return factors
