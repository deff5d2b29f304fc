"""Figures in words."""

from __future__ import annotations

import math
from collections.abc import Callable

from edgespec.bench.intervals import Estimate

UNKNOWN = "–"


def three(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def number(value: float | None) -> str:
    return UNKNOWN if value is None else three(value)


def estimated(estimate: Estimate | None) -> str:
    """With its interval, if there is one."""
    if estimate is None:
        return UNKNOWN
    return three(estimate.value) + _bracketed(estimate, three)


def share(estimate: Estimate | None) -> str:
    """In percent, with its interval, if there is one."""
    if estimate is None:
        return UNKNOWN
    return percent(estimate.value) + _bracketed(estimate, percent)


def percent(value: float) -> str:
    return f"{value:.0%}"


def gigabytes(size: int | None) -> str:
    return f"{size / 1e9:.2f} GB" if size else UNKNOWN


def _bracketed(estimate: Estimate, worded: Callable[[float], str]) -> str:
    low, high = estimate.low, estimate.high
    return f" ({worded(low)}–{worded(high)})" if math.isfinite(low) and low < high else ""
