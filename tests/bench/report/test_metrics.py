from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgespec.bench.records.results import PLAIN, Answer, Results, System
from edgespec.bench.report import intervals, metrics
from tests.bench.results import simulated


def answer(prompt: int = 0, **fields: object) -> Answer:
    given = {"system": "x", "category": "c", "turn": 0, "round": 0, "prompt_tokens": 9}
    given |= {"token_ids": [1] * 11, "ttft_s": 0.5, "decode_s": 2.0}
    return Answer(prompt=prompt, **{**given, **fields})  # type: ignore[arg-type]


def results(answers: list[Answer], temperature: float = 0.0) -> Results:
    """A run of "x", whose baseline is ``PLAIN``."""
    x = System("x", "edgespec", baseline=PLAIN)
    x.weight_bytes, x.draft_weight_bytes = 1000, 100
    x.parameters, x.draft_parameters = 400, 100
    systems = {PLAIN: System(PLAIN, "edgespec"), "x": x}
    settings = {"temperature": temperature}
    return Results({}, settings, {}, {}, systems, answers)


def test_what_drafts_gain_is_beside_the_same_process_passes() -> None:
    """One answer has eight passes over a token of 0.1 s; another has none, and takes those of its round."""
    slow = {
        "by_rows": {1: [8, 8, 0.8], 2: [2, 3, 0.24]},
        "drafted": 2,
        "pass_s": 1.04,
        "draft_s": 0.02,
    }
    quick = {"by_rows": {4: [3, 11, 0.6]}, "drafted": 9, "pass_s": 0.6, "draft_s": 0.0}
    found = metrics.gain(results([answer(0, **slow, own_s=0.04), answer(1, **quick)]), "x")
    assert found is not None
    assert found.value == pytest.approx(math.sqrt((11 * 0.1 / 1.1) * (11 * 0.1 / 0.6)))
    # another process, twice as slow in all that it does, has the same
    twice = {"by_rows": {1: [9, 9, 1.8]}, "drafted": 2, "pass_s": 2.2, "round": 1}
    alone = metrics.gain(results([answer(0, **twice)]), "x")
    assert alone is not None
    assert alone.value == pytest.approx(11 * 0.2 / 2.2)
    assert metrics.gain(results([answer(0, **slow | {"drafted": 0})]), "x") is None
    assert metrics.gain(results([answer(0, drafted=3)]), "x") is None


def test_figures_of_a_trace_are_those_computed_by_hand() -> None:
    """Two answers. The first: 11 tokens in 5 passes, γ = 4, drafted by the model (three times) and looked up
    (once), and a pass without a draft; accepted 2 + 4 + 0 and 0. The second: 3 tokens in 3 passes, no draft."""
    first = answer(
        0,
        passes=5,
        draft_passes=12,
        drafted=16,
        accepted=6,
        first_tokens=3,
        cpu_s=5.5,
        energy_j=22.0,
    )
    first.by_drafter.update({"model": [12, 6], "suffix": [4, 0]})
    second = answer(
        1,
        token_ids=[1, 2, 3],
        passes=3,
        draft_passes=0,
        drafted=0,
        accepted=0,
        cpu_s=1.5,
        energy_j=6.0,
    )
    found = metrics.measure(results([first, replace(second, ttft_s=0.7)]), "x")
    values = {
        name: estimate.value
        for name, estimate in vars(found).items()
        if isinstance(estimate, intervals.Estimate)
    }
    assert values == pytest.approx(
        {
            "ttft_s": 0.6,
            "rate": (8 / 2 + 2 / 2) / 2,
            "tau": 14 / 8,
            "alpha": 6 / 16,
            "mbsu_bytes": 1.75 / (1 + 1.5 * 0.1),
            "mbsu_parameters": 1.75 / (1 + 1.5 * 0.25),
            "cpu_s_per_token": 0.5,
            "energy_j_per_token": 2.0,
        }
    )
    assert {name: e.value for name, e in found.alpha_by_drafter.items()} == {
        "model": 0.5,
        "suffix": 0,
    }
    assert (found.answers, found.passes) == (2, 8)
    assert math.isinf(found.tau.high)  # two prompts  # type: ignore[union-attr]


def test_what_is_not_told_is_absent() -> None:
    found = metrics.measure(results([answer(i) for i in range(6)]), "x")
    assert found.tau is found.alpha is found.mbsu_bytes is found.passes is None
    assert found.cpu_s_per_token is found.energy_j_per_token is None
    unknown = results([answer(passes=5, draft_passes=3)])
    unknown.systems["x"].draft_weight_bytes = None
    assert metrics.measure(unknown, "x").mbsu_bytes is None
    assert metrics.measure(unknown, "x").mbsu_parameters is not None
    assert metrics.measure(results([]), "x").rate is None
    assert metrics.measure(results([answer(first_tokens=11)]), "x").rate is None


def test_without_draft_passes_mbsu_is_tau() -> None:
    run = results([answer(passes=4, draft_passes=0)])
    run.systems["x"].draft_weight_bytes = None
    found = metrics.measure(run, "x")
    assert found.mbsu_bytes == found.tau


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    for statistic, truth in ((intervals.geometric_mean, 1.0), (intervals.median, 1.0)):
        held = 0
        for _ in range(250):
            found = intervals.bootstrap(np.exp(rng.normal(0, 0.3, (30, 1))), statistic)
            assert found is not None
            held += found.low <= truth <= found.high
        assert 0.91 <= held / 250 <= 0.98


def test_rounds_of_a_prompt_are_not_more_prompts() -> None:
    once = [answer(i, decode_s=1 + i / 10, passes=5 + i % 3) for i in range(8)]
    four = [replace(a, round=r) for r in range(4) for a in once]
    assert metrics.block_efficiency(once) == metrics.block_efficiency(four)
    one, many = (metrics.measure(results(answers), "x") for answers in (once, four))
    assert one.rate == many.rate
    assert one.rate.high - one.rate.low > 0.5  # type: ignore[union-attr, operator]


def test_pairs_cancel_what_the_machine_did() -> None:
    """Each prompt met a machine of another pace, and the system is 1.5 times as fast as its baseline."""
    paces = np.random.default_rng(2).uniform(0.5, 2, 12)
    plain = [answer(i, system=PLAIN, decode_s=3 * p) for i, p in enumerate(paces)]
    system = [answer(i, decode_s=2 * p) for i, p in enumerate(paces)]
    lone = answer(99, decode_s=0.001)
    found = metrics.measure(results([*plain, *system, lone]), "x").against_baseline
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_worst_prompt() -> None:
    plain = [answer(i, system=PLAIN, category="ab"[i % 2]) for i in range(4)]
    system = [replace(a, system="x", decode_s=[1.0, 1.0, 1.0, 4.0][a.prompt]) for a in plain]
    found = metrics.measure(results([*plain, *system]), "x").worst
    assert found == metrics.Worst(3, "b", pytest.approx(0.5))
    assert metrics.worst(results([*plain, *system]), PLAIN) is None


def test_equal_answers_and_where_the_others_part() -> None:
    plain = [answer(i, system=PLAIN, token_ids=[1, 2, 3, 4]) for i in range(3)]
    plain += [replace(plain[2], turn=1)]
    said = [[1, 2, 3, 4], [1, 2, 9, 4], [1, 2, 3], [7]]
    system = [replace(a, system="x", token_ids=t) for a, t in zip(plain, said, strict=True)]
    found = metrics.measure(results([*plain, *system]), "x").equality
    assert found is not None
    # the second turn of prompt 2 followed an answer that differed
    assert (found.share.value, found.answers, found.common) == (pytest.approx(1 / 3), 3, 2.5)
    assert metrics.measure(results([*plain, *system], 0.7), "x").equality is None


def test_a_category_is_its_own() -> None:
    run = simulated()
    assert metrics.categories(run) == ["chat", "code", "summarizing"]
    parts = [metrics.measure(run, "edgespec model", c) for c in metrics.categories(run)]
    assert sum(p.answers for p in parts) == metrics.measure(run, "edgespec model").answers == 60
    assert parts[0].tau.value < parts[1].tau.value < parts[2].tau.value  # type: ignore[union-attr]


@pytest.mark.parametrize("sigma", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_scatter_is_the_noise_of_an_answer(sigma: float, rounds: int) -> None:
    found = metrics.noise(simulated(noise=sigma, drift=0, prompts=60 // rounds, rounds=rounds))
    assert found is not None
    assert found.scatter == pytest.approx(sigma, rel=0.25)


def test_a_noisy_run_is_called_so() -> None:
    assert metrics.noise_warning(simulated()) is None
    assert "cannot separate less than" in str(metrics.noise_warning(simulated(noise=0.5)))
    assert "moved by" in str(metrics.noise_warning(simulated(drift=1.0)))
    assert "too few answers" in str(metrics.noise_warning(simulated(prompts=1, rounds=1)))
    assert "too few answers" in str(metrics.noise_warning(results([])))
