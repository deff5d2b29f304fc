"""Entropy-switched decoding trusts a draft that is sure, and is never the default."""

from __future__ import annotations

import numpy as np
import pytest

from edgespec.core.acceptance import accept, entropy
from edgespec.core.acceptance.entropy import THRESHOLD, WINDOW
from edgespec.core.decoding import decode
from edgespec.core.draft import Draft
from edgespec.core.sampling import Sampling, draw, gumbel_top_k
from edgespec.core.scheduler import Scheduler
from tests.core.acceptance.distributions import sigmas
from tests.drafting.test_model import Fixed
from tests.memory_runtime import CertainDrafter, MemoryRuntime, ModelDrafter

SURE = [0.95, 0.05, 0, 0]  # 0.29 bits
UNEVEN = [0.4, 0.4, 0.1, 0.1]  # 1.7 bits
UNSURE = [0.25, 0.25, 0.25, 0.25]  # 2 bits
SAMPLED = Sampling(temperature=1.0)
NEVER = np.array([[-9, -9, -9, 9]] * 9, dtype=np.float32)  # the target says 3 and nothing else


def taken(*rows: list[float], temperature: float = 1.0) -> int:
    """How many tokens are accepted of a chain of 0s drawn from ``rows``, all of them wrong."""
    draft = Draft([0] * len(rows), probabilities=np.array(rows, dtype=np.float32))
    logits = NEVER[: len(rows) + 1]
    sampling = Sampling(temperature=temperature)
    verification = accept(draft, logits, sampling, [7], np.random.default_rng(0), rule="entropy")
    assert verification.tokens == [0] * (len(verification.tokens) - 1) + [3]
    assert list(verification.rows) == list(range(len(verification.tokens)))
    return len(verification.tokens) - 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_of_a_sure_draft_are_taken_unverified(temperature: float) -> None:
    assert taken(*[SURE] * 6, temperature=temperature) == 6
    assert taken(UNSURE, SURE, temperature=temperature) == 0


def test_the_mean_over_the_window_decides() -> None:
    some = [0.9, 0.1, 0, 0]  # 0.47 bits
    more = [0.85, 0.15, 0, 0]  # 0.61 bits, which 0.29 before it make up for
    assert THRESHOLD == 0.5
    assert taken(some) == 1
    assert taken(more) == 0
    assert taken(SURE, more) == 2
    assert WINDOW == 5
    certain = [1.0, 0, 0, 0]
    assert taken(*[certain] * 6, UNSURE) == 7  # 2 / 5
    assert taken(certain, certain, UNSURE) == 2  # 2 / 3
    assert taken(*[certain] * 6, UNSURE, UNSURE) == 7  # 4 / 5


def test_drafts_without_distributions_are_verified() -> None:
    for temperature in (0.0, 1.0):
        lossless, entropic = (
            accept(
                Draft([0, 3, 3], [-1, -1, 1]),
                NEVER[:4],
                Sampling(temperature=temperature),
                [7],
                np.random.default_rng(0),
                rule,
            )
            for rule in ("lossless", "entropy")
        )
        assert entropic == lossless
        assert lossless.tokens == [3, 3, 3]


def test_it_is_not_the_default() -> None:
    q = np.array([SURE], dtype=np.float32)
    verification = accept(Draft([0], None, q), NEVER[:2], SAMPLED, [7], np.random.default_rng(0))
    assert verification.tokens == [3]


def emitted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of two tokens, of which the draft is sure of the first alone; what is expected where
    the first is the draft's and the second the target's, and where both are the target's."""
    first, second = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    logits = np.log([first, second, second, second]).astype(np.float32)
    q = np.array([SURE, UNEVEN, UNEVEN], dtype=np.float32)
    rng = np.random.default_rng(0)
    counts, samples = np.zeros((4, 5)), 6_000
    for _ in range(samples):
        draft = Draft([draw(q[0], rng), *gumbel_top_k(q[1], 2, rng)], [-1, 0, 0], q)
        said = accept(draft, logits, SAMPLED, [7], rng, rule="entropy").tokens
        counts[said[0], said[1] if len(said) > 1 else 4] += 1
    second = np.append(second, 0)
    return counts, samples * np.outer(SURE, second), samples * np.outer(first, second)


def test_what_is_said_is_the_drafts_where_it_is_sure_and_else_the_targets() -> None:
    counts, expected, lossless = emitted()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert sigmas(counts[possible], expected[possible]) < 4
    assert sigmas(counts[:, :4].ravel(), lossless[:, :4].ravel()) > 8


@pytest.mark.parametrize("threshold", [0.0, 3.0])
def test_a_switch_at_the_wrong_place_is_caught(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entropy, "THRESHOLD", threshold)
    counts, expected, _ = emitted()
    possible = expected > 0
    assert counts[~possible].sum() or sigmas(counts[possible], expected[possible]) > 8


def test_the_loop_takes_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def accepted(drafter: object, rule: str) -> int:
        target = MemoryRuntime(vocab_size=5, order=2, scale=3.0, seed=3, pass_sizes=())
        steps = decode(
            target,
            Scheduler([drafter], Fixed(1.0, 0.1)),  # type: ignore[list-item]
            [0, 3],
            max_tokens=60,
            sampling=Sampling(temperature=1.0, seed=0),
            rule=rule,  # type: ignore[arg-type]
        )
        return sum(step.accepted for step in steps)

    monkeypatch.setattr(entropy, "THRESHOLD", 9.0)  # everything is sure enough
    target = MemoryRuntime(vocab_size=5)
    assert accepted(ModelDrafter(target), "lossless") < 35
    assert accepted(ModelDrafter(target), "entropy") > 40
    assert accepted(CertainDrafter([2, 0, 4]), "entropy") < 35
