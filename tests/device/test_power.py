"""Where the machine's power comes from, by Linux's ``/sys/class/power_supply``."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgespec.device.machine import _linux_power_source, power_source

AC = {"type": "Mains", "online": "1"}
NO_AC = {"type": "Mains", "online": "0"}
USB = {"type": "USB", "online": "0", "scope": "System"}
MOUSE = {"type": "Battery", "status": "Discharging", "scope": "Device"}


def battery(status: str) -> dict[str, str]:
    return {"type": "Battery", "status": status, "scope": "System", "capacity": "57"}


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({}, "unknown"),
        ({"AC": AC, "BAT0": battery("Charging")}, "mains"),
        ({"AC": AC, "BAT0": battery("Discharging")}, "mains"),  # a charger too weak for both
        ({"AC": NO_AC, "BAT0": battery("Discharging")}, "battery"),
        ({"USB": USB, "BAT0": battery("Discharging"), "BAT1": battery("Full")}, "battery"),
        ({"USB": {**USB, "online": "1"}, "BAT0": battery("Discharging")}, "mains"),
        ({"battery": battery("Not charging")}, "mains"),
        ({"battery": battery("Unknown")}, "unknown"),
        ({"mouse": MOUSE}, "unknown"),
        ({"AC": AC, "mouse": MOUSE}, "mains"),
        ({"gone": {}}, "unknown"),  # unplugged while it was read
    ],
)
def test_linux(tmp_path: Path, supplies: dict[str, dict[str, str]], expected: str) -> None:
    for name, files in supplies.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text + "\n")
    assert _linux_power_source(tmp_path) == expected


def test_a_system_without_the_folder_does_not_tell(tmp_path: Path) -> None:
    assert _linux_power_source(tmp_path / "absent") == "unknown"


def test_this_machine_has_some_power() -> None:
    assert power_source() in ("mains", "battery", "unknown")
