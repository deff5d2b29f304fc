"""Typical acceptance takes what Medusa's paper says, and is never the default."""

from __future__ import annotations

import numpy as np
import pytest

from edgespec.core.acceptance import accept, typical
from edgespec.core.acceptance.typical import DELTA, EPSILON, is_typical
from edgespec.core.decoding import decode
from edgespec.core.draft import Draft
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Scheduler
from tests.core.acceptance.distributions import sigmas
from tests.drafting.test_model import Fixed
from tests.memory_runtime import CertainDrafter, MemoryRuntime

SAMPLED = Sampling(temperature=1.0)


def logits_of(*rows: list[float]) -> np.ndarray:
    """Whose distributions at temperature 1 are ``rows``."""
    return np.log(np.maximum(np.array(rows), 1e-30)).astype(np.float32)


def said(draft: Draft, logits: np.ndarray, rule: str = "typical", seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    return accept(draft, logits, SAMPLED, [7], rng, rule=rule).tokens  # type: ignore[arg-type]


def test_the_thresholds_are_the_papers() -> None:
    assert (EPSILON, DELTA) == (0.09, 0.3)
    sure = np.array([0.8, 0.1, 0.08, 0.02], dtype=np.float32)  # ε is enough
    assert [is_typical(token, sure) for token in range(4)] == [True, True, False, False]
    p = np.array([0.02, *[0.002] * 490], dtype=np.float32)  # δ exp(-H) is, 300 / 487 / 1000 here
    nats = -(p * np.log(p)).sum()
    assert 0.0002 < 0.3 * np.exp(-nats) < 0.002
    assert is_typical(7, p)
    p = np.array([0.0199, 0.0001, *[0.002] * 490], dtype=np.float32)
    assert not is_typical(1, p)


def test_the_likeliest_token_is_always_typical() -> None:
    flat = np.full(1000, 0.001, dtype=np.float32)
    flat[3] *= 1.01
    assert is_typical(3, flat)
    few = np.array([0.5, 0.5, 0], dtype=np.float32)
    assert is_typical(0, few)
    assert not is_typical(2, few)


def test_the_longest_typical_path_is_taken_and_then_the_target_speaks() -> None:
    row = [0.6, 0.2, 0.15, 0.03, 0.02]
    logits = logits_of(*[row] * 8)
    #  0 (0.6), alone · 1 ─ 2 ─ 3 (not typical) · 2 ─ 1 and 0 (likelier)
    draft = Draft([0, 1, 2, 2, 3, 1, 0], [-1, -1, -1, 1, 3, 2, 2])
    verification = accept(draft, logits, SAMPLED, [7], np.random.default_rng(0), rule="typical")
    assert verification.tokens[:2] == [2, 0]
    assert verification.rows == [0, 3, 7]
    assert len(verification.tokens) == 3


def test_what_is_said_is_the_typical_candidate_or_else_a_draw_from_the_target() -> None:
    """Over two steps: a candidate too unlikely to be typical, and one that is after it."""
    first, second = [0.5, 0.4, 0.06, 0.04], [0.3, 0.3, 0.2, 0.2]
    logits = logits_of(first, second, second)
    draft = Draft([2, 3], [-1, 0])
    rng = np.random.default_rng(0)
    counts: np.ndarray = np.zeros((4, 5))  # the second token, or 4 for none
    samples = 10_000
    for _ in range(samples):
        tokens = accept(draft, logits, SAMPLED, [7], rng, rule="typical").tokens
        counts[tokens[0], tokens[1] if len(tokens) > 1 else 4] += 1
    expected = np.zeros((4, 5))
    expected[:, 4] = first
    expected[2, 4], expected[2, 3] = 0, first[2]  # token 3 is taken wherever 2 was drawn
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert sigmas(counts[possible], expected[possible] * samples) < 4
    lossless = np.zeros((4, 5))
    lossless[:, 4], lossless[2] = first, [*(first[2] * np.array(second)), 0]
    assert sigmas(counts.ravel()[lossless.ravel() > 0], samples * lossless[lossless > 0]) > 8


def test_it_is_not_the_default() -> None:
    logits = logits_of([0.8, 0.2], [0.5, 0.5])
    draft = Draft([1])
    assert {said(draft, logits, seed=seed)[0] for seed in range(50)} == {1}
    by_default = [
        accept(draft, logits, SAMPLED, [7], np.random.default_rng(seed)).tokens[0]
        for seed in range(50)
    ]
    assert by_default == [said(draft, logits, "lossless", seed)[0] for seed in range(50)]
    assert set(by_default) == {0, 1}


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_it_loses_nothing(penalty: float) -> None:
    logits = np.array([[0, 4, 3.9, 0]] * 3, dtype=np.float32)
    sampling = Sampling(repetition_penalty=penalty)
    for tokens in ([1, 1], [2, 1], [1, 2], [0, 1]):
        for parents in ([-1, 0], [-1, -1]):
            lossless, lossy = (
                accept(Draft(tokens, parents), logits, sampling, [], np.random.default_rng(0), r)
                for r in ("lossless", "typical")
            )
            assert lossy == lossless


def test_the_loop_takes_the_rule() -> None:
    def accepted(rule: str) -> int:
        target = MemoryRuntime(vocab_size=5, order=2, scale=0.3, seed=3, pass_sizes=())
        scheduler = Scheduler([CertainDrafter([2, 0, 4, 1])], Fixed(1.0, 0.1))
        steps = decode(
            target,
            scheduler,
            [0, 3],
            max_tokens=60,
            sampling=Sampling(temperature=1.0, seed=0),
            rule=rule,  # type: ignore[arg-type]
        )
        return sum(step.accepted for step in steps)

    assert accepted("lossless") < 30
    assert accepted("typical") > 40


def test_a_threshold_that_is_off_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typical, "EPSILON", 0.3)
    monkeypatch.setattr(typical, "DELTA", 1.0)
    with pytest.raises(AssertionError):
        test_the_longest_typical_path_is_taken_and_then_the_target_speaks()
