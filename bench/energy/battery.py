"""A laptop that runs from its battery: the whole machine, screen and radio included.

Read: Linux's /sys/class/power_supply, macOS's ``ioreg``, Windows' ``CallNtPowerInformation``. Not taken: psutil's
``sensors_battery`` gives whole percents, which measure nothing so short as an answer.

On mains the battery does not show what the machine draws: there is no meter then, and it is lost when the plug goes in.
A power sensor is integrated where there is one; else what is left in the battery is watched as it falls, in the
gauge's steps (often 10 mWh: 36 J).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import plistlib
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from xml.parsers.expat import ExpatError

from .meter import Clock, Meter, MeterLost, NoMeter, Polled, Power, read_number, read_text

T = TypeVar("T")

MAX_WATTS = 500.0
"""No machine draws more from its battery: a larger figure is wrong."""
WHAT = "the whole machine from its battery"


@dataclass(frozen=True)
class Battery:
    """One battery at one moment, in V, A, W. What it does not report is ``None``."""

    name: str
    discharging: bool
    watts: float | None = None
    """Drawn from it."""
    joules: float | None = None
    """Left in it."""
    coulombs: float | None = None
    """Likewise, where only charge is counted; times ``volts`` it is energy."""
    volts: float | None = None


class OnMains(Exception):
    """The machine does not run from its battery; the text says how that is known."""


Read = Callable[[], list[Battery]]
"""Raises ``OnMains``, ``OSError`` or ``ValueError``."""


class Gauge(Polled):
    """What is left in the batteries, as it falls."""

    def __init__(self, what: str, read: Read, interval: float, clock: Clock) -> None:
        batteries = read()
        self._read = read
        self._by_energy = all(b.joules is not None for b in batteries)
        self._left = {b.name: self._of(b) for b in batteries}
        unit = "energy" if self._by_energy else "charge"
        self.name = f"battery {', '.join(self._left)}, {unit} left read every {interval:g} s"
        self.what = what
        super().__init__(interval, 0.0, clock)

    def _drawn(self, elapsed: float) -> float:
        batteries = self._read()
        if {b.name for b in batteries} != self._left.keys():
            raise MeterLost("other batteries than before")
        drawn = 0.0
        for battery in batteries:
            left, volts = self._of(battery)
            lowest, volts_then = self._left[battery.name]
            # Gauges correct themselves upwards: nothing is counted until they are below again.
            if left < lowest:
                drawn += (lowest - left) * (volts + volts_then) / 2
                self._left[battery.name] = (left, volts)
        if drawn > MAX_WATTS * (self._clock() - self._changed + 1):
            raise MeterLost(f"{drawn:g} J less at once")
        if drawn:
            self.step = min(self.step or drawn, drawn)
            self._has_changed()
        return drawn

    def _of(self, battery: Battery) -> tuple[float, float]:
        """Joules and 1, or coulombs and volts."""
        volts = 1.0 if self._by_energy else battery.volts
        left = battery.joules if self._by_energy else battery.coulombs
        if left is None or volts is None:
            raise ValueError(f"{battery.name} does not report what is left in it")
        return left, volts


def discharge(
    read: Read, interval: float, what: str = WHAT, *, clock: Clock = time.perf_counter
) -> Polled:
    """A meter over batteries: their power where all report it, else what is left in them."""

    def checked() -> list[Battery]:
        try:
            batteries = read()
        except OnMains as mains:
            raise MeterLost(f"no longer on battery: {mains}") from None
        if not any(b.discharging for b in batteries):
            raise MeterLost("no longer discharging")
        return batteries

    def watts() -> float:
        parts = [b.watts for b in checked() if b.discharging]
        drawn = sum(part for part in parts if part is not None)
        if None in parts:
            raise ValueError("its power sensor is gone")
        if not 0 < drawn < MAX_WATTS:
            raise ValueError(f"{drawn:g} W is not what a machine draws")
        return drawn

    batteries = read()
    if not batteries:
        raise NoMeter("there is no battery")
    active = [b for b in batteries if b.discharging]
    if not active:
        raise NoMeter(f"{batteries[0].name} is not discharging")
    if all(b.watts for b in active):  # a battery without a sensor reports 0 W
        name = f"battery {', '.join(b.name for b in batteries)}"
        return Power(name, what, watts, interval=interval, clock=clock)
    return Gauge(what, checked, interval, clock)


# Linux


def is_android() -> bool:
    """Termux's Python says "linux" before 3.13."""
    return sys.platform == "android" or "ANDROID_ROOT" in os.environ


def read_linux(
    root: Path,
    name: str | None = None,
    amps: Callable[[int], float] = lambda n: n * 1e-6,
    volts: Callable[[int], float] = lambda n: n * 1e-6,
) -> list[Battery]:
    """The batteries of the machine (or the one so named), not those of mice and headphones.

    Units by the kernel's Documentation/ABI/testing/sysfs-class-power: µW, µWh, µA, µAh, µV; ``amps`` and
    ``volts`` are for drivers that have others.
    """
    supplies = sorted((root / "class" / "power_supply").iterdir())
    kinds = {supply: _optional(supply / "type", read_text) or "" for supply in supplies}
    for supply, kind in kinds.items():
        plug = kind.startswith(("Mains", "USB", "Wireless"))
        if plug and (_optional(supply / "online", read_number) or 0) > 0:
            raise OnMains(f"{supply.name} is online")
    return [
        _linux(supply, amps, volts)
        for supply, kind in kinds.items()
        if kind == "Battery"
        and supply.name == (name or supply.name)
        and _optional(supply / "scope", read_text) != "Device"
        and _optional(supply / "present", read_text) != "0"
    ]


def _linux(supply: Path, amps: Callable[[int], float], volts: Callable[[int], float]) -> Battery:
    def value(key: str) -> int | None:
        return _optional(supply / key, read_number)

    power, energy = value("power_now"), value("energy_now")
    current, voltage, charge = value("current_now"), value("voltage_now"), value("charge_now")
    if charge is None:
        charge = value("charge_counter")  # Android's name
    u = None if voltage is None else volts(voltage)
    if power is not None:
        watts: float | None = abs(power) * 1e-6
    elif current is not None and u is not None:
        watts = abs(amps(current)) * u  # drivers do not agree on the sign
    else:
        watts = None
    return Battery(
        supply.name,
        read_text(supply / "status") == "Discharging",
        watts,
        None if energy is None else energy * 3600e-6,
        None if charge is None else charge * 3600e-6,
        u,
    )


def _optional(path: Path, read: Callable[[Path], T]) -> T | None:
    """``None`` if there is no such file, or its driver has no value now."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENODEV, errno.ENXIO):
            return None
        raise


# macOS


def read_mac(plist: bytes) -> list[Battery]:
    """What ``ioreg -r -c AppleSmartBattery -a`` prints, in mA and mV. Raises ``OnMains`` or ``ValueError``."""
    try:
        entries = plistlib.loads(plist) if plist.strip() else []
        batteries = []
        for entry in entries:
            if entry["ExternalConnected"]:
                raise OnMains("a charger is connected")
            current = int(entry.get("InstantAmperage", entry["Amperage"]))
            if current >= 2**63:  # printed without its sign
                current -= 2**64
            volts = int(entry["Voltage"]) * 1e-3
            batteries.append(Battery("InternalBattery", True, max(0.0, -current * 1e-3 * volts)))
    except (plistlib.InvalidFileException, ExpatError, LookupError, TypeError, AttributeError) as e:
        raise ValueError(f"ioreg printed something else ({e!r})") from None
    return batteries


def _ioreg() -> list[Battery]:
    command = ["/usr/sbin/ioreg", "-r", "-c", "AppleSmartBattery", "-a"]
    return read_mac(subprocess.run(command, capture_output=True, timeout=10, check=True).stdout)


# Windows


def read_windows(state: bytes) -> list[Battery]:
    """``SYSTEM_BATTERY_STATE``, in mW and mWh. Raises ``OnMains`` or ``ValueError``."""
    if len(state) != 32:
        raise ValueError("Windows gave another state of the battery than it documents")
    mains, present, _, discharging, capacity, left, rate = struct.unpack("<4?4xIIi12x", state)
    if not present:
        return []
    if mains:
        raise OnMains("AC power is online")
    if capacity < 1000:
        raise ValueError("the battery counts in units of its own, not in mWh")
    known = -(2**31) < rate < 0
    return [Battery("0", discharging, -rate * 1e-3 if known else None, left * 3.6)]


def _call_windows() -> list[Battery]:
    state = ctypes.create_string_buffer(32)
    power = ctypes.WinDLL("powrprof")  # type: ignore[attr-defined, unused-ignore]
    failed = power.CallNtPowerInformation(5, None, 0, state, 32)
    if failed:
        raise OSError(f"CallNtPowerInformation failed with {failed:#x}")
    return read_windows(state.raw)


def open_meter(
    root: Path = Path("/sys"),
    system: str = sys.platform,
    *,
    clock: Clock = time.perf_counter,
    watch: bool = True,
) -> Meter:
    """Raises ``NoMeter``."""
    read: Read
    if is_android():
        raise NoMeter("Android's batteries have a reader of their own")
    if system == "linux":
        if not (root / "class" / "power_supply").is_dir():
            raise NoMeter(f"there is no {root}/class/power_supply")
        read, interval = functools.partial(read_linux, root), 0.5
    elif system == "darwin":
        read, interval = _ioreg, 5.0
    elif system == "win32":
        read, interval = _call_windows, 1.0
    else:
        raise NoMeter(f"nothing is known of batteries on {system}")
    try:
        meter = discharge(read, interval, clock=clock)
    except OnMains as mains:
        raise NoMeter(f"on mains ({mains}): unplug it") from None
    except (OSError, ValueError, MeterLost, subprocess.SubprocessError) as error:
        raise NoMeter(str(error)) from None
    if watch:
        meter.watch()
    return meter
