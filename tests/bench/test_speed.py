from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec.bench import speed
from edgespec.engine import Engine
from tests.bench.conftest import Run


def answer(prompt: int, mode: speed.Mode, seconds: float, tokens: int = 10) -> speed.Run:
    return speed.Run(prompt, "a", mode.name, tokens, tokens, 0, 0, seconds, 0.1, seconds, 0.5)


def test_a_speed_up_compares_the_fastest_runs_token_by_token() -> None:
    runs = [
        answer(1, speed.PLAIN, 4.0),
        answer(1, speed.PLAIN, 2.0),
        answer(1, speed.FAST, 3.0),
        answer(1, speed.FAST, 2.0, tokens=20),
        answer(2, speed.PLAIN, 1.0),
        answer(2, speed.FAST, 2.0),
    ]
    assert speed.speedups(runs, speed.FAST) == {1: 2.0, 2: 0.5}
    assert speed.gains_table(runs, [speed.FAST]).endswith("| a | 2 | 0.50 / 1.25 / 1.00 |")
    assert "0.500 (prompt 2)" in speed.modes_table(runs, [speed.FAST])


def test_passes_of_two_processes_become_one_sample() -> None:
    a, b = speed.Passes({1: [1.0, 2.0]}, 7), speed.Passes({1: [3.0]}, 7)
    assert speed.merged([a, b]) == speed.Passes({1: [1.0, 2.0, 3.0]}, 7)
    assert speed.merged([a, b]).median(1) == 2.0


def test_modes_of_one_model_are_those_of_an_engine(
    smollm2: Path, bench_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_HOME", str(bench_home))
    with Engine.open(smollm2, draft="none", context=256) as engine:
        switch = speed.Switch(engine)
        proved = engine.info.pass_sizes
        assert proved
        for mode, sizes, name in (
            (speed.PLAIN, (), "none"),
            (speed.EXACT, proved, "ngram"),
            (speed.FAST, (), "ngram"),
        ):
            parts = switch.to(mode)
            assert parts is engine.loaded
            assert (parts.target.info.pass_sizes, parts.scheduler.name) == (sizes, name)


def test_the_program_generate(run: Run, smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    run(speed.generate, smollm2, "--max-tokens", 8, "--context", 1024, "--json", out)
    runs = json.loads(out.read_text())["figures"]
    names = [mode.name for mode in (speed.PLAIN, speed.EXACT, speed.FAST)]
    assert [run["mode"] for run in runs] == names + names[::-1]
    assert all(run["tokens"] == 8 and run["pass_s"] <= run["decode_s"] for run in runs)


def test_passes_are_timed(smollm2: Path, bench_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPEC_HOME", str(bench_home))
    found = speed.time_passes(str(smollm2), "onnx", None, 3)
    assert {size: len(times) for size, times in found.seconds.items()} == {
        0: speed._DECODED,
        **dict.fromkeys(speed.SIZES, 3),
    }
    assert found.median(1) < found.median(16)
