"""Facts of this machine and of what is installed, as a run records them."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import psutil

from edgespec.device.measuring import memory_bandwidth
from edgespec.device.profile import machine as profiled

_PACKAGES = ("edgespec", "onnxruntime", "llama-cpp-python", "numpy", "tokenizers")


def machine_facts(threads: int) -> dict[str, Any]:
    """``Results.machine``; the bandwidth is measured now, by ``threads`` threads."""
    try:
        frequency = psutil.cpu_freq()
    except (NotImplementedError, OSError):  # some virtual machines and kernels
        frequency = None
    return {
        **profiled(),
        "frequency_hz": frequency.current * 1e6 if frequency and frequency.current else None,
        "memory_bytes": psutil.virtual_memory().total,
        "bandwidth": memory_bandwidth(threads),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := version_of(name))},
    }


def version_of(name: str) -> str | None:
    """The version of an installed package, or ``None``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
