"""What is said is distributed as the target's own words, and the check is able to fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from edgespec.core import acceptance
from edgespec.core.acceptance import accept, speculative_sampling
from edgespec.core.acceptance.target import Target
from edgespec.core.draft import Draft
from edgespec.core.drafter import Drafter
from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import Sampling, draw, gumbel_top_k, probabilities
from edgespec.drafting import model as drafting_model
from tests.core.acceptance.distributions import (
    Make,
    answered,
    assert_caught,
    check,
    emitted,
    sigmas,
)
from tests.drafting.test_model import Fixed, Trimmed
from tests.memory_runtime import CertainDrafter, MemoryRuntime, ModelDrafter

Answer = tuple[int, "int | None"]


def plain(target: MemoryRuntime) -> Drafter:
    return CertainDrafter([])


def certain(target: MemoryRuntime) -> Drafter:
    return CertainDrafter([2, 0, 4])


def certain_tree(target: MemoryRuntime) -> Drafter:
    """Twice the same candidate, and a branch that comes before the rest of the first."""
    return CertainDrafter([2, 0, 2, 0, 4, 1, 3, 0], [-1, -1, -1, 0, 0, 1, 3, 4])


def probabilistic(target: MemoryRuntime) -> Drafter:
    return ModelDrafter(target, seed=5)


def drawn_tree(target: MemoryRuntime) -> Drafter:
    return ModelDrafter(target, (3, 2, 1), seed=5)


def another_model(target: MemoryRuntime) -> Drafter:
    """It stops where it is unsure, and learns meanwhile."""
    runtime = MemoryRuntime(vocab_size=7, order=2, scale=1.5, seed=4, pass_sizes=())
    return drafting_model.ModelDrafter(runtime, 5, Fixed(0.02))


def trimmed_model(target: MemoryRuntime) -> Drafter:
    runtime = MemoryRuntime(vocab_size=5, order=2, scale=1.0, seed=3, pass_sizes=())
    return drafting_model.ModelDrafter(Trimmed(runtime, [1, 2, 4]), 5, Fixed(0.02))


@pytest.mark.parametrize(
    "make", [certain, certain_tree, probabilistic, drawn_tree, another_model, trimmed_model]
)
def test_emitted_distribution_is_the_targets(make: Make) -> None:
    assert check(make) > 1_000, "or nothing is tested"


def test_the_check_passes_where_nothing_is_drafted() -> None:
    assert check(plain) == 0


def test_more_candidates_are_accepted_more_often() -> None:
    by_width = [
        emitted(lambda target, w=width: ModelDrafter(target, (w,), seed=5), 1_000)[2]
        for width in (1, 2, 4)
    ]
    assert by_width[0] * 1.1 < by_width[1] < by_width[2] / 1.1


def test_a_draft_cut_by_what_was_drawn_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the drafter avoids: to offer a token only where it is a likely one."""

    def propose(self: drafting_model.ModelDrafter, *arguments: Any) -> Draft:
        draft = whole(self, *arguments)
        q = draft.probabilities
        unlikely = (i for i, t in enumerate(draft.tokens) if q is not None and q[i, t] < 0.4)
        return draft.first(next(unlikely, len(draft)))

    whole = drafting_model.ModelDrafter.propose
    monkeypatch.setattr(drafting_model.ModelDrafter, "propose", propose)
    assert_caught(trimmed_model)


@pytest.mark.parametrize("make", [certain, certain_tree])
@pytest.mark.parametrize("flaw", ["always accepts", "the first of the siblings only"])
def test_a_broken_rule_for_certain_guesses_is_caught(
    make: Make, flaw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(
        row: int,
        siblings: Sequence[int],
        draft: Draft,
        target: Target,
        greedy: bool,
        rng: np.random.Generator,
    ) -> Answer:
        p = target.p(row)
        if not siblings:
            return draw(p, rng), None
        token = draft.tokens[siblings[0]]
        if flaw == "always accepts" or rng.random() < p[token]:
            return token, siblings[0]
        return draw(p, rng), None  # without taking the token out

    monkeypatch.setattr(acceptance, "_verify", broken)
    assert_caught(make)


def broken_verify(flaw: str) -> Callable[..., Answer]:
    def verify(
        candidates: Sequence[int], p: FloatArray, q: FloatArray, rng: np.random.Generator
    ) -> Answer:
        whole = p
        for i, token in enumerate(candidates):
            ratio = p[token] if flaw == "accepts by p alone" else p[token] / q[token]
            if flaw == "always accepts" or rng.random() < ratio:
                return token, i
            residual = np.maximum(q - p if flaw == "the residual's sign" else p - q, 0)
            if flaw == "the residual is not renormalised":
                p = residual
            elif flaw != "p is not reduced":
                p = residual / (residual.sum() or 1)
            if flaw != "q is not reduced":
                q = q * (np.arange(len(q)) != token)
                if flaw != "q is not renormalised":
                    q = q / (q.sum() or 1)
        return draw(whole if flaw == "the answer is drawn from p" or not p.any() else p, rng), None

    return verify


CHAIN_FLAWS = [
    "always accepts",
    "accepts by p alone",
    "the residual's sign",
    "the answer is drawn from p",
]
TREE_FLAWS = [
    "p is not reduced",
    "the residual is not renormalised",
    "q is not reduced",
    "q is not renormalised",
]


@pytest.mark.parametrize(
    ("make", "flaw"),
    [*((probabilistic, flaw) for flaw in CHAIN_FLAWS), (drawn_tree, "accepts by p alone")],
)
def test_a_broken_rule_for_drawn_guesses_is_caught(
    make: Make, flaw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculative_sampling, "verify", broken_verify(flaw))
    assert_caught(make)


def test_the_answer_to_several_candidates_is_the_targets() -> None:
    assert answered(speculative_sampling.verify, with_replacement=False) < 4


@pytest.mark.parametrize("flaw", CHAIN_FLAWS + TREE_FLAWS)
def test_a_broken_rule_for_several_candidates_is_caught(flaw: str) -> None:
    assert answered(broken_verify(flaw), with_replacement=False) > 8


def test_the_broken_rules_differ_from_the_true_one_by_their_flaws_alone() -> None:
    assert answered(broken_verify("none"), with_replacement=False) < 4


def test_candidates_drawn_in_another_way_than_the_rule_takes_them_for_are_caught() -> None:
    """The likeliest first."""

    def sorts(
        candidates: Sequence[int], p: FloatArray, q: FloatArray, rng: np.random.Generator
    ) -> Answer:
        ordered = sorted(candidates, key=lambda token: -q[token])
        token, accepted = speculative_sampling.verify(ordered, p, q, rng)
        return token, None if accepted is None else candidates.index(token)

    assert answered(sorts, with_replacement=False) > 8


def drawn_shallow_tree(target: MemoryRuntime) -> Drafter:
    return ModelDrafter(target, (3, 2), seed=5)


@pytest.mark.parametrize("make", [certain_tree, drawn_shallow_tree])
@pytest.mark.parametrize("flaw", ["the parent's", "the next sibling's"])
def test_an_answer_from_the_wrong_row_is_caught(
    make: Make, flaw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Target.p

    def wrong(self: Target, row: int) -> FloatArray:
        """The target's own answer, where nothing follows."""
        draft = self._draft
        if row and draft.parents and not draft.children()[row]:
            row = draft.parents[row - 1] + 1 if flaw == "the parent's" else min(row + 1, len(draft))
        return right(self, row)

    monkeypatch.setattr(Target, "p", wrong)
    assert_caught(make)


@pytest.mark.parametrize("kind", ["certain", "drawn"])
def test_filters_and_penalty_apply_to_what_is_verified(kind: str) -> None:
    """A drafted token that top-k, top-p or the penalty forbids is never said."""
    logits = np.array([[3.0, 2.0, 1.0, 0.0]] * 3, dtype=np.float32)
    q = np.full((2, 4), 0.25, dtype=np.float32) if kind == "drawn" else None
    rng = np.random.default_rng(0)
    sampling = Sampling(temperature=1.0, top_k=2, repetition_penalty=3.0)
    said = [accept(Draft([3, 0], None, q), logits, sampling, [], rng).tokens for _ in range(300)]
    assert {tokens[0] for tokens in said} == {0, 1}
    # once 0 was said its logit is 1, tied with 2's for the second place
    second = np.zeros(4)
    for _ in range(3000):
        drafted = [0, int(rng.integers(4)) if kind == "drawn" else 0]
        tokens = accept(Draft(drafted, None, q), logits, sampling, [], rng).tokens
        if tokens[0] == 0 and len(tokens) > 1:
            second[tokens[1]] += 1
    wanted = probabilities(logits[:1], sampling, [0])[0] * second.sum()
    assert second[3] == 0
    assert second.sum() > 1000
    assert sigmas(second[:3], wanted[:3]) < 4


def test_the_penalty_sees_the_path_and_not_the_other_branches() -> None:
    logits = np.zeros((4, 3), dtype=np.float32)
    draft = Draft([0, 1, 2], [-1, -1, 1])
    target = Target(draft, logits + 2, Sampling(temperature=1.0, repetition_penalty=2.0), [2])
    e = np.exp(1.0)
    for row, penalised in enumerate([[2], [0, 2], [1, 2], [1, 2]]):
        weights = np.where(np.isin(np.arange(3), penalised), e, e * e)
        np.testing.assert_allclose(target.p(row), weights / weights.sum(), rtol=1e-6)
        assert target.best(row) == min({0, 1, 2} - set(penalised))


@pytest.mark.parametrize("candidates", [[0], [1, 0], [1, 1]])
def test_a_token_that_its_drafter_could_not_have_drawn_is_an_error(candidates: list[int]) -> None:
    p = np.array([0.2, 0, 0.4, 0.4], dtype=np.float32)
    q = np.array([0, 0.5, 0.5, 0], dtype=np.float32)
    with pytest.raises(ValueError, match="probability 0"):
        speculative_sampling.verify(candidates, p, q, np.random.default_rng(0))


def test_p_equal_to_q_is_always_accepted() -> None:
    p = np.array([0.5, 0.25, 0.25, 0], dtype=np.float32)
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert speculative_sampling.verify([1, 0], p, p, rng) == (1, 0)


def test_gumbel_top_k_draws_one_after_the_other_without_replacement() -> None:
    p = np.array([0.5, 0, 0.3, 0.15, 0.05], dtype=np.float32)
    rng = np.random.default_rng(0)
    samples = 20_000
    counts, expected = np.zeros((5,) * 3), np.zeros((5,) * 3)
    for _ in range(samples):
        counts[tuple(gumbel_top_k(p, 3, rng))] += 1
    for a in range(5):
        for b in set(range(5)) - {a}:
            for c in set(range(5)) - {a, b}:
                left_b, left_c = 1 - p[a], 1 - p[a] - p[b]
                expected[a, b, c] = samples * p[a] * p[b] / left_b * p[c] / left_c
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert sigmas(counts[possible], expected[possible]) < 4
    reordered = np.swapaxes(counts, 0, 1)  # the right tokens, in another order
    assert sigmas(reordered[possible], expected[possible]) > 8


def test_gumbel_top_k_gives_no_more_than_there_are() -> None:
    rng = np.random.default_rng(0)
    p = np.array([0.5, 0, 0.5], dtype=np.float32)
    assert sorted(gumbel_top_k(p, 7, rng)) == [0, 2]
    assert gumbel_top_k(p, 0, rng) == []
    assert len(gumbel_top_k(p, 1, rng)) == 1
