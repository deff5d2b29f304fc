from __future__ import annotations

import numpy as np
import pytest

from edgespec.acceptance import accept
from edgespec.draft import Draft
from edgespec.sampling import Sampling

RNG = np.random.default_rng(0)


def logits_saying(*tokens: int, vocab_size: int = 10) -> np.ndarray:
    logits = RNG.normal(0, 1, (len(tokens), vocab_size)).astype(np.float32)
    logits[range(len(tokens)), tokens] = 20
    return logits


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        ([], [3]),
        ([4], [3]),
        ([3], [3, 1]),
        ([3, 1, 4], [3, 1, 4, 1]),
        ([3, 1, 9, 1], [3, 1, 4]),
        ([9, 1, 4, 1], [3]),
    ],
)
def test_accepts_while_the_draft_is_the_argmax(draft: list[int], said: list[int]) -> None:
    logits = logits_saying(3, 1, 4, 1, 5)[: 1 + len(draft)]
    verdict = accept(Draft(draft), logits, Sampling(), [7], np.random.default_rng(0))
    assert verdict.tokens == said
    assert list(verdict.rows) == list(range(len(said)))


def test_the_penalty_sees_earlier_tokens_of_the_draft() -> None:
    logits = np.array([[0, 4, 3, 0]] * 3, dtype=np.float32)
    sampling = Sampling(repetition_penalty=2.0)
    rng = np.random.default_rng(0)
    assert accept(Draft([1, 1]), logits, sampling, [], rng).tokens == [1, 2]
    assert accept(Draft([1, 2]), logits, sampling, [], rng).tokens == [1, 2, 1]
    assert accept(Draft([1, 1]), logits, sampling, [1], rng).tokens == [2]


def test_trees_are_refused_and_a_chain_with_parents_is_not() -> None:
    rng = np.random.default_rng(0)
    logits = logits_saying(3, 1, 4)
    assert accept(Draft([3, 1], [-1, 0]), logits, Sampling(), [7], rng).tokens == [3, 1, 4]
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="tree"):
            accept(Draft([3, 1], [-1, -1]), logits, Sampling(temperature), [7], rng)
