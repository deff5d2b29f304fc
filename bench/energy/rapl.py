"""Intel's and AMD's RAPL counters, as Linux shows them under /sys/class/powercap.

No library is taken: Zeus drags in pandas and scikit-learn and starts a process for every counter; codecarbon
drags in pandas and, where it cannot read, prints a share of the processor's nominal power as if measured;
pyRAPL (last of 2019) does not know wrap-arounds. What is read is a file of digits.

- The zones ``package-N`` are summed, and ``dram`` in them, which is not part of a package. ``core`` and
  ``uncore`` are parts of it, ``psys`` holds it, ``intel-rapl-mmio`` shows the same counter again and ``dtpm`` is
  no counter: none of these is added.
- A counter wraps at ``max_energy_range_uj``: 65 to 262 kJ, minutes of a busy server.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from .meter import Clock, Meter, MeterLost, NoMeter, Polled, read_number, read_text

MAX_WATTS = 1000.0
"""No package draws more: a counter that shows more was reset, or wrapped unseen."""
REFRESH_S = 0.001
STEP_J = 2.0**-14
"""Of the counters in the processor, as Intel's manual (volume 3, 15.10) and AMD's have them, or finer."""


@dataclass
class _Zone:
    name: str
    range_j: float
    joules: float


class Rapl(Polled):
    """The packages and their memory."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._zones = {key: _open(folder / key, name) for key, name in _find(folder).items()}
        shortest = min(zone.range_j for zone in self._zones.values())
        super().__init__(min(1.0, shortest / MAX_WATTS / 4), 0.0, clock)
        self._describe()

    def _describe(self) -> None:
        names = list(dict.fromkeys(zone.name for zone in self._zones.values()))
        self.name = "RAPL: " + ", ".join(names)
        self.what = "processor packages and memory" if "dram" in names else "processor packages"
        self.step = STEP_J * len(self._zones)

    def _drawn(self, elapsed: float) -> float:
        found = _find(self._folder)
        for key, zone in self._zones.items():
            if key not in found:
                raise MeterLost(f"{zone.name} ({key}) is gone")
        drawn = sum(_advance(self._folder / k, z, elapsed) for k, z in self._zones.items())
        if len(found) > len(self._zones):  # a package was plugged in: until now it drew nothing
            for key in found.keys() - self._zones.keys():
                self._zones[key] = _open(self._folder / key, found[key])
            self._describe()
        return drawn

    def _lag(self) -> float:
        return REFRESH_S


def _find(folder: Path) -> dict[str, str]:
    """The names of the zones to add up, by folder: "intel-rapl:0" → "package-0"."""
    keys = sorted(
        p.name for p in folder.iterdir() if re.fullmatch(r"intel-rapl:\d+(:\d+)?", p.name)
    )
    names = {key: read_text(folder / key / "name")[:40] for key in keys}
    packages = {key for key, name in names.items() if re.fullmatch(r"package-\d+(-die-\d+)?", name)}
    return {
        key: name
        for key, name in names.items()
        if key in packages or (name == "dram" and key.rpartition(":")[0] in packages)
    }


def _open(path: Path, name: str) -> _Zone:
    range_j = read_number(path / "max_energy_range_uj") * 1e-6
    if range_j <= 0:
        raise ValueError(f"{path} has no range")
    return _Zone(name, range_j, _energy(path, range_j))


def _energy(path: Path, range_j: float) -> float:
    joules = read_number(path / "energy_uj") * 1e-6
    if not 0 <= joules <= range_j:
        raise ValueError(f"{path} counts {joules:g} J, outside of its range of {range_j:g} J")
    return joules


def _advance(path: Path, zone: _Zone, elapsed: float) -> float:
    """Joules since the last reading of a zone."""
    if elapsed * MAX_WATTS > zone.range_j:
        raise MeterLost(f"{zone.name} was not read for {elapsed:.0f} s and may have wrapped unseen")
    joules = _energy(path, zone.range_j)
    drawn = joules - zone.joules
    if drawn < 0:
        drawn += zone.range_j
    if drawn > MAX_WATTS * (elapsed + 1):
        raise MeterLost(f"{zone.name} was reset, by a suspend of the machine or its driver")
    zone.joules = joules
    return drawn


def open_meter(
    root: Path = Path("/sys"), *, clock: Clock = time.perf_counter, watch: bool = True
) -> Meter:
    """Raises ``NoMeter``. ``watch``: start the thread that sees wrap-arounds."""
    folder = root / "class" / "powercap"
    if not folder.is_dir():
        raise NoMeter(f"there is no {folder}: another system, a virtual machine or a container")
    try:
        if not _find(folder):
            raise NoMeter(f"{folder} shows no processor package: try sudo modprobe intel_rapl_msr")
        meter = Rapl(folder, clock)
    except PermissionError:
        raise NoMeter(
            "its counters are for root alone; to read them until the next start of the machine: "
            f"sudo chmod a+r {folder}/intel-rapl:*/energy_uj"
        ) from None
    except (OSError, ValueError) as error:
        raise NoMeter(str(error)) from None
    if watch:
        meter.watch()
    return meter
