from __future__ import annotations

import numpy as np
import pytest

from edgespec.core.acceptance import accept
from edgespec.core.draft import Draft
from edgespec.core.sampling import Sampling

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
    verification = accept(Draft(draft), logits, Sampling(), [7], np.random.default_rng(0))
    assert verification.tokens == said
    assert list(verification.rows) == list(range(len(said)))


def test_the_penalty_sees_earlier_tokens_of_the_draft() -> None:
    logits = np.array([[0, 4, 3, 0]] * 3, dtype=np.float32)
    sampling = Sampling(repetition_penalty=2.0)
    rng = np.random.default_rng(0)
    assert accept(Draft([1, 1]), logits, sampling, [], rng).tokens == [1, 2]
    assert accept(Draft([1, 2]), logits, sampling, [], rng).tokens == [1, 2, 1]
    assert accept(Draft([1, 1]), logits, sampling, [1], rng).tokens == [2]


def test_a_chain_with_parents_is_a_chain() -> None:
    verification = accept(
        Draft([3, 1], [-1, 0]), logits_saying(3, 1, 4), Sampling(), [7], np.random.default_rng(0)
    )
    assert verification.tokens == [3, 1, 4]
    assert list(verification.rows) == [0, 1, 2]


@pytest.mark.parametrize(
    ("tokens", "parents", "said", "rows"),
    [
        ([9, 3], [-1, -1], [3, 8], [0, 2]),  # the second candidate
        ([9, 8], [-1, -1], [3], [0]),  # none of them
        ([9, 3, 7, 2, 8], [-1, -1, 0, 1, 1], [3, 8, 5], [0, 2, 5]),
        ([3, 3, 9, 7, 7], [-1, -1, 0, 0, 1], [3, 7, 4], [0, 1, 4]),  # twice the same: the first
        ([9, 3, 8], [-1, 0, 1], [3], [0]),  # right tokens after a wrong one
    ],
)
def test_a_tree_is_followed_along_the_argmax(
    tokens: list[int], parents: list[int], said: list[int], rows: list[int]
) -> None:
    row_says = {(9, 3): (3, 0, 8), (9, 8): (3, 0, 0), (9, 3, 7, 2, 8): (3, 0, 8, 0, 0, 5)}
    row_says |= {(3, 3, 9, 7, 7): (3, 7, 8, 0, 4, 6), (9, 3, 8): (3, 3, 8, 1)}
    logits = logits_saying(*row_says[tuple(tokens)])
    verification = accept(Draft(tokens, parents), logits, Sampling(), [7], np.random.default_rng(0))
    assert verification.tokens == said
    assert list(verification.rows) == rows


def test_distributions_and_seeds_do_not_matter() -> None:
    q = np.full((2, 10), 0.1, dtype=np.float32)
    logits = logits_saying(3, 8, 1)
    for with_replacement in (False, True):
        draft = Draft([9, 3], [-1, -1], q, with_replacement=with_replacement)
        for seed in range(3):
            verification = accept(draft, logits, Sampling(), [7], np.random.default_rng(seed))
            assert verification.tokens == [3, 1]
