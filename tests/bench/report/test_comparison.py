from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgespec.bench.records.results import Results
from edgespec.bench.report.comparison import FLOOR, Comparison, compare, render
from edgespec.errors import UserError
from tests.bench.results import simulated

SUFFIX = "decode tokens/s, over that of edgespec none"
SEEDS = range(10, 22, 2)
"""Pairs of runs, each with noise of 3 % and a drift of 20 %."""


def found(comparison: Comparison) -> set[tuple[str, str]]:
    return {(change.system, change.figure) for change in comparison.changed}


@pytest.mark.parametrize("seed", SEEDS)
def test_two_runs_of_the_same_thing_have_not_changed(seed: int) -> None:
    comparison = compare(simulated(seed), simulated(seed + 1))
    assert not found(comparison)
    assert render(comparison).startswith("No change: ")
    for change in comparison.changes:
        assert abs(change.by) < FLOOR


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_down_of_5_percent_is_seen(seed: int) -> None:
    slow = simulated(seed + 1, slower={"edgespec suffix": 0.05})
    comparison = compare(simulated(seed), slow)
    assert ("edgespec suffix", SUFFIX) in found(comparison)
    assert {system for system, _ in found(comparison)} == {"edgespec suffix"}
    (change,) = [c for c in comparison.changed if c.figure == SUFFIX]
    assert change.effect.value == pytest.approx(1 / 1.05, abs=0.02)
    assert change.effect.high < 1
    assert f"edgespec suffix: {SUFFIX}: -" in render(comparison)


GAIN = "gain of drafts, beside its own passes"


def test_own_work_of_5_percent_shows_in_what_drafts_gain() -> None:
    """However noisy the machine was."""
    a, b = (simulated(seed, noise=0.15) for seed in (1, 2))
    assert not [change for change in compare(a, b).changed if change.figure == GAIN]
    for i, answer in enumerate(b.answers):
        if answer.system == "edgespec suffix":
            step_s = sum(filter(None, (answer.pass_s, answer.draft_s, answer.own_s)))
            b.answers[i] = replace(answer, own_s=(answer.own_s or 0) + 0.05 * step_s)
    changed = [change for change in compare(a, b).changed if change.figure == GAIN]
    assert [change.system for change in changed] == ["edgespec suffix"]
    assert changed[0].effect.value == pytest.approx(1 / 1.05, abs=0.02)


def test_drift_shows_in_plain_decoding_alone() -> None:
    slow = dict.fromkeys(simulated().systems, 0.3)
    comparison = compare(simulated(1), simulated(2, slower=slow))
    assert not comparison.changed
    assert len(comparison.absolute) == 3
    assert all(change.effect.high < 0.9 and not change.changed for change in comparison.absolute)
    assert "not corrected" in render(comparison)


def test_a_baseline_that_changed_is_suspected() -> None:
    comparison = compare(simulated(1), simulated(2, slower={"edgespec none": 0.1}))
    assert len([c for c in comparison.changed if c.figure == SUFFIX]) == 4
    assert any("may be that baseline" in note for note in comparison.notes)
    assert not any("may be that" in n for n in compare(simulated(1), simulated(2)).notes)


def test_what_is_said_is_compared_too() -> None:
    a, b = simulated(1), simulated(2)
    for i, answer in enumerate(b.answers):
        if answer.system == "edgespec suffix":
            b.answers[i] = replace(answer, token_ids=[7] * 64, passes=64, accepted=0)
    b.systems["edgespec suffix"].peak_memory_bytes = 2_000_000_000
    comparison = compare(a, b)
    assert found(comparison) == {
        ("edgespec suffix", figure) for figure in ("τ", "α", "peak memory", "equal answers")
    }
    (equal,) = [c for c in comparison.changed if c.figure == "equal answers"]
    assert (equal.before, equal.after, equal.by) == (1.0, 0.0, -1.0)


def test_the_more_systems_the_less_a_small_p_means() -> None:
    slower = {"edgespec suffix": 0.05}
    one = compare(simulated(1), simulated(2, slower=slower))
    few = [replace_systems(r, {"edgespec none", "edgespec suffix"}) for r in runs(slower)]
    p = [
        next(c.p for c in comparison.changes if c.figure == SUFFIX)
        for comparison in (compare(*few), one)
    ]
    assert p[1] == pytest.approx(5 * p[0])  # of the six, one is the yardstick of all


def runs(slower: dict[str, float]) -> tuple[Results, Results]:
    return simulated(1), simulated(2, slower=slower)


def replace_systems(run: Results, names: set[str]) -> Results:
    return replace(
        run,
        systems={name: s for name, s in run.systems.items() if name in names},
        answers=[a for a in run.answers if a.system in names],
    )


def test_too_few_prompts_show_no_change() -> None:
    comparison = compare(
        simulated(1, prompts=1), simulated(2, prompts=1, slower={"edgespec suffix": 2.0})
    )
    assert not comparison.changed
    assert "too few prompts" in render(comparison)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_tokens": 9}, "max_tokens: 64, 9"),
        ({"temperature": 0.5}, "temperature"),
        ({"prompts": "x"}, "prompts: 'own.jsonl', 'x'"),
        ({"new": 1}, "new: None, 1"),
    ],
)
def test_other_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    a, b = simulated(1), simulated(2)
    b.settings |= settings
    with pytest.raises(UserError, match=named) as refused:
        compare(a, b)
    assert "\n" not in str(refused.value)


def test_other_models_and_prompts_are_refused() -> None:
    a, b = simulated(1), simulated(2)
    other = replace(b, model=b.model | {"name": "big", "sha256": "c" * 64})
    with pytest.raises(UserError, match="same model: tiny-1"):
        compare(a, other)
    with pytest.raises(UserError, match="same draft model: tiny-0"):
        compare(a, replace(b, model=b.model | {"draft": None}))
    prompts = [replace(x, prompt_tokens=x.prompt_tokens + (x.prompt == 3)) for x in b.answers]
    with pytest.raises(UserError, match="prompt 3 has 43 tokens for edgespec model in one and 44"):
        compare(a, replace(b, answers=prompts))
    with pytest.raises(UserError, match="no answer"):
        compare(a, replace(b, answers=[]))


def test_other_machines_versions_and_systems_are_said() -> None:
    a, b = simulated(1), simulated(2, rounds=1)
    b.settings["command"] = "another"
    b.machine |= {"cpu": "Other CPU", "versions": {"edgespec": "0.2.0", "onnxruntime": "1.31.0"}}
    del b.systems["transformers plain"]
    b.systems["llama.cpp plain"].version = "9"
    b = replace(b, answers=[x for x in b.answers if x.prompt])
    assert set(compare(a, b).notes) >= {
        "different machines: cpu Imaginary CPU @ 2.10GHz, then Other CPU",
        "edgespec 0.1.0, then 0.2.0",
        "transformers plain is only in the first run",
        "llama.cpp plain: version 1.2.3, then 9",
        "1 prompts are only in the first run; they do not count",
    }
