"""Which cores count, on processors of all kinds, by the files and structures that describe them."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgespec.device.cores import Cores, available_cores, linux_cores, macos_cores, windows_cores


def cpus(siblings: dict[int, str], online: str, **files: str) -> dict[str, str]:
    """Files of ``sysfs``: the hyper-threads of each CPU's core, and others."""
    folder = "system/cpu"
    found = {f"{folder}/cpu{n}/topology/thread_siblings_list": text for n, text in siblings.items()}
    return {f"{folder}/online": online, **found, **files}


def capacities(*values: int) -> dict[str, str]:
    return {f"system/cpu/cpu{n}/cpu_capacity": f"{value}" for n, value in enumerate(values)}


PAIRS = {n: f"{n % 4},{n % 4 + 4}" for n in range(8)}
"""Four cores of two hyper-threads, numbered as Linux does on Intel's and AMD's servers."""
ALDER_LAKE = {
    **{n: f"{n // 2 * 2}-{n // 2 * 2 + 1}" for n in range(12)},
    **{n: f"{n}" for n in range(12, 20)},
}
HYBRID = {"cpu_core/cpus": "0-11\n", "cpu_atom/cpus": "12-19\n"}
PHONE = {n: f"{n}" for n in range(8)}


@pytest.mark.parametrize(
    ("files", "allowed", "cores"),
    [
        pytest.param(cpus(PAIRS, "0-7"), range(8), Cores(8, 4, 4), id="hyper-threads"),
        pytest.param(cpus(PAIRS, "0-7"), [1, 2, 6], Cores(3, 2, 2), id="affinity"),
        pytest.param(cpus(PAIRS, "0-7"), [5], Cores(1, 1, 1), id="affinity to one hyper-thread"),
        pytest.param(
            cpus({n: f"{n}" for n in range(4)}, "0-3"), range(8), Cores(4, 4, 4), id="SMT off"
        ),
        pytest.param(
            cpus({0: "0,4", 1: "1", 3: "3,7", 4: "0,4", 7: "3,7"}, "0-1,3-4,7"), range(8),
            Cores(5, 3, 3), id="offline CPUs",
        ),
        pytest.param(cpus({0: "0"}, "0"), [0], Cores(1, 1, 1), id="single core"),
        pytest.param({}, range(4), Cores(4, 4, 4), id="nothing can be read"),
        pytest.param({"system/cpu/online": "0-3"}, [0, 2], Cores(2, 2, 2), id="no topology"),
        pytest.param(cpus(ALDER_LAKE, "0-19", **HYBRID), range(20), Cores(20, 14, 6), id="Intel hybrid"),
        pytest.param(
            cpus(ALDER_LAKE, "0-19", **HYBRID), [10, 11, 12, 13], Cores(4, 3, 1),
            id="Intel hybrid, a part of both kinds",
        ),
        pytest.param(
            cpus(ALDER_LAKE, "0-19", **HYBRID), range(12, 20), Cores(8, 8, 8),
            id="Intel hybrid, only efficiency cores",
        ),
        pytest.param(
            cpus(PHONE, "0-7", **capacities(250, 250, 250, 250, 870, 870, 870, 1024)), range(8),
            Cores(8, 8, 4), id="ARM, three kinds",
        ),
        pytest.param(
            cpus(PHONE, "0-7", **capacities(250, 250, 250, 250, 870, 870, 870, 1024)), range(4),
            Cores(4, 4, 4), id="ARM, only efficiency cores",
        ),
        pytest.param(
            cpus({n: f"{n}" for n in range(4)}, "0-3", **capacities(1024, 1024, 1024, 1024)), range(4),
            Cores(4, 4, 4), id="ARM, one kind",
        ),
    ],
)  # fmt: skip
def test_linux(files: dict[str, str], allowed: Iterable[int], cores: Cores, tmp_path: Path) -> None:
    for name, text in files.items():
        file = tmp_path / "sys/devices" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "ascii")
    assert linux_cores(allowed, tmp_path) == cores


def core(bits: int, efficiency: int = 0, group: int = 0) -> bytes:
    """A ``SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX`` of a core, see winnt.h."""
    flags = 1 if bits.bit_count() > 1 else 0  # LTP_PC_SMT
    return struct.pack("<IIBB20xHQH6x", 0, 48, flags, efficiency, 1, bits, group)


PAIRED = [core(0b11 << 2 * n, 1) for n in range(6)]
SINGLE = [core(1 << n) for n in range(12, 20)]


@pytest.mark.parametrize(
    ("found", "affinity", "cores"),
    [
        pytest.param([core(0b11), core(0b1100)], 0b1111, Cores(4, 2, 2), id="hyper-threads"),
        pytest.param([core(0b11), core(0b1100)], 0b0100, Cores(1, 1, 1), id="affinity"),
        pytest.param([core(1)], 1, Cores(1, 1, 1), id="single core"),
        pytest.param(PAIRED + SINGLE, 0xFFFFF, Cores(20, 14, 6), id="hybrid"),
        pytest.param(PAIRED + SINGLE, 0xFF000, Cores(8, 8, 8), id="only efficiency cores"),
        pytest.param([core((1 << 64) - 1), core((1 << 64) - 1, 0, 1)], 1, Cores(128, 2, 2), id="groups"),
        pytest.param([core(0b11), core(0b1100)], 0, Cores(4, 2, 2), id="affinity unknown"),
    ],
)  # fmt: skip
def test_windows(found: list[bytes], affinity: int, cores: Cores) -> None:
    assert windows_cores(b"".join(found), affinity) == cores


@pytest.mark.parametrize(
    ("sysctl", "cores"),
    [
        (
            {"hw.physicalcpu": 10, "hw.logicalcpu": 10, "hw.perflevel0.physicalcpu": 8},
            Cores(10, 10, 8),
        ),
        ({"hw.physicalcpu": 4, "hw.logicalcpu": 8}, Cores(8, 4, 4)),
    ],
)
def test_macos(sysctl: dict[str, int], cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: object) -> SimpleNamespace:
        program, flag, name = command
        assert (program, flag) == ("sysctl", "-n")
        return SimpleNamespace(stdout=f"{sysctl[name]}\n" if name in sysctl else "")

    monkeypatch.setattr(subprocess, "run", run)
    assert macos_cores.__wrapped__() == cores


def test_this_machine() -> None:
    cores = available_cores()
    assert 1 <= cores.performance <= cores.physical <= cores.logical <= (os.cpu_count() or 1)
