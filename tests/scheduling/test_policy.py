from __future__ import annotations

import pytest

from edgespec.draft import Draft
from edgespec.runtimes import ModelInfo
from edgespec.scheduling.costs import PassCosts, measure
from edgespec.scheduling.policy import cut
from tests.memory_runtime import MemoryRuntime


def info(*pass_sizes: int) -> ModelInfo:
    return ModelInfo("m", "a", 10, 1, 100, 1, "cpu", "memory", pass_sizes)


def learnt(times: dict[int, float]) -> PassCosts:
    costs = PassCosts()
    for size, seconds in times.items():
        for _ in range(4):
            costs.record(size, seconds)
    return costs


STEEP = learnt({n: 0.01 * n for n in range(1, 10)})
FLAT = learnt(dict.fromkeys(range(1, 10), 0.01))


def gamma(confidence: list[float], costs: PassCosts, *pass_sizes: int, nodes: int = 8) -> int:
    draft = Draft(list(range(len(confidence))), confidence=confidence)
    return len(cut(draft, nodes, info(*pass_sizes), costs))


def test_steep_passes_are_never_made_longer_and_flat_ones_always() -> None:
    assert gamma([0.99] * 8, STEEP) == 0
    assert gamma([0.5] * 8, FLAT) > 3
    assert gamma([0.01] * 8, FLAT) == 0


def test_the_length_maximises_tokens_per_second() -> None:
    costs = learnt({n: 0.01 * (1 + 0.2 * (n - 1)) for n in range(1, 10)})
    assert gamma([0.1] * 8, costs) == 0
    assert gamma([0.9, 0.9, 0.1, 0.9], costs) == 2
    assert gamma([0.9] * 8, costs) == 7  # 5.70 / 2.4 against 6.13 / 2.6 for eight


def test_tokens_that_only_fill_padding_are_free() -> None:
    assert gamma([0.01] * 8, STEEP, 2, 4, 8) == 1
    assert gamma([0.01] * 8, STEEP, 4, 8) == 3


def test_never_more_than_the_nodes_and_no_estimate_means_no_cut() -> None:
    assert gamma([1.0] * 8, FLAT, nodes=3) == 3
    assert gamma([1.0] * 8, FLAT, nodes=0) == 0
    assert len(cut(Draft([1, 2, 3]), 8, info(), STEEP)) == 3
    assert len(cut(Draft([1, 2, 3]), 2, info(), STEEP)) == 2
    with pytest.raises(ValueError, match="tree"):
        cut(Draft([1, 2, 3], parents=[-1, -1, -1]), 2, info(), FLAT)


def test_costs_before_anything_is_known_follow_the_prior() -> None:
    costs = PassCosts(slope=0.5)
    assert costs.seconds(1) == 1
    assert costs.seconds(5) == 3


def test_costs_interpolate_and_extrapolate_along_the_prior() -> None:
    costs = learnt({2: 0.04, 6: 0.08})
    halfway = (0.04 / 1.09 + 0.08 / 1.45) / 2
    assert costs.seconds(4) == pytest.approx(1.27 * halfway)
    assert costs.seconds(1) == pytest.approx(0.04 / 1.09)
    assert costs.seconds(11) == pytest.approx(0.08 * 1.9 / 1.45)
    assert costs.seconds(101) == pytest.approx(0.08 * 10 / 1.45)


def test_costs_take_no_notice_of_the_first_pass_nor_of_a_hiccup() -> None:
    costs = PassCosts()
    for seconds in (9.0, 0.03, 0.03, 5.0, 0.03):
        costs.record(1, seconds)
    assert costs.seconds(1) == 0.03


def test_costs_forget_what_is_old() -> None:
    costs = learnt({8: 9.0})
    for _ in range(300):
        costs.record(1, 0.01)
    assert costs.seconds(8) == pytest.approx(0.01 * (1 + 0.09 * 7))


def test_measuring_teaches_the_sizes_that_are_run_and_leaves_the_cache_alone() -> None:
    target = MemoryRuntime(pass_sizes=(2, 4, 8), context=9)
    target.forward([1, 2, 3])
    target.keep([0, 1, 2])
    costs = PassCosts()
    measure(target, costs)
    assert target.passes[1:] == [2, 2, 2, 4, 4, 4], "eight do not fit"
    assert target.tokens == [1, 2, 3]
    assert 0 < costs.seconds(2) < 0.1
