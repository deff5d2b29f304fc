"""The runtime, device and threads that profiles say are the fastest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgespec.core.latency import LatencyCurve
from edgespec.device.placement import Placement, fastest_first, known
from edgespec.device.profile_files import save
from edgespec.runtimes import get
from edgespec.runtimes.onnx import session as onnx
from tests.device.test_profile import PROFILE

BOTH = ("onnx", "llama-cpp")


def places(*runtimes: str, device: str = "auto", threads: int | None = None) -> list[Placement]:
    return [Placement(get(name), device, threads=threads) for name in runtimes]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, on a machine without profiles."""
    monkeypatch.setenv("EDGESPEC_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(onnx, "_pool_threads", None)  # as if no model had run here before
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    return path


def keep(
    model: Path, place: Placement, *seconds: float, threads: dict[int, float] | None = None
) -> None:
    """A profile of ``place`` where passes over 1, 2, … tokens take ``seconds``."""
    setup = place.setup(model)
    curve = LatencyCurve(
        tuple(range(1, len(seconds) + 1)), (64,), (seconds,), ((0.0,) * len(seconds),)
    )
    save(
        replace(
            PROFILE,
            machine=setup.machine,
            model={**PROFILE.model, "fingerprint": setup.fingerprint},
            runtime=setup.runtime,
            runtime_version=setup.runtime_version,
            device=setup.device,
            exact=setup.exact,
            threads=setup.threads,
            curve=curve,
            thread_counts=threads or {setup.threads: seconds[0]},
        )
    )


def test_without_profiles_the_order_stays(model: Path) -> None:
    found = fastest_first(model, places(*BOTH), speculates=True)
    assert found == places(*BOTH)


def test_the_fastest_runtime_comes_first(model: Path) -> None:
    pytest.importorskip("llama_cpp")
    keep(model, Placement(get("llama-cpp")), 0.03, 0.06)
    first = fastest_first(model, places(*BOTH), speculates=False)[0]
    assert first == Placement(get("onnx")), "nothing tells that it is slower"
    keep(model, Placement(get("onnx")), 0.04, 0.041)
    plain = fastest_first(model, places(*BOTH), speculates=False)
    assert [place.runtime.name for place in plain] == ["llama-cpp", "onnx"]
    assert {place.device for place in plain} == {"cpu"}
    drafted = fastest_first(model, places(*BOTH), speculates=True)
    assert [place.runtime.name for place in drafted] == ["onnx", "llama-cpp"]


def test_the_threads_that_were_the_fastest_are_used_unless_told_otherwise(model: Path) -> None:
    place = Placement(get("onnx"))
    cores = place.setup(model).threads
    keep(model, place, 0.04, threads={cores: 0.04, cores + 1: 0.02})
    keep(model, replace(place, threads=cores + 1), 0.02)
    [found] = fastest_first(model, places("onnx"), speculates=True)
    assert found.threads == cores + 1
    profile = known(model, place)
    assert profile is not None
    assert profile.curve.seconds[0][0] == 0.02
    [asked] = fastest_first(model, places("onnx", threads=cores), speculates=True)
    assert asked.threads == cores


def test_a_process_that_runs_models_goes_on_with_its_threads(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All models of a process share one pool: what another would prefer must not keep it from opening."""
    place = Placement(get("onnx"))
    cores = place.setup(model).threads
    keep(model, place, 0.04, threads={cores: 0.04, cores + 1: 0.02})
    keep(model, replace(place, threads=cores + 1), 0.02)
    monkeypatch.setattr(onnx, "_pool_threads", cores)
    [found] = fastest_first(model, places("onnx"), speculates=True)
    assert found.threads == cores
    monkeypatch.setattr(onnx, "_pool_threads", cores + 2)
    [found] = fastest_first(model, places("onnx"), speculates=True)
    assert found.threads == cores + 2, "though nothing tells how fast that is"
    [asked] = fastest_first(model, places("onnx", threads=cores), speculates=True)
    assert asked.threads == cores, "the runtime will say that it cannot"


def test_another_model_or_padding_has_its_own_profile(model: Path, tmp_path: Path) -> None:
    keep(model, Placement(get("onnx")), 0.04)
    assert known(model, Placement(get("onnx"))) is not None
    assert known(model, Placement(get("onnx"), exact=False)) is None
    other = tmp_path / "other.gguf"
    other.write_bytes(b"weight2")
    assert known(other, Placement(get("onnx"))) is None


def test_a_device_that_is_not_here_is_left_to_the_runtime_to_refuse(model: Path) -> None:
    keep(model, Placement(get("onnx")), 0.04)
    [place] = fastest_first(model, places("onnx", device="npu"), speculates=True)
    assert place == Placement(get("onnx"), device="npu")
