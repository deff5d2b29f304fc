from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgespec.bench.energy import MeterLost, NoMeter, android, battery, open_meter
from tests.bench.energy import trees
from tests.bench.energy.trees import Clock, write

TERMUX = {
    "present": True,
    "technology": "Li-ion",
    "health": "GOOD",
    "plugged": "UNPLUGGED",
    "status": "DISCHARGING",
    "temperature": 27.2,
    "voltage": 3955,
    "current": -345_678,
    "level": 72,
    "scale": 100,
    "charge_counter": 2_466_000,
}

DUMPSYS = """Current Battery Service state:
  AC powered: false
  USB powered: false
  Wireless powered: false
  Dock powered: false
  Max charging current: 0
  Max charging voltage: 0
  Charge counter: 2466000
  status: 3
  health: 2
  present: true
  level: 72
  scale: 100
  voltage: 4000
  temperature: 272
  technology: Li-ion
"""


def opened(root: Path, clock: Clock, **outputs: str) -> Any:
    """With the commands that there are."""

    def run(command: Sequence[str]) -> str:
        if command[0] not in outputs:
            raise FileNotFoundError(2, "No such file or directory", command[0])
        return outputs[command[0]]

    return android.open_meter(root, run=run, android=True, clock=clock, watch=False)


def test_files(tmp_path: Path) -> None:
    clock = Clock()
    meter = opened(trees.phone(tmp_path), clock)
    assert meter.name == "Android battery battery, power read every 0.5 s (/sys)"
    assert meter.what == "the whole device from its battery"
    clock.turn(10)
    assert meter.joules() == pytest.approx(20)


@pytest.mark.parametrize(
    ("current", "voltage"), [(-500_000, 4_000_000), (500_000, 4000), (500, 4_000_000), (-500, 4000)]
)
def test_units_and_signs(tmp_path: Path, current: int, voltage: int) -> None:
    clock = Clock()
    trees.phone(tmp_path)
    write(tmp_path, "power_supply/battery", current_now=current, voltage_now=voltage)
    meter = opened(tmp_path, clock)
    clock.turn(10)
    assert meter.joules() == pytest.approx(20)


def test_the_unit_stays_what_it_was(tmp_path: Path) -> None:
    clock = Clock()
    meter = opened(trees.phone(tmp_path), clock)
    write(tmp_path, "power_supply/battery", current_now=-3000)  # µA still: 3 mA
    clock.turn(10)
    assert meter.joules() == pytest.approx((2.0 + 0.012) / 2 * 10)
    write(tmp_path, "power_supply/battery", current_now=-11_000_000)
    with pytest.raises(MeterLost, match="11 A"):
        meter.joules()


@pytest.mark.parametrize("files", [{"current_now": -8000}, {"current_now": 0}, {"voltage_now": 4}])
def test_what_may_be_either_is_refused(tmp_path: Path, files: dict[str, object]) -> None:
    write(trees.phone(tmp_path), "power_supply/battery", **files)
    with pytest.raises(NoMeter, match="neither"):
        opened(tmp_path, Clock())


def test_on_a_charger(tmp_path: Path) -> None:
    write(trees.phone(tmp_path), "power_supply/usb", online=1)
    write(tmp_path, "power_supply/battery", status="Charging", current_now=7)
    with pytest.raises(NoMeter, match=r"on mains \(usb is online\)"):
        opened(tmp_path, Clock())


def test_termux(tmp_path: Path) -> None:
    clock = Clock()
    meter = opened(tmp_path, clock, **{"termux-battery-status": json.dumps(TERMUX)})
    assert meter.name.endswith("power read every 5 s (termux-battery-status)")
    clock.turn(10)
    assert meter.joules() == pytest.approx(0.345678 * 3.955 * 10)


def test_termux_changes_the_unit_of_devices_that_say_ma() -> None:
    """Below 1 A it makes µA of it."""
    for current, amps in ((-800_000, 0.8), (-1200, 1.2)):
        (only,) = android.read_termux(json.dumps(TERMUX | {"current": current}))
        assert only.watts == pytest.approx(amps * 3.955)
    with pytest.raises(battery.OnMains, match="PLUGGED_USB"):
        android.read_termux(json.dumps(TERMUX | {"plugged": "PLUGGED_USB"}))


@pytest.mark.parametrize("missing", ["current", "voltage", "status", "plugged"])
def test_termux_says_too_little(missing: str) -> None:
    text = json.dumps({key: value for key, value in TERMUX.items() if key != missing})
    with pytest.raises(ValueError, match=missing):
        android.read_termux(text)


def test_dumpsys_gives_the_charge_left(tmp_path: Path) -> None:
    clock = Clock()
    outputs = {"dumpsys": DUMPSYS}
    meter = android.open_meter(
        tmp_path,
        run=lambda command: outputs[command[0]] if command[0] in outputs else _fail(),
        android=True,
        clock=clock,
        watch=False,
    )
    assert "charge left read every 5 s (dumpsys)" in meter.name
    clock.turn(60)
    outputs["dumpsys"] = DUMPSYS.replace("2466000", "2465000").replace("4000", "3900")
    assert meter.joules() == pytest.approx(0.001 * 3600 * 3.95)
    outputs["dumpsys"] = DUMPSYS.replace("USB powered: false", "USB powered: true")
    with pytest.raises(MeterLost, match="USB powered"):
        meter.joules()


def _fail() -> str:
    raise subprocess.CalledProcessError(255, "termux-battery-status")


def test_samsung_tells_a_current() -> None:
    text = DUMPSYS + "  LED Charging: true\n  current now: -321\n  charge counter: 0\n"
    (only,) = android.read_dumpsys(text, android.Amps())
    assert only.watts == pytest.approx(0.321 * 4)


@pytest.mark.parametrize(
    "text",
    ["", "Permission Denial: can't dump BatteryService", DUMPSYS.replace("4000", "13"), DUMPSYS.replace("2466000", "1000"), DUMPSYS.replace("state:", "state:\n  (UPDATES STOPPED -- use 'reset' to restart)"), "voltage: " * 100_000],
)  # fmt: skip
def test_other_output_of_dumpsys(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        android.read_dumpsys(text, android.Amps())


def test_all_reasons_in_one(tmp_path: Path) -> None:
    with pytest.raises(NoMeter) as why:
        opened(tmp_path, Clock(), dumpsys="Permission Denial")
    assert all(name in str(why.value) for name in ("/sys", "termux-battery-status", "dumpsys"))
    with pytest.raises(NoMeter, match="no Android"):
        android.open_meter(tmp_path, android=False)


def test_a_phone_is_not_read_as_a_laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its units may differ, so that its own reader must refuse or read it."""
    write(trees.phone(tmp_path), "power_supply/battery", current_now=-8000)
    monkeypatch.setenv("ANDROID_ROOT", "/system")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoMeter, match="reader of their own"):
        battery.open_meter(tmp_path, "linux")
    with pytest.raises(NoMeter, match="neither"):
        open_meter(root=tmp_path)
