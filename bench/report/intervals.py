"""Confidence intervals by the bootstrap over prompts.

Intervals hold 95 %: percentiles over ``RESAMPLES`` draws of as many prompts, with replacement. A prompt is
drawn with all its rounds and turns, which are not independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 5
"""With fewer prompts there is no interval: they do not represent others."""

Figures = NDArray[np.float64]
Statistic = Callable[[Figures], Any]
"""From (…, prompts, figures) to (…)."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval, which is infinite where there are too few prompts for one."""

    value: float
    low: float
    high: float


def resampled(rows: Figures, statistic: Statistic) -> tuple[float, Figures]:
    """``statistic`` of the prompts, and of every draw of them. Draws in which it is undefined are left out."""
    draws = np.random.default_rng(0).integers(len(rows), size=(RESAMPLES, len(rows)))
    with np.errstate(divide="ignore", invalid="ignore"):
        value, samples = float(statistic(rows)), np.asarray(statistic(rows[draws]))
    return value, samples[np.isfinite(samples)]


def interval(value: float, samples: Figures, prompts: int) -> Estimate:
    """The estimate of ``resampled``'s value and samples, from so many prompts."""
    if prompts < FEWEST or not len(samples):
        return Estimate(value, -math.inf, math.inf)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def bootstrap(rows: Figures, statistic: Statistic) -> Estimate | None:
    """``None`` where there are no rows, or the statistic is not finite."""
    if not len(rows):
        return None
    value, samples = resampled(rows, statistic)
    return interval(value, samples, len(rows)) if math.isfinite(value) else None


def median(rows: Figures) -> Any:
    """Of the only figure."""
    return np.median(rows[..., 0], axis=-1)


def geometric_mean(rows: Figures) -> Any:
    """Of the only figure."""
    return np.exp(np.log(rows[..., 0]).mean(axis=-1))


def quotient(rows: Figures) -> Any:
    """The sum of the first figure over that of the second."""
    return rows[..., 0].sum(axis=-1) / rows[..., 1].sum(axis=-1)
