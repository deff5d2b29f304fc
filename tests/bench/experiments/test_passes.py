from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec.bench.experiments import passes
from tests.bench.conftest import Run


def test_passes_of_two_processes_become_one_sample() -> None:
    a, b = passes.Passes({1: [1.0, 2.0]}, 7), passes.Passes({1: [3.0]}, 7)
    assert passes.merged([a, b]) == passes.Passes({1: [1.0, 2.0, 3.0]}, 7)
    assert passes.merged([a, b]).median(1) == 2.0


def test_passes_are_timed(smollm2: Path, bench_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPEC_HOME", str(bench_home))
    found = passes.time_passes(str(smollm2), "onnx", None, 3, (96,))
    assert {size: len(times) for size, times in found.seconds.items()} == {
        0: passes._DECODED,
        **dict.fromkeys(passes.SIZES, 3),
        96: 1,
    }
    assert all(seconds > 0 for times in found.seconds.values() for seconds in times)


@pytest.mark.slow
def test_the_program(run: Run, smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    out = tmp_path / "figures.json"
    shown = run(passes.main, smollm2, "--repeats", 1, "--threads", 1, "--json", out).stdout
    figures = json.loads(out.read_text())["figures"]
    assert figures.pop("bandwidth") > 0
    assert next(iter(figures)) == "onnx"
    for found in figures.values():
        assert [len(found["seconds"][str(size)]) for size in passes.SIZES] == [2] * 5
    for row in ("| n=1 |", "| n=16 |", "| n=1, decoding |", "Reading alone gets "):
        assert row in shown
