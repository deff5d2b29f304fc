"""A phone or tablet that runs from its battery: the whole device, its screen included.

Read, the first that answers: the battery's files under /sys (``adb shell``, or root), ``termux-battery-status`` (an app's
own view, by BatteryManager; the package termux-api), ``dumpsys battery`` (``adb shell``).

BatteryManager documents µA, and µAh for the charge left; drivers have mA and either sign too. A device that runs
this program from its battery draws 20 mA to 5 A: figures of 20,000 and more are µA, up to 5,000 mA, and what is between is
refused. The sign is not needed, since only a battery that discharges is read.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .battery import Battery, OnMains, Read, discharge, is_android, read_linux
from .meter import Clock, Meter, MeterLost, NoMeter

WHAT = "the whole device from its battery"
MAX_AMPS = 10.0
Run = Callable[[Sequence[str]], str]


class Amps:
    """Of a current in µA or mA, by the first value. Raises ``ValueError`` where the unit is ambiguous."""

    unit: float | None = None

    def __call__(self, figure: int) -> float:
        size = abs(figure)
        if self.unit is None:
            if not (20 <= size <= 5000 or size >= 20_000):
                raise ValueError(
                    f"a current of {figure} is neither µA nor mA of a device that runs"
                )
            self.unit = 1e-3 if size <= 5000 else 1e-6
        if size * self.unit > MAX_AMPS:
            raise ValueError(
                f"a current of {size * self.unit:g} A is too much for a device like this"
            )
        return size * self.unit


def volts(figure: int) -> float:
    """Of a voltage in µV or mV."""
    value = figure * (1e-6 if figure >= 100_000 else 1e-3)
    if not 2 <= value <= 25:
        raise ValueError(f"a voltage of {figure} is neither µV nor mV of a battery")
    return value


def read_termux(text: str) -> list[Battery]:
    """What ``termux-battery-status`` prints. Raises ``OnMains`` or ``ValueError``.

    It multiplies what is below 1000, taking it for mA, so that the unit may be another every time.
    """
    state: Any = json.loads(text)
    try:
        if state["plugged"] != "UNPLUGGED":
            raise OnMains(f"plugged: {state['plugged']}")
        power = Amps()(int(state["current"])) * volts(int(state["voltage"]))
        return [Battery("battery", state["status"] == "DISCHARGING", power)]
    except (LookupError, TypeError) as error:
        raise ValueError(f"termux-battery-status does not report {error}") from None


def read_dumpsys(text: str, amps: Amps) -> list[Battery]:
    """What ``dumpsys battery`` prints. Raises ``OnMains`` or ``ValueError``.

    Android's own lines give the charge left; Samsung's a current besides.
    """
    if "UPDATES STOPPED" in text:
        raise ValueError("its figures are set by hand: dumpsys battery reset")
    found: dict[str, str] = {}
    for key, value in re.findall(r"^ *([A-Za-z ]{1,40}): *(\S{1,20})$", text[:20_000], re.M):
        found.setdefault(key, value)
    for key, value in found.items():
        if key.endswith(" powered") and value == "true":
            raise OnMains(key)
    try:
        u = volts(int(found["voltage"]))
        discharging = found["status"] == "3"  # BATTERY_STATUS_DISCHARGING
        current = int(found.get("current now", "0"))
        if current:
            return [Battery("battery", discharging, amps(current) * u)]
        charge = int(found["Charge counter"])
    except LookupError as error:
        raise ValueError(f"dumpsys battery does not report {error}") from None
    if charge < 20_000:
        raise ValueError(f"a charge of {charge} is not in µAh")
    return [Battery("battery", discharging, coulombs=charge * 3600e-6, volts=u)]


def run_command(command: Sequence[str]) -> str:
    """Its output. Raises ``OSError`` or ``subprocess.SubprocessError``."""
    result = subprocess.run(command, capture_output=True, timeout=10, check=True)
    return result.stdout.decode("utf-8", "replace")


def open_meter(
    root: Path = Path("/sys"),
    *,
    run: Run = run_command,
    android: bool | None = None,
    clock: Clock = time.perf_counter,
    watch: bool = True,
) -> Meter:
    """Raises ``NoMeter``. Commands are run every 5 s, since each is work for the device; files are read every 0.5 s."""
    if not (is_android() if android is None else android):
        raise NoMeter("this is no Android device")

    files, dumped = Amps(), Amps()
    readers: list[tuple[str, Read, float]] = [
        ("/sys", functools.partial(read_linux, root, "battery", files, volts), 0.5),
        (
            "termux-battery-status",
            lambda: read_termux(run(["termux-battery-status"])),
            5.0,
        ),
        ("dumpsys", lambda: read_dumpsys(run(["dumpsys", "battery"]), dumped), 5.0),
    ]
    reasons = []
    for name, read, interval in readers:
        try:
            meter = discharge(read, interval, WHAT, clock=clock)
        except OnMains as mains:
            raise NoMeter(f"on mains ({mains}): unplug it") from None
        except (NoMeter, MeterLost, OSError, ValueError, subprocess.SubprocessError) as error:
            reasons.append(f"{name}: {error}")
            continue
        meter.name = f"Android {meter.name} ({name})"
        if watch:
            meter.watch()
        return meter
    raise NoMeter("; ".join(reasons))
