"""What is said is distributed as the target's own words, and the check is able to fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgespec.acceptance import speculative_sampling
from edgespec.decoding import decode
from edgespec.draft import Draft
from edgespec.drafting import Drafter
from edgespec.drafting import model as drafting_model
from edgespec.runtimes import FloatArray
from edgespec.sampling import Sampling, draw, probabilities
from edgespec.scheduling.policy import Scheduler
from tests.drafting.test_model import Fixed, Trimmed
from tests.memory_runtime import CertainDrafter, MemoryRuntime, ModelDrafter

Rule = Callable[[int, FloatArray, "FloatArray | None", np.random.Generator], int]
SAMPLES = 6_000
STEPS = 3
PROMPT = [0, 3, 1]


def sigmas(counts: np.ndarray, expected: np.ndarray) -> float:
    """How unlikely Pearson's chi-squared is, in standard deviations (Wilson and Hilferty 1931)."""
    enough = expected >= 5
    pooled = [(counts[enough], expected[enough])]
    if not enough.all():
        pooled.append((counts[~enough].sum(keepdims=True), expected[~enough].sum(keepdims=True)))
    chi2 = sum(float(((c - e) ** 2 / e).sum()) for c, e in pooled)
    df = sum(c.size for c, _ in pooled) - 1
    return float(((chi2 / df) ** (1 / 3) - (1 - 2 / (9 * df))) / np.sqrt(2 / (9 * df)))


def total_variation(counts: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The distance of the counts from what is expected, and what chance alone gives at most."""
    n = expected.sum()
    distance = float(np.abs(counts - expected).sum() / (2 * n))
    p = expected / n
    # the mean of |N(0, p (1-p) / n)| over the cells, and three deviations (McDiarmid)
    chance = float(np.sqrt(2 * p * (1 - p) / (np.pi * n)).sum() / 2)
    return distance, chance + 3 / np.sqrt(4 * n)


def emitted(make: Callable[[MemoryRuntime], Drafter], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the next three tokens over many answers of the loop, and what is expected."""
    target = MemoryRuntime(vocab_size=5, order=2, scale=1.0, seed=3, pass_sizes=())
    scheduler = Scheduler([make(target)], Fixed(1.0, 0.1))
    rng = np.random.default_rng(seed)
    sampling = Sampling(temperature=1.0, seed=seed)
    counts, drafted = np.zeros((5,) * STEPS), 0
    for _ in range(SAMPLES):
        context = list(PROMPT)
        target.truncate(min(target.length, len(PROMPT) - 1))
        for step in decode(
            target, scheduler, context, max_tokens=STEPS + 1, sampling=sampling, rng=rng
        ):
            drafted += step.drafted
        counts[tuple(context[len(PROMPT) : len(PROMPT) + STEPS])] += 1
    assert make is plain or drafted > SAMPLES, "or nothing is tested"
    return counts, target.joint(PROMPT, STEPS) * SAMPLES


def plain(target: MemoryRuntime) -> Drafter:
    return CertainDrafter([])


def certain(target: MemoryRuntime) -> Drafter:
    return CertainDrafter([2, 0, 4])


def probabilistic(target: MemoryRuntime) -> Drafter:
    return ModelDrafter(target, length=3, seed=5)


def another_model(target: MemoryRuntime) -> Drafter:
    """It stops where it is unsure, and learns meanwhile."""
    runtime = MemoryRuntime(vocab_size=7, order=2, scale=1.5, seed=4, pass_sizes=())
    return drafting_model.ModelDrafter(runtime, 5, Fixed(0.02))


def trimmed_model(target: MemoryRuntime) -> Drafter:
    runtime = MemoryRuntime(vocab_size=5, order=2, scale=1.0, seed=3, pass_sizes=())
    return drafting_model.ModelDrafter(Trimmed(runtime, [1, 2, 4]), 5, Fixed(0.02))


DRAFTERS = [plain, certain, probabilistic, another_model, trimmed_model]


def marginals(counts: np.ndarray) -> list[np.ndarray]:
    """Each position's own distribution, then the joint one."""
    axes = range(counts.ndim)
    each = [counts.sum(axis=tuple(a for a in axes if a != axis)) for axis in axes]
    return [*each, counts.ravel()]


@pytest.mark.parametrize("make", DRAFTERS)
def test_emitted_distribution_is_the_targets(make: Callable[[MemoryRuntime], Drafter]) -> None:
    counts, expected = emitted(make, seed=11)
    for got, wanted in zip(marginals(counts), marginals(expected), strict=True):
        assert sigmas(got, wanted) < 4
        distance, chance = total_variation(got, wanted)
        assert distance < chance


def test_a_draft_cut_by_what_was_drawn_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the drafter avoids: to offer a token only where it is a likely one."""

    def propose(self: drafting_model.ModelDrafter, *arguments: Any) -> Draft:
        draft = whole(self, *arguments)
        q = draft.probabilities
        unlikely = (i for i, t in enumerate(draft.tokens) if q is not None and q[i, t] < 0.4)
        return draft.first(next(unlikely, len(draft)))

    whole = drafting_model.ModelDrafter.propose
    monkeypatch.setattr(drafting_model.ModelDrafter, "propose", propose)
    counts, expected = emitted(trimmed_model, seed=11)
    assert sigmas(counts.ravel(), expected.ravel()) > 8


def always_accept(token: int, p: FloatArray, q: FloatArray | None, rng: np.random.Generator) -> int:
    return token


def answer_from_p(token: int, p: FloatArray, q: FloatArray | None, rng: np.random.Generator) -> int:
    """After a rejection draw from p: q is not subtracted, a certain token is not taken out."""
    ratio = p[token] / (1.0 if q is None else q[token])
    return token if rng.random() < ratio else draw(p, rng)


def accept_by_p_alone(
    token: int, p: FloatArray, q: FloatArray | None, rng: np.random.Generator
) -> int:
    """Treat a drawn token as a certain one: accept with p instead of p/q."""
    if rng.random() < p[token] * (0.7 if q is None else 1.0):
        return token
    q = np.eye(len(p), dtype=np.float32)[token] if q is None else q
    return draw(np.maximum(p - q, 0), rng)


def wrong_residual(
    token: int, p: FloatArray, q: FloatArray | None, rng: np.random.Generator
) -> int:
    """The residual's sign is wrong: max(0, q - p)."""
    q = np.eye(len(p), dtype=np.float32)[token] if q is None else q
    if rng.random() * q[token] < p[token]:
        return token
    return draw(np.maximum(q - p, 0), rng)


@pytest.mark.parametrize("make", [certain, probabilistic])
@pytest.mark.parametrize("rule", [always_accept, answer_from_p, accept_by_p_alone, wrong_residual])
def test_the_check_catches_a_broken_rule(
    make: Callable[[MemoryRuntime], Drafter], rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speculative_sampling, "verify", rule)
    counts, expected = emitted(make, seed=11)
    joint, wanted = counts.ravel(), expected.ravel()
    distance, chance = total_variation(joint, wanted)
    assert sigmas(joint, wanted) > 8
    assert distance > chance


@pytest.mark.parametrize("kind", ["certain", "drawn"])
def test_filters_and_penalty_apply_to_what_is_verified(kind: str) -> None:
    """A drafted token that top-k, top-p or the penalty forbids is never said."""
    logits = np.array([[3.0, 2.0, 1.0, 0.0]] * 3, dtype=np.float32)
    q = np.full((2, 4), 0.25, dtype=np.float32) if kind == "drawn" else None
    rng = np.random.default_rng(0)
    sampling = Sampling(temperature=1.0, top_k=2, repetition_penalty=3.0)
    said = [
        speculative_sampling.accept(Draft([3, 0], None, q), logits, sampling, [], rng)
        for _ in range(300)
    ]
    assert {tokens[0] for tokens in said} == {0, 1}
    # once 0 was said its logit is 1, tied with 2's for the second place
    second = np.zeros(4)
    for _ in range(3000):
        drafted = [0, int(rng.integers(4)) if kind == "drawn" else 0]
        tokens = speculative_sampling.accept(Draft(drafted, None, q), logits, sampling, [], rng)
        if tokens[0] == 0 and len(tokens) > 1:
            second[tokens[1]] += 1
    wanted = probabilities(logits[:1], sampling, [0])[0] * second.sum()
    assert second[3] == 0
    assert second.sum() > 1000
    assert sigmas(second[:3], wanted[:3]) < 4


def test_a_token_that_its_drafter_could_not_have_drawn_is_an_error() -> None:
    p = np.full(4, 0.25, dtype=np.float32)
    q = np.array([0, 1, 0, 0], dtype=np.float32)
    with pytest.raises(ValueError, match="probability 0"):
        speculative_sampling.verify(0, p, q, np.random.default_rng(0))


def test_p_equal_to_q_is_always_accepted() -> None:
    p = np.array([0.5, 0.25, 0.25, 0], dtype=np.float32)
    rng = np.random.default_rng(0)
    assert all(speculative_sampling.verify(1, p, p, rng) == 1 for _ in range(200))
