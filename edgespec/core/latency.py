"""What a target pass costs, from a measured curve and then from the passes themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LARGEST = 64
"""``LatencyCurve.at`` gives the time of passes over up to so many tokens."""
_SIZES = np.arange(1.0, 65)
"""The sizes estimated at once; larger ones follow the last."""
_OWN_FORGETTING = 0.75
"""What a pass leaves of the weight of those of its size before it: the last four or so count."""
_FORGETTING = 0.99
"""What a pass leaves of the weight of all before it, of whatever size: load, heat and power change."""
_PACE_WEIGHT = 0.5
"""What a size is taken to share with all others weighs as much as half a pass of its own."""
_SURPRISE, _RELIEF = np.log(1.5), np.log(20.0)
"""By how much more, and less, than expected a pass may be believed to take: hiccups only take longer."""
_STALE, _TRUSTED = 0.5, 8
"""The weight below which plain decoding wants to be seen again, 70 passes after one; and the passes for
which what was measured of it is trusted."""
_NEAR = np.exp(-0.5 * (np.log2(_SIZES[:, None] / _SIZES) / 0.35) ** 2)
"""What a pass over a column's size tells of a row's: sizes a third of an octave away, half as much."""
_LENGTHS_ALIKE = 64
"""Tokens of cache that make no difference worth computing."""


@dataclass(frozen=True)
class LatencyCurve:
    """Seconds of a pass over n tokens (all logits) after L tokens in the cache.

    ``rows`` are the sizes n that ran, padding included; both they and ``lengths`` ascend.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    """[length][rows], medians."""
    spread: tuple[tuple[float, ...], ...]
    """[length][rows], (p90 - p10) / median."""

    def at(self, length: int) -> npt.NDArray[np.float64]:
        """Seconds of passes over 1…64 tokens after ``length``; that of n is at n - 1.

        Linear between what was measured; beyond it along the last slope, where that rises, so
        never less than the nearest that was measured.
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
    """Seconds that a pass over n tokens takes on this device, now.

    ``curve`` is what was measured; without one, passes are taken to cost 1 + ``slope`` (n - 1), in
    units that the first of them shows. By which factor the device departs from it is learnt from
    every pass: one factor for all sizes, as load and heat have it, and for each size what it and
    its neighbours depart from that. A pass that took half as long again shows within five, a hiccup
    hardly. Of ``plain``, the size that plain decoding has, the better is believed of what it last took
    and of what the others suggest: where they alone slow down, only so would it be tried. No size is
    taken to cost more than a larger one. The first pass of a size pays for its allocations, and is not counted.
    """

    plain = 1
    """The size of plain decoding's passes."""

    def __init__(self, curve: LatencyCurve | None = None, *, slope: float = 0.09) -> None:
        self._curve, self._slope = curve, slope
        self._passes = 0
        # Of each size: the weight of its passes, and of the logarithms of their factors.
        self._weight, self._sum = np.zeros(len(_SIZES)), np.zeros(len(_SIZES))
        self._log_factors = self._sum.copy()
        self._seen: set[int] = set()
        self._bases: dict[int, npt.NDArray[np.float64]] = {}  # what the curve says, by length
        self._tables: dict[int, list[float]] = {}  # and what is expected now

    def seconds(self, size: int, length: int = 0) -> float:
        """Expected time of a pass over ``size`` tokens after ``length`` others."""
        bucket = length // _LENGTHS_ALIKE
        if bucket not in self._tables:
            self._tables[bucket] = (self._base(length) * np.exp(self._log_factors)).tolist()
        table = self._tables[bucket]
        return table[size - 1] if size <= len(table) else table[-1] * size / len(table)

    @property
    def plain_is_stale(self) -> bool:
        """Whether plain decoding has not been seen for so long that it should be."""
        return self._passes > _TRUSTED and bool(self._weight[self.plain - 1] < _STALE)

    def record(self, size: int, seconds: float, length: int = 0) -> None:
        """Learn that a pass over ``size`` tokens (padding included) took ``seconds``."""
        index = min(size, len(_SIZES)) - 1
        self._passes += 1
        if size not in self._seen or seconds <= 0:
            self._seen.add(size)
            return
        factor = np.log(seconds / (self._base(length)[index] * size / (index + 1)))
        if self._weight.any():
            expected = self._log_factors[index]
            factor = min(max(factor, expected - _RELIEF), expected + _SURPRISE)
        self._weight *= _FORGETTING
        self._sum *= _FORGETTING
        self._weight[index] = _OWN_FORGETTING * self._weight[index] + 1
        self._sum[index] = _OWN_FORGETTING * self._sum[index] + factor
        self._log_factors = self._estimate()
        self._tables.clear()

    def _base(self, length: int) -> npt.NDArray[np.float64]:
        bucket = length // _LENGTHS_ALIKE
        if bucket not in self._bases:
            prior = 1 + self._slope * (_SIZES - 1)
            base = self._curve.at(length) if self._curve else prior
            # No pass is dearer than one over more tokens: it was measured at a bad moment.
            self._bases[bucket] = np.minimum.accumulate(base[::-1])[::-1]
        return self._bases[bucket]

    def _estimate(self) -> npt.NDArray[np.float64]:
        """Of each size: the posterior mean, its own passes and its neighbours' against the pace."""
        weight = self._weight.sum()
        pace = self._sum.sum() / weight if weight else 0.0
        near = _NEAR @ self._weight
        factors: npt.NDArray[np.float64] = (_NEAR @ self._sum + _PACE_WEIGHT * pace) / (
            near + _PACE_WEIGHT
        )
        plain = self.plain - 1
        if self._weight[plain]:
            own = self._sum[plain] / self._weight[plain]
            factors[plain] = min(factors[plain], own)
        return factors
