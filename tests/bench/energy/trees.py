"""Trees of /sys as real machines have them, and a clock that tests turn."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Clock:
    """Stands until it is turned."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds


def write(root: Path, folder: str, **files: object) -> Path:
    """Files in a folder under ``class``; ``None`` takes one away."""
    if ":" in folder and os.name == "nt":
        pytest.skip("no such names on Windows")
    path = root / "class" / folder
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if content is None:
            (path / name).unlink()
        else:
            (path / name).write_text(f"{content}\n")
    return path


def zone(
    root: Path, key: str, name: str, energy_uj: int = 0, range_uj: int = 262_143_328_850
) -> Path:
    return write(
        root,
        f"powercap/{key}",
        name=name,
        energy_uj=energy_uj,
        max_energy_range_uj=range_uj,
        enabled=1,
    )


def intel_laptop(root: Path) -> Path:
    """Tiger Lake: psys is a zone of its own that holds the package; the same package again by MMIO."""
    write(root, "powercap/intel-rapl", enabled=1)
    zone(root, "intel-rapl:0", "package-0", 5_000_000)
    zone(root, "intel-rapl:0:0", "core", 1_000_000)
    zone(root, "intel-rapl:0:1", "uncore", 200_000)
    zone(root, "intel-rapl:0:2", "dram", 300_000)
    zone(root, "intel-rapl:1", "psys", 9_000_000)
    write(root, "powercap/intel-rapl-mmio", enabled=1)
    zone(root, "intel-rapl-mmio:0", "package-0", 5_000_000)
    zone(root, "dtpm:0", "dtpm-cpu0", 77)
    return root


def amd_desktop(root: Path) -> Path:
    zone(root, "intel-rapl:0", "package-0", 1_000_000, 65_532_610_987)
    zone(root, "intel-rapl:0:0", "core", 400_000, 65_532_610_987)
    return root


def server(root: Path) -> Path:
    """Two sockets with memory counters."""
    for n in (0, 1):
        zone(root, f"intel-rapl:{n}", f"package-{n}", 0)
        zone(root, f"intel-rapl:{n}:0", "dram", 0, 65_712_999_613)
    return root


def add(root: Path, **microjoules: int) -> None:
    """Let counters run on, and wrap: ``add(root, **{"intel-rapl:0": 5})``."""
    for key, amount in microjoules.items():
        path = root / "class" / "powercap" / key
        span = int((path / "max_energy_range_uj").read_text())
        energy = int((path / "energy_uj").read_text())
        (path / "energy_uj").write_text(f"{(energy + amount) % span}\n")


def thinkpad(root: Path) -> Path:
    """Counts energy."""
    write(root, "power_supply/AC", type="Mains", online=0)
    write(
        root,
        "power_supply/BAT0",
        type="Battery",
        present=1,
        status="Discharging",
        voltage_now=11_940_000,
        power_now=9_000_000,
        energy_now=40_000_000,
        energy_full=50_000_000,
    )
    write(
        root,
        "power_supply/hidpp_battery_0",
        type="Battery",
        scope="Device",
        status="Discharging",
        voltage_now=3_900_000,
    )
    write(root, "power_supply/ucsi-source-psy-USBC000:001", type="USB", online=0)
    return root


def dell(root: Path) -> Path:
    """Counts charge."""
    write(root, "power_supply/AC", type="Mains", online=0)
    write(
        root,
        "power_supply/BAT0",
        type="Battery",
        present=1,
        status="Discharging",
        voltage_now=12_000_000,
        current_now=1_500_000,
        charge_now=4_000_000,
    )
    return root


def phone(root: Path) -> Path:
    """A Pixel: µA, negative while discharging."""
    write(root, "power_supply/usb", type="USB", online=0)
    write(root, "power_supply/wireless", type="Wireless", online=0)
    write(root, "power_supply/bms", type="BMS")
    write(root, "power_supply/main", type="Battery", status="Discharging", current_now=-1)
    write(
        root,
        "power_supply/battery",
        type="Battery",
        present=1,
        status="Discharging",
        current_now=-500_000,
        voltage_now=4_000_000,
        charge_counter=2_466_000,
    )
    return root
