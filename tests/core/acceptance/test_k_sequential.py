"""k-SEQ says the target's words, and the check is able to fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgespec.core.acceptance import k_sequential
from edgespec.core.drafter import Drafter
from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import draw
from tests.core.acceptance.distributions import answered, assert_caught, check, emitted
from tests.memory_runtime import MemoryRuntime, ModelDrafter


def drawn_tree(target: MemoryRuntime) -> Drafter:
    return ModelDrafter(target, (3, 2), with_replacement=True, seed=5)


def test_emitted_distribution_is_the_targets() -> None:
    assert check(drawn_tree) > 1_000, "or nothing is tested"


def test_candidates_that_repeat_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[int]] = []
    verify = k_sequential.verify

    def watched(candidates: Sequence[int], *arguments: object) -> object:
        seen.append(candidates)
        return verify(candidates, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(k_sequential, "verify", watched)
    emitted(drawn_tree, 100)
    assert any(len(set(candidates)) < len(candidates) for candidates in seen)


def test_more_candidates_are_accepted_more_often() -> None:
    by_width = [
        emitted(lambda target, w=width: ModelDrafter(target, (w,), True, seed=5), 1_000)[2]
        for width in (1, 2, 4)
    ]
    assert by_width[0] * 1.1 < by_width[1] < by_width[2] / 1.05


def broken_verify(flaw: str) -> Callable[..., tuple[int, int | None]]:
    def verify(
        candidates: Sequence[int], p: FloatArray, q: FloatArray, rng: np.random.Generator
    ) -> tuple[int, int | None]:
        k = len(candidates)
        gamma = 1.0 if flaw == "γ = 1" else k_sequential.division_factor(p, q, k)
        for i, token in enumerate(candidates):
            if rng.random() < p[token] / q[token] / (1 if flaw == "accepts by p/q" else gamma):
                return token, i
        overlap = np.minimum(q, p / gamma)
        beta = overlap.sum()
        times = {"as if one were tried": 1, "as if tries excluded each other": k}
        said = times.get(flaw, (1 - (1 - beta) ** k) / beta)
        residual = np.maximum(p - said * overlap, 0)
        return draw(p if flaw == "the answer is drawn from p" else residual, rng), None

    return verify


@pytest.mark.parametrize(
    "flaw",
    [
        "γ = 1",
        "accepts by p/q",
        "as if one were tried",
        "as if tries excluded each other",
        "the answer is drawn from p",
    ],
)
def test_a_broken_rule_is_caught(flaw: str) -> None:
    assert answered(broken_verify(flaw), with_replacement=True) > 8


def test_the_broken_rules_differ_from_the_true_one_by_their_flaws_alone() -> None:
    assert answered(broken_verify("none"), with_replacement=True) < 4


def test_the_answer_to_several_candidates_is_the_targets() -> None:
    assert answered(k_sequential.verify, with_replacement=True) < 4


def test_candidates_drawn_without_replacement_are_caught() -> None:
    assert answered(k_sequential.verify, with_replacement=False) > 8


def test_the_loop_catches_a_broken_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_sequential, "verify", broken_verify("as if one were tried"))
    assert_caught(drawn_tree)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_division_factor_is_the_least_that_leaves_nothing_negative(k: int) -> None:
    rng = np.random.default_rng(k)
    for _ in range(20):
        p, q = (rng.dirichlet(np.full(8, 0.5)).astype(np.float32) for _ in range(2))

        def surplus(gamma: float, p: FloatArray = p, q: FloatArray = q) -> float:
            beta = float(np.minimum(q, p / gamma).sum())
            return gamma * beta - (1 - (1 - beta) ** k)

        gamma = k_sequential.division_factor(p, q, k)
        assert 1 <= gamma <= k
        assert surplus(gamma) > -1e-6
        assert gamma == 1 or surplus(gamma - 2e-3) < 0


def test_what_no_candidate_can_be_is_said_by_the_target() -> None:
    p = np.array([0.5, 0.5, 0, 0], dtype=np.float32)
    q = np.array([0, 0, 0.5, 0.5], dtype=np.float32)
    rng = np.random.default_rng(0)
    answers = {k_sequential.verify([2, 2, 3], p, q, rng) for _ in range(100)}
    assert answers == {(0, None), (1, None)}
    with pytest.raises(ValueError, match="probability 0"):
        k_sequential.verify([0], p, q, rng)


def test_p_equal_to_q_is_always_accepted_where_there_is_one_candidate() -> None:
    p = np.array([0.5, 0.25, 0.25, 0], dtype=np.float32)
    rng = np.random.default_rng(0)
    assert all(k_sequential.verify([1], p, p, rng) == (1, 0) for _ in range(200))
