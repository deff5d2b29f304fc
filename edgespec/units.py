"""Sizes as people read them."""

from __future__ import annotations

_STEP = 1024
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def format_size(size: float) -> str:
    """Format a size in bytes: ``512 bytes``, ``1.5 KiB``, ``94 MiB``, ``1.07 GiB``."""
    power = 0
    while round(size) >= _STEP and power < len(_UNITS) - 1:
        size /= _STEP
        power += 1
    decimals = 0 if power == 0 else 2 if power > 2 else 1 if round(size, 1) < 10 else 0
    return f"{size:.{decimals}f} {_UNITS[power]}"
