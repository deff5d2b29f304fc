"""Facts of this machine, without a dependency of their own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

# Instructions that the kernels of quantized models use, as Linux and as macOS name them.
_X86 = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
_ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")
_MACOS = {"FEAT_DotProd": "dotprod", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16", "FEAT_SME": "sme"}
# PF_… of winnt.h.
_WINDOWS = {40: "avx2", 41: "avx512f", 19: "neon", 43: "dotprod"}


@cache
def cpu_features() -> tuple[str, ...]:
    """The vector instructions that matter here; empty where the system does not tell."""
    try:
        return tuple(_cpu_features())
    except (OSError, subprocess.SubprocessError):
        return ()


def _cpu_features() -> list[str]:
    if sys.platform == "win32":
        present = ctypes.windll.kernel32.IsProcessorFeaturePresent
        return [name for number, name in _WINDOWS.items() if present(number)]
    if sys.platform == "darwin":
        flags = _sysctl("-a")
        arm = [name for key, name in _MACOS.items() if f"hw.optional.arm.{key}: 1" in flags]
        return arm or ["avx2"] * ("hw.optional.avx2_0: 1" in flags)
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            words = set(line.split())
            return [name for name in _X86 + _ARM if name in words]
    return []


def memory() -> tuple[int, int]:
    """Bytes of memory: all, and what can be had without swapping."""
    if sys.platform == "win32":

        class Status(ctypes.Structure):  # MEMORYSTATUSEX
            _fields_ = [
                ("length", ctypes.c_uint32),
                ("load", ctypes.c_uint32),
                ("total", ctypes.c_uint64),
                ("available", ctypes.c_uint64),
                ("others", ctypes.c_uint64 * 5),
            ]

        status = Status(length=ctypes.sizeof(Status))
        if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            raise ctypes.WinError()
        return status.total, status.available
    if sys.platform == "darwin":
        pages = dict(line.rstrip(".").split(":", 1) for line in _output("vm_stat").splitlines()[1:])
        idle = sum(int(pages[f"Pages {kind}"]) for kind in ("free", "inactive", "speculative"))
        return int(_sysctl("-n", "hw.memsize")), idle * os.sysconf("SC_PAGE_SIZE")
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {name: int(rest.split()[0]) * 1024 for name, rest in (x.split(":") for x in lines)}
    return sizes["MemTotal"], sizes["MemAvailable"]


def available_memory() -> int | None:
    """Bytes that can be had without swapping; ``None`` where the system does not tell."""
    try:
        return memory()[1]
    except (OSError, LookupError, ValueError, subprocess.SubprocessError):
        return None


def _sysctl(*arguments: str) -> str:
    return _output("sysctl", *arguments)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
