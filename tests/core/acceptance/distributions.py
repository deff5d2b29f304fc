"""Whether what is said is distributed as it should be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgespec.core.decoding import decode
from edgespec.core.drafter import Drafter
from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import Sampling, gumbel_top_k
from edgespec.core.scheduler import Scheduler
from tests.drafting.test_model import Fixed
from tests.memory_runtime import MemoryRuntime

STEPS = 3
PROMPT = [0, 3, 1]
Make = Callable[[MemoryRuntime], Drafter]
Verify = Callable[
    [Sequence[int], FloatArray, FloatArray, np.random.Generator], "tuple[int, int | None]"
]


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


def marginals(counts: np.ndarray) -> list[np.ndarray]:
    """Each position's own distribution, then the joint one."""
    axes = range(counts.ndim)
    each = [counts.sum(axis=tuple(a for a in axes if a != axis)) for axis in axes]
    return [*each, counts.ravel()]


def emitted(make: Make, samples: int = 4_000, seed: int = 11) -> tuple[np.ndarray, np.ndarray, int]:
    """Counts of the next three tokens over many answers of the loop, what is expected, and how
    many of the tokens said had been drafted."""
    target = MemoryRuntime(vocab_size=5, order=2, scale=1.0, seed=3, pass_sizes=())
    scheduler = Scheduler([make(target)], Fixed(1.0, 0.1))
    rng = np.random.default_rng(seed)
    sampling = Sampling(temperature=1.0, seed=seed)
    counts, accepted = np.zeros((5,) * STEPS), 0
    for _ in range(samples):
        context = list(PROMPT)
        target.truncate(min(target.length, len(PROMPT) - 1))
        # more than is looked at, so that there is room for trees
        for step in decode(target, scheduler, context, max_tokens=16, sampling=sampling, rng=rng):
            accepted += step.accepted
            if len(context) >= len(PROMPT) + STEPS:
                break
        counts[tuple(context[len(PROMPT) : len(PROMPT) + STEPS])] += 1
    return counts, target.joint(PROMPT, STEPS) * samples, accepted


def check(make: Make) -> int:
    """Assert that what is said is the target's; how many tokens had been drafted."""
    counts, expected, accepted = emitted(make)
    for got, wanted in zip(marginals(counts), marginals(expected), strict=True):
        assert sigmas(got, wanted) < 4
        distance, chance = total_variation(got, wanted)
        assert distance < chance
    return accepted


def assert_caught(make: Make) -> None:
    """Assert that the check is able to fail."""
    counts, expected, _ = emitted(make, 2_000)
    assert sigmas(counts.ravel(), expected.ravel()) > 8
    distance, chance = total_variation(counts.ravel(), expected.ravel())
    assert distance > chance


def answered(verify: Verify, with_replacement: bool) -> float:
    """How far (``sigmas``) the answers to three candidates of one place are from the target's."""
    p = np.array([0.35, 0.05, 0.3, 0.1, 0.2], dtype=np.float32)
    q = np.array([0.1, 0.4, 0.1, 0.3, 0.1], dtype=np.float32)
    rng = np.random.default_rng(0)
    counts, samples = np.zeros(5), 15_000
    for _ in range(samples):
        candidates = [*rng.choice(5, 3, p=q / q.sum(dtype=np.float64))]
        if not with_replacement:
            candidates = gumbel_top_k(q, 3, rng)
        token, accepted = verify(candidates, p, q, rng)
        assert accepted is None or candidates[accepted] == token
        counts[token] += 1
    return sigmas(counts, p * samples)
