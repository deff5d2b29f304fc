"""What this machine is, and which execution providers of ONNX Runtime drive which device."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from edgespec.errors import UserError

# Device → execution providers that drive it, the best first, with the package that brings each.
PROVIDERS = {
    "cpu": {"CPUExecutionProvider": "onnxruntime"},
    "gpu": {
        "CUDAExecutionProvider": "onnxruntime-gpu",
        "DmlExecutionProvider": "onnxruntime-directml",
        "MIGraphXExecutionProvider": "onnxruntime-migraphx",
        "WebGpuExecutionProvider": "onnxruntime-webgpu",
        "OpenVINOExecutionProvider": "onnxruntime-openvino",
    },
    "npu": {
        "QNNExecutionProvider": "onnxruntime-qnn",
        "VitisAIExecutionProvider": "onnxruntime-vitisai",
        "CoreMLExecutionProvider": "onnxruntime",
        "OpenVINOExecutionProvider": "onnxruntime-openvino",
    },
}


def choose_provider(device: str, provider: str | None, available: list[str]) -> str:
    """The execution provider for ``--device`` and ``--provider``.

    ``available`` is what the installed ONNX Runtime has. Raises ``UserError`` where it lacks what
    was asked for.
    """
    if not re.fullmatch(r"auto|cpu|npu|gpu(:\d+)?", device):
        raise UserError(f"there is no device {device!r}; take auto, cpu, gpu, gpu:N or npu")
    if provider is not None:
        names = {name.removesuffix("ExecutionProvider").lower(): name for name in available}
        wanted = provider.removesuffix("ExecutionProvider").lower()
        if wanted in names:
            return names[wanted]
        raise UserError(
            f"the installed onnxruntime has no provider {provider} (it has {', '.join(available)}); "
            "install the onnxruntime package that brings it"
        )
    kind = "cpu" if device == "auto" else device.partition(":")[0]
    found = next((name for name in PROVIDERS[kind] if name in available), None)
    if found is None:
        packages = ", ".join(dict.fromkeys(PROVIDERS[kind].values()))
        raise UserError(
            f"the installed onnxruntime drives no {kind}; install the one for yours "
            f"({packages}), or use --device cpu"
        )
    return found


def cpu_name() -> str:
    """The processor's name as its maker gives it, where the system tells."""
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def physical_cores() -> int:
    """Cores that this process may use; two hyper-threads of one core only get in each other's way."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    folder = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    allowed = os.sched_getaffinity(0)
    try:
        return len({Path(folder.format(cpu)).read_text() for cpu in allowed})
    except OSError:  # not every kernel or container shows its topology
        return len(allowed)


def check_threads(threads: int | None) -> None:
    """Raise ``UserError`` for a number of threads that this machine does not run; ``None`` is open."""
    if threads is not None and not 1 <= threads <= (os.cpu_count() or 1):
        raise UserError(f"cannot use {threads} threads; this machine runs 1 to {os.cpu_count()}")


def power_source(supplies: Path = Path("/sys/class/power_supply")) -> str:
    """``mains``, ``battery``, or ``unknown`` where nothing tells: processors are slower on a battery.

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
            told = subprocess.run(
                ["pmset", "-g", "batt"], capture_output=True, text=True, timeout=5
            )
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        found = re.search("'(AC|Battery|UPS) Power'", told.stdout)
        return "unknown" if not found else "mains" if found[1] == "AC" else "battery"
    return _linux_power_source(supplies)


def _linux_power_source(supplies: Path) -> str:
    """From ``sysfs-class-power``. Batteries of mice and the like have the scope ``Device``."""

    def read(supply: Path, name: str) -> str:
        try:
            return (supply / name).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:  # not every driver has every file, and supplies come and go
            return ""

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
