"""Facts of this machine: processor, cores, memory, power."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from edgespec.device import cgroup
from edgespec.device.cores import available_cores, read_text
from edgespec.errors import UserError

# Instructions that the kernels of quantized models use, as Linux and as macOS name them.
_X86 = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
_ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")
_MACOS = {"FEAT_DotProd": "dotprod", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16", "FEAT_SME": "sme"}
# PF_… of winnt.h.
_WINDOWS = {40: "avx2", 41: "avx512f", 19: "neon", 43: "dotprod"}


@cache
def cpu_features() -> tuple[str, ...]:
    """The vector instructions that matter here; empty if the system does not report them."""
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
    """Bytes of this machine's memory: all of it, and what is available without swapping."""
    import psutil

    found = psutil.virtual_memory()
    return found.total, found.available


def available_memory() -> int | None:
    """Bytes that are available without swapping, within the limits of control groups.

    ``None`` where the system does not report them.
    """
    left = cgroup.memory_left()
    limits = [] if left is None else [int(left.value)]
    with suppress(OSError, LookupError, ValueError, RuntimeError):  # in odd containers
        limits.append(memory()[1])
    return min(limits, default=None)


def _sysctl(*arguments: str) -> str:
    return _output("sysctl", *arguments)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def cpu_name() -> str:
    """The processor's name as the system reports it."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def physical_cores() -> int:
    """The threads that passes run on by default: performance cores within affinity and CPU quota."""
    return _within_quota(available_cores().performance)


def usable_cpus() -> int:
    """The most threads that run at once: logical cores within affinity and CPU quota."""
    return _within_quota(available_cores().logical)


def _within_quota(cores: int) -> int:
    """Threads beyond the quota would wait, and all others for them; so part of a CPU does not count."""
    quota = cgroup.cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota.value)))


def check_threads(threads: int | None) -> None:
    """Raise ``UserError`` for a number of threads that this machine does not run; ``None`` is open."""
    if threads is not None and not 1 <= threads <= (os.cpu_count() or 1):
        raise UserError(f"cannot use {threads} threads; this machine runs 1 to {os.cpu_count()}")


def power_source(supplies: Path = Path("/sys/class/power_supply")) -> str:
    """``mains``, ``battery``, or ``unknown``: processors are slower on a battery.

    ``supplies`` is Linux's folder of them.
    """
    if sys.platform == "win32":
        import ctypes

        status = (ctypes.c_ubyte * 12)()  # SYSTEM_POWER_STATUS; ACLineStatus comes first
        if not ctypes.windll.kernel32.GetSystemPowerStatus(status):
            return "unknown"
        return {0: "battery", 1: "mains"}.get(status[0], "unknown")
    if sys.platform == "darwin":
        try:
            output = subprocess.run(
                ["pmset", "-g", "batt"], capture_output=True, text=True, timeout=5
            )
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        found = re.search("'(AC|Battery|UPS) Power'", output.stdout)
        return "unknown" if not found else "mains" if found[1] == "AC" else "battery"
    return _linux_power_source(supplies)


def _linux_power_source(supplies: Path) -> str:
    """From ``sysfs-class-power``. Batteries of mice and the like have the scope ``Device``."""

    def read(supply: Path, name: str) -> str:
        return read_text(supply / name)  # not every driver has every file, and supplies come and go

    try:
        own = [s for s in supplies.iterdir() if read(s, "scope") != "Device"]
    except OSError:
        return "unknown"
    if any(read(s, "online") == "1" for s in own if read(s, "type") in ("Mains", "USB")):
        return "mains"
    states = {read(s, "status") for s in own if read(s, "type") == "Battery"}
    if "Discharging" in states:
        return "battery"
    return "mains" if states & {"Charging", "Full", "Not charging"} else "unknown"


def peak_memory_bytes() -> int:
    """The largest resident memory that this process has had, in bytes."""
    if sys.platform == "win32":
        return _peak_working_set()
    if sys.platform == "linux":  # ru_maxrss there survives exec, so it may be a parent's
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if sys.platform == "win32":

    def _peak_working_set() -> int:
        import ctypes
        from ctypes import wintypes

        class Counters(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS
            _fields_ = [
                ("cb", wintypes.DWORD),
                ("PageFaultCount", wintypes.DWORD),
                ("PeakWorkingSetSize", ctypes.c_size_t),
                ("others", ctypes.c_size_t * 7),
            ]

        counters = Counters(cb=ctypes.sizeof(Counters))
        kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel32.GetCurrentProcess.restype = wintypes.HANDLE
        query = kernel32.K32GetProcessMemoryInfo
        query.argtypes = [wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD]
        if not query(kernel32.GetCurrentProcess(), ctypes.byref(counters), counters.cb):
            raise ctypes.WinError(ctypes.get_last_error())
        return int(counters.PeakWorkingSetSize)
