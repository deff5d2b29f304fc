from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from edgespec.bench.energy import MeterLost, NoMeter, open_meter, rapl
from tests.bench.energy import trees
from tests.bench.energy.trees import Clock, add


def opened(root: Path, clock: Clock) -> Any:
    return rapl.open_meter(root, clock=clock, watch=False)


def test_a_laptop_adds_its_package_and_its_memory_and_nothing_twice(tmp_path: Path) -> None:
    clock = Clock()
    meter = opened(trees.intel_laptop(tmp_path), clock)
    assert meter.name == "RAPL: package-0, dram"
    assert meter.what == "processor packages and memory"
    assert meter.joules() == 0
    clock.turn(10)
    drawn = {"intel-rapl:0": 150, "intel-rapl:0:0": 90, "intel-rapl:0:1": 20, "intel-rapl:0:2": 12}
    for key in ("intel-rapl:1", "intel-rapl-mmio:0", "dtpm:0"):
        drawn[key] = 400
    add(tmp_path, **{key: joules * 1_000_000 for key, joules in drawn.items()})
    assert meter.joules() == pytest.approx(150 + 12, rel=1e-9)


def test_an_amd_desktop(tmp_path: Path) -> None:
    clock = Clock()
    meter = opened(trees.amd_desktop(tmp_path), clock)
    assert (meter.name, meter.what) == ("RAPL: package-0", "processor packages")
    clock.turn(2)
    add(tmp_path, **{"intel-rapl:0": 123_456_789, "intel-rapl:0:0": 100_000_000})
    assert meter.joules() == pytest.approx(123.456789, rel=1e-9)


def test_two_sockets_wrap_many_times_each_in_its_own_time(tmp_path: Path) -> None:
    """An hour at 320 W and 150 W, 60 W and 20 W: 4, 2, 3 and 1 wraps."""
    clock = Clock()
    meter = opened(trees.server(tmp_path), clock)
    assert meter.name == "RAPL: package-0, dram, package-1"
    watts = {"intel-rapl:0": 320, "intel-rapl:1": 150, "intel-rapl:0:0": 60, "intel-rapl:1:0": 20}
    before, wraps = 0.0, 0
    for second in range(0, 3600, 60):
        clock.turn(60)
        levels = {key: _energy(tmp_path, key) for key in watts}
        add(tmp_path, **{key: 60 * w * 1_000_000 for key, w in watts.items()})
        wraps += sum(_energy(tmp_path, key) < level for key, level in levels.items())
        meter.poll()
        if second % 600 == 0:
            now = meter.joules()
            assert now >= before
            before = now
    assert wraps == 4 + 2 + 3 + 1
    assert meter.joules() == pytest.approx(3600 * sum(watts.values()), rel=1e-6)


def _energy(root: Path, key: str) -> int:
    return int((root / "class" / "powercap" / key / "energy_uj").read_text())


def test_it_is_polled_often_enough_for_the_shortest_range(tmp_path: Path) -> None:
    trees.server(tmp_path)
    assert opened(tmp_path, Clock()).interval == 1
    trees.zone(tmp_path, "intel-rapl:1:0", "dram", 0, 400_000_000)
    assert opened(tmp_path, Clock()).interval * rapl.MAX_WATTS <= 400 / 2


def test_a_thread_sees_wraps_between_readings(tmp_path: Path) -> None:
    trees.zone(tmp_path, "intel-rapl:0", "package-0", 0, 40_000_000)  # polled every 10 ms
    meter: Any = rapl.open_meter(tmp_path)
    energy = tmp_path / "class" / "powercap" / "intel-rapl:0" / "energy_uj"
    polled = threading.Event()
    poll = meter.poll
    meter.poll = lambda: (poll(), polled.set())
    try:
        for level in (30, 20, 10, 0, 30):  # 30 J each time, 10 J short of the whole range
            spare = tmp_path / "spare"
            spare.write_text(f"{level}000000\n")
            os.replace(spare, energy)
            for _ in range(2):  # the first may have begun before
                polled.clear()
                assert polled.wait(5)
    finally:
        meter.close()
    assert meter.joules() == pytest.approx(150)
    assert not any(t.name == meter.name for t in threading.enumerate())


def test_a_pause_in_which_it_may_have_wrapped_loses_it(tmp_path: Path) -> None:
    clock = Clock()
    meter = opened(trees.amd_desktop(tmp_path), clock)
    clock.turn(66)
    with pytest.raises(MeterLost, match="package-0 was not read for 66 s"):
        meter.joules()


def test_a_reset_is_no_wrap(tmp_path: Path) -> None:
    clock = Clock()
    meter = opened(trees.intel_laptop(tmp_path), clock)
    clock.turn(1)
    trees.zone(tmp_path, "intel-rapl:0", "package-0", 0)
    for _ in range(2):  # and it stays lost
        with pytest.raises(MeterLost, match="was reset"):
            meter.joules()


def test_a_package_plugged_in_counts_from_then_on(tmp_path: Path) -> None:
    clock = Clock()
    meter = opened(trees.intel_laptop(tmp_path), clock)
    clock.turn(1)
    add(tmp_path, **{"intel-rapl:0": 10_000_000})
    trees.zone(tmp_path, "intel-rapl:2", "package-1", 777_000_000)
    meter.poll()
    clock.turn(1)
    add(tmp_path, **{"intel-rapl:0": 10_000_000, "intel-rapl:2": 5_000_000})
    assert meter.joules() == pytest.approx(25)
    assert meter.name == "RAPL: package-0, dram, package-1"


@pytest.mark.parametrize("part", ["name", "energy_uj", "."])
def test_a_counter_that_vanishes_is_lost(tmp_path: Path, part: str) -> None:
    meter = opened(trees.server(tmp_path), Clock())
    gone = tmp_path / "class" / "powercap" / "intel-rapl:1"
    gone.rename(tmp_path / "gone") if part == "." else (gone / part).unlink()
    with pytest.raises(MeterLost, match="intel-rapl:1") as lost:
        meter.joules()
    assert "\n" not in str(lost.value)


GARBAGE = ["", "x", "1.5", "-5", "9" * 199, "\x00\xff", "262143328851000"]


@pytest.mark.parametrize("content", GARBAGE)
def test_garbage_is_no_measurement(tmp_path: Path, content: str) -> None:
    trees.intel_laptop(tmp_path)
    meter = opened(tmp_path, Clock())
    trees.write(tmp_path, "powercap/intel-rapl:0", energy_uj=content)
    with pytest.raises(MeterLost):
        meter.joules()
    with pytest.raises(NoMeter):
        opened(tmp_path, Clock())


@pytest.mark.parametrize("content", ["", "0", "-1", "lots"])
def test_a_range_must_be_one(tmp_path: Path, content: str) -> None:
    trees.write(trees.intel_laptop(tmp_path), "powercap/intel-rapl:0", max_energy_range_uj=content)
    trees.write(tmp_path, "powercap/intel-rapl:0", energy_uj=0)
    with pytest.raises(NoMeter):
        opened(tmp_path, Clock())


def test_counters_for_root_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since Linux 5.10 the file is there, and read by root alone: root sees it so by a refusal put in its way."""
    trees.intel_laptop(tmp_path)
    secret = tmp_path / "class" / "powercap" / "intel-rapl:0" / "energy_uj"
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        honest = Path.open

        def refusing(path: Path, *arguments: Any) -> Any:
            if path == secret:
                raise PermissionError(13, "Permission denied", str(path))
            return honest(path, *arguments)

        monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(NoMeter, match=r"root.*sudo chmod a\+r .*/intel-rapl:\*/energy_uj"):
        opened(tmp_path, Clock())


def test_a_folder_in_place_of_the_counter(tmp_path: Path) -> None:
    energy = trees.amd_desktop(tmp_path) / "class" / "powercap" / "intel-rapl:0" / "energy_uj"
    energy.unlink()
    energy.mkdir()
    with pytest.raises(NoMeter, match="energy_uj"):
        opened(tmp_path, Clock())


def test_absent_trees(tmp_path: Path) -> None:
    with pytest.raises(NoMeter, match=r"there is no .*powercap"):
        opened(tmp_path, Clock())
    trees.zone(tmp_path, "intel-rapl:0", "psys")
    trees.zone(tmp_path, "dtpm:0", "package-0")
    with pytest.raises(NoMeter, match="modprobe"):
        opened(tmp_path, Clock())


def test_the_error_is_the_step_and_the_refresh(tmp_path: Path) -> None:
    meter = opened(trees.amd_desktop(tmp_path), Clock())
    assert meter.error(1.0, 10.0) == pytest.approx(0.001 + 2**-14 / 10)
    assert meter.error(1.0, 0.0) >= 1  # nothing was counted: nothing is known


def test_it_is_found_first(tmp_path: Path) -> None:
    meter = open_meter(root=trees.thinkpad(trees.intel_laptop(tmp_path)))
    meter.close()
    assert meter.name == "RAPL: package-0, dram"
