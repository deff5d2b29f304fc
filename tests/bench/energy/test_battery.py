from __future__ import annotations

import plistlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgespec.bench.energy import MeterLost, NoMeter, battery
from tests.bench.energy import trees
from tests.bench.energy.trees import Clock, write


@pytest.fixture(autouse=True)
def _no_phone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDROID_ROOT", raising=False)


def opened(root: Path, clock: Clock) -> Any:
    return battery.open_meter(root, "linux", clock=clock, watch=False)


def bat0(root: Path, **files: object) -> None:
    write(root, "power_supply/BAT0", **files)


def test_power_is_integrated_by_trapezoids(tmp_path: Path) -> None:
    """A ramp from 9 to 19 W in 10 s is 140 J."""
    clock = Clock()
    meter = opened(trees.thinkpad(tmp_path), clock)
    assert meter.name == "battery BAT0, power read every 0.5 s"
    assert meter.what == "the whole machine from its battery"
    for step in range(1, 21):
        clock.turn(0.5)
        bat0(tmp_path, power_now=9_000_000 + 500_000 * step)
        meter.poll()
    assert meter.joules() == pytest.approx(140, rel=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_current_times_voltage_whatever_its_sign(tmp_path: Path, sign: int) -> None:
    clock = Clock()
    bat0(trees.dell(tmp_path), current_now=sign * 1_500_000)
    meter = opened(tmp_path, clock)
    clock.turn(10)
    assert meter.joules() == pytest.approx(1.5 * 12 * 10)


def test_energy_left_where_no_sensor_tells_power(tmp_path: Path) -> None:
    """As some firmware has it: power_now is always 0. The gauge has steps of 10 mWh and corrects itself once."""
    clock = Clock()
    bat0(trees.thinkpad(tmp_path), power_now=0)
    meter = opened(tmp_path, clock)
    assert meter.name == "battery BAT0, energy left read every 0.5 s"
    readings = []
    for left in (40_000, 39_990, 39_990, 39_980, 39_990, 39_980, 39_970):
        clock.turn(3)
        bat0(tmp_path, energy_now=left * 1000)
        readings.append(meter.joules())
    assert readings == pytest.approx([0, 36, 36, 72, 72, 72, 108])
    assert meter.step == pytest.approx(36)
    # Seen to fall after 6, 6 and 9 s; an answer of 60 s and 600 J may be off by 9 s of that and a step.
    assert meter.error(60, 600) == pytest.approx(9 / 60 + 36 / 600)


def test_charge_left_at_the_voltage_it_left_with(tmp_path: Path) -> None:
    clock = Clock()
    bat0(trees.dell(tmp_path), current_now=None)
    meter = opened(tmp_path, clock)
    assert meter.name == "battery BAT0, charge left read every 0.5 s"
    clock.turn(60)
    bat0(tmp_path, charge_now=3_990_000, voltage_now=11_800_000)
    assert meter.joules() == pytest.approx(0.010 * 3600 * 11.9)
    clock.turn(60)
    bat0(tmp_path, voltage_now=11_000_000)  # sags, and no charge goes
    assert meter.joules() == pytest.approx(0.010 * 3600 * 11.9)


def test_two_batteries_of_which_one_works(tmp_path: Path) -> None:
    clock = Clock()
    idle = {"type": "Battery", "status": "Not charging", "power_now": 7, "energy_now": 20_000_000}
    write(trees.thinkpad(tmp_path), "power_supply/BAT1", **idle)
    meter = opened(tmp_path, clock)
    assert meter.name.startswith("battery BAT0, BAT1, power")
    clock.turn(10)
    assert meter.joules() == pytest.approx(90, rel=1e-9)
    write(tmp_path, "power_supply/BAT1", status="Discharging", power_now=9_000_000)
    bat0(tmp_path, status="Not charging", power_now=0)
    clock.turn(10)
    assert meter.joules() == pytest.approx(180)
    bat0(tmp_path, status="Discharging", power_now=None, voltage_now=None)
    with pytest.raises(MeterLost, match="sensor is gone"):
        meter.joules()


def test_the_plug_goes_in(tmp_path: Path) -> None:
    clock = Clock()
    meter = opened(trees.thinkpad(tmp_path), clock)
    clock.turn(1)
    write(tmp_path, "power_supply/AC", online=1)
    with pytest.raises(MeterLost, match="no longer on battery: AC is online"):
        meter.joules()
    write(tmp_path, "power_supply/AC", online=0)
    with pytest.raises(MeterLost):  # what went by meanwhile is not known
        meter.joules()


LOSING: list[Callable[[Path], object]] = [
    lambda root: bat0(root, status="Charging"),
    lambda root: bat0(root, power_now="?"),
    lambda root: bat0(root, power_now=None, voltage_now=None),
    lambda root: bat0(root, power_now=0),
    lambda root: bat0(root, power_now=10**12),
    lambda root: (root / "class" / "power_supply" / "BAT0").rename(root / "gone"),
]


@pytest.mark.parametrize("lose", LOSING)
def test_what_loses_it(tmp_path: Path, lose: Callable[[Path], object]) -> None:
    meter = opened(trees.thinkpad(tmp_path), Clock())
    lose(tmp_path)
    with pytest.raises(MeterLost):
        meter.joules()


@pytest.mark.parametrize("energy", [0, -40_000_000, "?"])
def test_a_gauge_that_jumps(tmp_path: Path, energy: object) -> None:
    clock = Clock()
    bat0(trees.thinkpad(tmp_path), power_now=0)
    meter = opened(tmp_path, clock)
    clock.turn(10)
    bat0(tmp_path, energy_now=energy)
    with pytest.raises(MeterLost):
        meter.joules()


def test_a_gauge_that_no_longer_falls(tmp_path: Path) -> None:
    bat0(trees.thinkpad(tmp_path), power_now=0)
    meter = opened(tmp_path, Clock())
    bat0(tmp_path, status="Not charging")
    with pytest.raises(MeterLost, match="no longer discharging"):
        meter.joules()


def test_another_battery_in_the_middle_of_a_gauge(tmp_path: Path) -> None:
    bat0(trees.thinkpad(tmp_path), power_now=0)
    meter = opened(tmp_path, Clock())
    extra = {"type": "Battery", "status": "Discharging", "power_now": 0, "energy_now": 20_000_000}
    write(tmp_path, "power_supply/BAT1", **extra)
    with pytest.raises(MeterLost, match="other batteries"):
        meter.joules()


def test_a_pause_is_no_measurement(tmp_path: Path) -> None:
    clock = Clock()
    meter = opened(trees.thinkpad(tmp_path), clock)
    clock.turn(60)
    with pytest.raises(MeterLost, match="not read for 60 s"):
        meter.joules()


def test_why_not(tmp_path: Path) -> None:
    def reason(root: Path) -> str:
        with pytest.raises(NoMeter) as why:
            opened(root, Clock())
        return str(why.value)

    assert "there is no" in reason(tmp_path)
    (tmp_path / "class" / "power_supply").mkdir(parents=True)
    assert reason(tmp_path) == "there is no battery"
    trees.thinkpad(tmp_path)
    write(tmp_path, "power_supply/AC", online=1)
    assert reason(tmp_path) == "on mains (AC is online): unplug it"
    write(tmp_path, "power_supply/AC", online=0)
    bat0(tmp_path, status="Full")
    assert reason(tmp_path) == "BAT0 is not discharging"
    bat0(tmp_path, status="Discharging", power_now="much")
    assert "no number" in reason(tmp_path)
    bat0(tmp_path, power_now=None, energy_now=None)
    assert reason(tmp_path) == "BAT0 does not report what is left in it"


def test_the_error_of_a_sensor_is_how_seldom_it_changes(tmp_path: Path) -> None:
    clock = Clock()
    meter = opened(trees.thinkpad(tmp_path), clock)
    for second in range(12):  # every 4 s another figure
        bat0(tmp_path, power_now=9_000_000 + second // 4)
        meter.poll()
        clock.turn(1)
    assert meter.error(100, 900) == pytest.approx((4 + 1 / 2) / 100)


# macOS: `ioreg -r -c AppleSmartBattery -a` of a MacBook, shortened

IOREG = b"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0"><array><dict>
  <key>BatteryInstalled</key><true/>
  <key>ExternalConnected</key><false/>
  <key>IsCharging</key><false/>
  <key>Voltage</key><integer>11917</integer>
  <key>Amperage</key><integer>18446744073709550084</integer>
  <key>InstantAmperage</key><integer>18446744073709550178</integer>
  <key>LegacyBatteryInfo</key><dict><key>Amperage</key><integer>18446744073709550084</integer></dict>
</dict></array></plist>
"""


def test_macos() -> None:
    (only,) = battery.read_mac(IOREG)
    assert only.watts == pytest.approx(1.438 * 11.917)
    assert battery.read_mac(b"") == []  # a Mac mini
    with pytest.raises(battery.OnMains, match="charger"):
        battery.read_mac(IOREG.replace(b"<false/>", b"<true/>"))


@pytest.mark.parametrize(
    "text",
    [b"<plist", b"\x00\x01", b"bplist00\x00", IOREG.replace(b"Voltage", b"Volts"), plistlib.dumps({"a": 1}), plistlib.dumps([1])],
)  # fmt: skip
def test_other_output_of_macos(text: bytes) -> None:
    with pytest.raises(ValueError, match="ioreg"):
        battery.read_mac(text)


def windows(mains: int = 0, present: int = 1, rate: int = -8250, capacity: int = 50_000) -> bytes:
    discharging = int(rate < 0)
    flags = bytes([mains, present, 0, discharging, 0, 0, 0, 0])
    return flags + struct.pack("<IIiIII", capacity, 40_000, rate, 17_000, 2500, 4750)


def test_windows() -> None:
    (only,) = battery.read_windows(windows())
    assert (only.discharging, only.watts, only.joules) == (True, 8.25, 144_000)
    (unknown,) = battery.read_windows(windows(rate=-(2**31)))
    assert (unknown.watts, unknown.joules) == (None, 144_000)
    assert battery.read_windows(windows(present=0)) == []
    with pytest.raises(battery.OnMains):
        battery.read_windows(windows(mains=1))
    with pytest.raises(ValueError, match="units of its own"):
        battery.read_windows(windows(capacity=100))
    with pytest.raises(ValueError, match="documents"):
        battery.read_windows(windows()[:-1])


def test_other_systems() -> None:
    with pytest.raises(NoMeter, match="sunos5"):
        battery.open_meter(system="sunos5")
