"""Formats figures for tables and plots."""

from __future__ import annotations

import math
from collections.abc import Callable

from edgespec.bench.report.intervals import Estimate

UNKNOWN = "–"


def three(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def number(value: float | None) -> str:
    return UNKNOWN if value is None else three(value)


def percent(value: float) -> str:
    return f"{value:.0%}"


def estimated(estimate: Estimate | None, worded: Callable[[float], str] = three) -> str:
    """The value, with its interval if there is one."""
    if estimate is None:
        return UNKNOWN
    value, low, high = estimate.value, estimate.low, estimate.high
    has_interval = math.isfinite(low) and low < high
    return worded(value) + (f" ({worded(low)}–{worded(high)})" if has_interval else "")


def gigabytes(size: int | None) -> str:
    return f"{size / 1e9:.2f} GB" if size else UNKNOWN
