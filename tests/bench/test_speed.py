from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from edgespec.bench import speed
from edgespec.drafting import Budget
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
    assert "0.500 (prompt 2)" in speed.modes_table(runs, [speed.FAST])


def test_a_category_counts_its_time_round_by_round() -> None:
    fixed = speed.Mode("γ = 2", partial(speed.FixedNgram, 2), False)
    times = {speed.PLAIN: (4.0, 2.0), speed.FAST: (3.0, 2.0), fixed: (2.0, 2.0)}
    runs = [
        answer(prompt, mode, seconds)
        for prompt in (1, 2)
        for mode, both in times.items()
        for seconds in both
    ]
    assert speed.gains_table(runs, [speed.FAST]).endswith("| a | 2 | 1.17 [1.00–1.33], 1.00 |")
    assert speed.nearness_table(runs, speed.FAST, [fixed]).endswith(
        "| a | γ = 2 | 1.50 | 1.20 | 0.80 |"
    )


def test_a_fixed_draft_has_its_length_wherever_anything_matches() -> None:
    drafter = speed.FixedNgram(3)
    draft = drafter.propose([1, 2, 3, 4, 5, 1, 2], Budget(8))
    assert (list(draft.tokens), draft.confidence) == ([3, 4, 5], None)
    assert not drafter.propose([1, 2, 3], Budget(8))


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
    few = ("--max-tokens", 8, "--context", 1024)
    run(speed.generate, smollm2, *few, "--gamma", 2, "--json", out)
    runs = json.loads(out.read_text())["figures"]
    names = ["plain", "ngram --exact", "γ = 2"]
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
