"""What a target pass costs, from a measured curve and then from the passes themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from edgespec.scheduling.profile import Curve

_SIZES = np.arange(1.0, 65)
"""The sizes estimated at once; larger ones follow the last."""
_OWN_FORGETTING = 0.75
"""What a pass leaves of the weight of those of its size before it: the last four or so count."""
_FORGETTING = 0.99
"""What a pass leaves of the weight of all before it, of whatever size: load, heat and power change."""
_HEARSAY = 0.01
"""The weight of the curve's own word on plain decoding, where no pass has shown any."""
_PACE_WEIGHT = 0.5
"""What a size is taken to share with all others weighs as much as half a pass of its own."""
_SURPRISE = np.log(1.5)
"""No pass says more than this about the factor by which the curve is off: hiccups take longer."""
_NEAR = np.exp(-0.5 * (np.log2(_SIZES[:, None] / _SIZES) / 0.35) ** 2)
"""What a pass over a column's size tells of a row's: sizes a third of an octave away, half as much."""
_LENGTHS_ALIKE = 64
"""Tokens of cache that make no difference worth computing."""


class PassCosts:
    """Seconds that a pass over n tokens takes on this device, now.

    ``curve`` is what was measured; without one, passes are taken to cost 1 + ``slope`` (n - 1), in
    units that the first of them shows. By which factor the device departs from it is learnt from
    every pass: one factor for all sizes, as load and heat have it, and for each size what it and
    its neighbours depart from that. A pass that took half as long again shows within five, a hiccup
    hardly. Of ``plain``, the size that plain decoding has, the better is believed of what it last took
    and of what the others suggest: where they alone slow down, only so would it be tried. The first pass of a size pays for its allocations, and is not counted.
    """

    def __init__(self, curve: Curve | None = None, *, plain: int = 1, slope: float = 0.09) -> None:
        self._curve, self._slope, self._plain = curve, slope, plain - 1
        # Of each size: the weight of its passes, and of the logarithms of their factors.
        self._weight, self._sum = np.zeros(len(_SIZES)), np.zeros(len(_SIZES))
        if curve is not None:
            self._weight[self._plain] = _HEARSAY
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

    def record(self, size: int, seconds: float, length: int = 0) -> None:
        """Learn that a pass over ``size`` tokens (padding included) took ``seconds``."""
        index = min(size, len(_SIZES)) - 1
        if size not in self._seen or seconds <= 0:
            self._seen.add(size)
            return
        factor = np.log(seconds / (self._base(length)[index] * size / (index + 1)))
        if self._weight.sum() > _HEARSAY:
            expected = self._log_factors[index]
            factor = min(max(factor, expected - _SURPRISE), expected + _SURPRISE)
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
            self._bases[bucket] = self._curve.at(length) if self._curve else prior
        return self._bases[bucket]

    def _estimate(self) -> npt.NDArray[np.float64]:
        """Of each size: the posterior mean, its own passes and its neighbours' against the pace."""
        weight = self._weight.sum()
        pace = self._sum.sum() / weight if weight else 0.0
        near = _NEAR @ self._weight
        factors: npt.NDArray[np.float64] = (_NEAR @ self._sum + _PACE_WEIGHT * pace) / (
            near + _PACE_WEIGHT
        )
        if self._weight[self._plain]:
            own = self._sum[self._plain] / self._weight[self._plain]
            factors[self._plain] = min(factors[self._plain], own)
        return factors
