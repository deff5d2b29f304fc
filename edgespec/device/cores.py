"""Processor cores that this process may use: hyper-threads, performance and efficiency cores.

Passes run best on one thread for each physical performance core, as in llama.cpp: two hyper-threads
compete for one core, and in each operator all threads wait for the slowest core.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_SLOW = 0.5
"""Cores of less than this part of the fastest one's capacity are efficiency cores."""


@dataclass(frozen=True)
class Cores:
    """Counts of cores. ``performance`` cores are part of the ``physical`` ones, all of them if they are alike."""

    logical: int
    physical: int
    performance: int


def available_cores() -> Cores:
    """The cores that this process may run on, by its affinity."""
    if sys.platform == "darwin":
        return macos_cores()
    if sys.platform == "win32":
        return _windows_cores()
    if hasattr(os, "sched_getaffinity"):
        return linux_cores(os.sched_getaffinity(0))
    return _alike()


def linux_cores(allowed: Iterable[int], root: Path = Path("/")) -> Cores:
    """The cores of the CPUs ``allowed``. ``root`` is the root folder of the file system."""
    devices = root / "sys/devices"
    cpus = devices / "system/cpu"
    usable = sorted(set(allowed) & _listed(cpus / "online") or set(allowed))
    siblings = {cpu: read_text(cpus / f"cpu{cpu}/topology/thread_siblings_list") for cpu in usable}
    first = {siblings[cpu] or str(cpu): cpu for cpu in reversed(usable)}.values()
    fast = _listed(devices / "cpu_core/cpus")  # hybrid processors of Intel
    if not fast:  # ARM
        capacity = {cpu: float(read_text(cpus / f"cpu{cpu}/cpu_capacity") or 0) for cpu in usable}
        fast = {cpu for cpu in usable if capacity[cpu] >= _SLOW * max(capacity.values())}
    performance = sum(cpu in fast for cpu in first)
    return Cores(len(usable), len(first), performance or len(first))


def windows_cores(information: bytes, affinity: int = 0) -> Cores:
    """The cores of ``information``, which has the structures ``SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX`` of
    all cores. ``affinity``: the bits of the CPUs that may be used; 0: all. It is ignored on machines of more
    than 64 CPUs, where it is only about some of them.
    """
    found: list[tuple[int, int, int]] = []  # group of CPUs, their bits, efficiency class
    at = 0
    while at < len(information):
        _, size = struct.unpack_from("<II", information, at)
        [efficiency] = struct.unpack_from("<9xB", information, at)
        bits, group = struct.unpack_from("<QH", information, at + 32)
        found.append((group, bits, efficiency))
        at += size
    if affinity and not any(group for group, _, _ in found):
        found = [(group, bits & affinity, kind) for group, bits, kind in found if bits & affinity]
    fastest = max(kind for _, _, kind in found)  # higher classes are faster
    return Cores(
        sum(bits.bit_count() for _, bits, _ in found),
        len(found),
        sum(kind == fastest for _, _, kind in found),
    )


def _alike() -> Cores:
    count = os.cpu_count() or 1
    return Cores(count, count, count)


@cache
def macos_cores() -> Cores:
    """The cores by ``sysctl``. Macs with Intel processors have no performance levels."""

    def read(name: str) -> int | None:
        try:
            found = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True)
            return int(found.stdout) or None
        except (OSError, ValueError):
            return None

    physical = read("hw.physicalcpu") or os.cpu_count() or 1
    performance = read("hw.perflevel0.physicalcpu") or physical
    return Cores(read("hw.logicalcpu") or physical, physical, performance)


if sys.platform == "win32":

    def _windows_cores() -> Cores:
        kernel32 = ctypes.WinDLL("kernel32")
        size, cores = ctypes.c_uint32(0), 0  # RelationProcessorCore
        kernel32.GetLogicalProcessorInformationEx(cores, None, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        if not kernel32.GetLogicalProcessorInformationEx(cores, buffer, ctypes.byref(size)):
            return _alike()
        affinity, system = ctypes.c_size_t(0), ctypes.c_size_t(0)
        this_process = ctypes.c_void_p(-1)  # GetCurrentProcess()
        kernel32.GetProcessAffinityMask(this_process, ctypes.byref(affinity), ctypes.byref(system))
        return windows_cores(buffer.raw[: size.value], affinity.value)


def _listed(file: Path) -> set[int]:
    """The CPUs of a list such as ``0-3,8``; empty if the file cannot be read."""
    found: set[int] = set()
    for part in filter(None, read_text(file).split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def read_text(file: Path) -> str:
    """A small file of the system's, without its line end; empty if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
