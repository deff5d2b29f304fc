"""Choosing a reader, idling, and the two readers that stand on a library."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgespec.bench import energy
from edgespec.bench.energy import MeterLost, NoMeter, apple, nvml, open_meter
from edgespec.bench.energy.meter import Counter, Power
from tests.bench.energy import trees
from tests.bench.energy.trees import Clock


def test_where_nothing_measures_every_reader_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "READERS", {**energy.READERS})
    for name in ("apple", "battery"):  # whatever this machine has
        monkeypatch.setitem(energy.READERS, name, _raising)
    with pytest.raises(NoMeter) as why:
        open_meter(root=tmp_path)
    lines = str(why.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(energy.READERS)
    assert lines[1] == "apple: not here"


def _raising(root: Path) -> energy.Meter:
    raise NoMeter("not\nhere")


def test_a_reader_by_name(tmp_path: Path) -> None:
    with pytest.raises(NoMeter, match=r"^rapl: there is no [^\n]*$"):
        open_meter("rapl", root=tmp_path)
    with pytest.raises(NoMeter, match="no such reader; there are rapl, "):
        open_meter("guess", root=tmp_path)
    meter = open_meter("rapl", root=trees.amd_desktop(tmp_path))
    meter.close()
    meter.close()
    assert meter.what == "processor packages"


def test_idling(tmp_path: Path) -> None:
    """10 W and 14 W by turns."""
    clock = Clock()
    meter = energy.rapl.open_meter(trees.amd_desktop(tmp_path), clock=clock, watch=False)
    watts = iter([10, 14] * 5)

    def sleep(seconds: float) -> None:
        clock.turn(seconds)
        trees.add(tmp_path, **{"intel-rapl:0": int(next(watts) * seconds * 1_000_000)})

    mean, deviation = energy.idle_watts(meter, 20, clock=clock, sleep=sleep)
    assert mean == pytest.approx(12, rel=1e-6)
    assert deviation == pytest.approx((40 / 9) ** 0.5, rel=1e-6)


class Nvml:
    """A driver with two GPUs; the names are pynvml's."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801
        pass

    def __init__(self, counts: bool = True, gpus: int = 2) -> None:
        self.counts, self.gpus, self.lost = counts, gpus, False
        self.millijoules, self.milliwatts = [1000, 5000], [60_000, 20_000]
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, gpu: int) -> str:  # noqa: N802
        return "NVIDIA T4"

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> int:  # noqa: N802
        if self.lost:
            raise self.NVMLError("GPU is lost")
        if not self.counts:
            raise self.NVMLError_NotSupported("Not Supported")
        return self.millijoules[gpu]

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:  # noqa: N802
        return self.milliwatts[gpu]


def nvidia(library: Nvml, clock: Clock) -> Any:
    return nvml.open_meter(library, clock=clock, watch=False)


def test_nvidias_counter() -> None:
    library, clock = Nvml(), Clock()
    meter = nvidia(library, clock)
    assert (meter.name, meter.what) == ("NVML: NVIDIA T4", "GPUs 0 to 1")
    library.millijoules = [4000, 7500]
    clock.turn(0.2)
    assert meter.joules() == pytest.approx(5.5)
    assert meter.error(10, 500) == pytest.approx(0.2 / 10 + 0.002 / 500)
    library.millijoules[0] = 0
    with pytest.raises(MeterLost, match="reset"):
        meter.joules()
    meter.close()
    meter.close()
    assert library.open == 0


def test_nvidias_power_where_there_is_no_counter() -> None:
    library, clock = Nvml(counts=False), Clock()
    meter = nvidia(library, clock)
    assert meter.name == "NVML: NVIDIA T4, power read every 0.1 s"
    clock.turn(10)
    library.milliwatts = [100_000, 20_000]
    assert meter.joules() == pytest.approx(10 * (80 + 120) / 2)


def test_a_gpu_that_falls_off_the_bus() -> None:
    library = Nvml()
    meter = nvidia(library, Clock())
    library.lost = True
    with pytest.raises(MeterLost, match="NVML: NVIDIA T4: the GPU does not answer"):
        meter.joules()


def test_no_gpu() -> None:
    library = Nvml(gpus=0)
    with pytest.raises(NoMeter, match="there is none"):
        nvidia(library, Clock())
    library = Nvml(gpus=1)
    library.lost = True
    with pytest.raises(NoMeter, match="lost"):
        nvidia(library, Clock())
    assert library.open == 0


def test_nvidias_own_library_has_what_is_called() -> None:
    if importlib.util.find_spec("pynvml") is None:
        with pytest.raises(NoMeter, match="pip install nvidia-ml-py"):
            nvml.open_meter()
        return
    import pynvml  # type: ignore[import-not-found, unused-ignore]

    called = [name for name in dir(Nvml) if name.lower().startswith("nvml")]
    assert len(called) == 9
    assert all(hasattr(pynvml, name) for name in called)


class Chip:
    """zeus_apple_silicon on a chip without a counter of its memory."""

    def __init__(self, **millijoules: int | None) -> None:
        parts = dict.fromkeys(apple.PARTS, 0) | {"dram_mj": None} | millijoules
        self.energy = SimpleNamespace(**parts)
        self.fails = False

    def AppleEnergyMonitor(self) -> Chip:  # noqa: N802
        return self

    def get_cumulative_energy(self) -> SimpleNamespace:
        if self.fails:
            raise RuntimeError("Failed to create IOReport subscription.")
        return self.energy


def silicon(chip: Chip) -> Any:
    return apple.open_meter(chip, clock=Clock(), watch=False)


def test_apple_silicon() -> None:
    chip = Chip(cpu_total_mj=1_000_000)
    meter = silicon(chip)
    assert meter.what.startswith(
        "processor, GPU, GPU SRAM, neural engine of the chip, by Apple's own model"
    )
    chip.energy.cpu_total_mj += 12_000
    chip.energy.gpu_mj += 500
    assert meter.joules() == pytest.approx(12.5)
    chip.energy.gpu_mj = None
    with pytest.raises(MeterLost, match="no longer"):
        meter.joules()


def test_apple_silicon_that_does_not_answer() -> None:
    with pytest.raises(NoMeter, match="does not report"):
        silicon(Chip(cpu_total_mj=None))
    chip = Chip()
    meter = silicon(chip)
    chip.fails = True
    with pytest.raises(MeterLost, match="subscription"):
        meter.joules()
    with pytest.raises(NoMeter, match="subscription"):
        silicon(chip)


def test_the_thread_integrates_and_ends() -> None:
    """With the real clock: 2 W over some tenths of a second, read by nobody else."""
    meter = Power("sensor", "", lambda: 2.0, interval=0.01)
    meter.watch()
    start = meter._clock()
    while meter._joules < 0.1:
        assert meter._clock() - start < 5
    meter.close()
    assert not any(thread.name == meter.name for thread in threading.enumerate())


def test_what_went_wrong_is_one_line() -> None:
    values = iter([1.0])

    def read() -> float:
        for value in values:
            return value
        raise OSError("it\nbroke " + "x" * 1000)

    meter = Counter("counter", "", read, step=0.1, interval=1)
    with pytest.raises(MeterLost) as lost:
        meter.joules()
    assert str(lost.value).startswith("counter: it broke x")
    assert len(str(lost.value)) <= 300
