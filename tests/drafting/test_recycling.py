from __future__ import annotations

import numpy as np
import pytest

from edgespec.core.draft import EMPTY, Draft
from edgespec.core.drafter import Outcome
from edgespec.drafting.recycling import Recycling

V = 40


def row(*tokens: int, vocab_size: int = V, step: float = 3.0) -> np.ndarray:
    """Logits whose likeliest tokens these are, ``step`` apart."""
    logits = np.full(vocab_size, -100.0, np.float32)
    for rank, token in enumerate(tokens):
        logits[token] = 10 - step * rank
    return logits


def observe(source: Recycling, last: int, draft: Draft, *rows: np.ndarray) -> None:
    source.start([0, last])
    source.observe(Outcome(draft, 0, [0], np.stack(rows)))


def after(source: Recycling, token: int, count: int = 8) -> list[int]:
    return [guess for guess, _ in source.successors(source.start([token]), count)]


def test_the_eight_likeliest_of_a_row_in_their_order() -> None:
    source, logits = Recycling(V), np.random.default_rng(0).standard_normal(V).astype(np.float32)
    observe(source, 5, EMPTY, logits)
    assert after(source, 5) == np.argsort(-logits)[:8].tolist()
    assert after(source, 5, 3) == np.argsort(-logits)[:3].tolist()
    for other in set(range(V)) - {5}:
        assert after(source, other) == []


def test_rows_of_a_tree_are_learnt_by_their_tokens_those_of_rejected_branches_too() -> None:
    """Row 0 is the context's last token's, row i + 1 the draft's token i's, whatever its parent."""
    source = Recycling(V)
    tree = Draft([11, 12, 13, 14], parents=[-1, -1, 0, 1])
    first = [20, 21, 22, 23, 24]
    observe(source, 10, tree, *(row(token, 30) for token in first))
    for token, best in zip((10, *tree.tokens), first, strict=True):
        assert after(source, token, 2) == [best, 30]


def test_a_tokens_rows_count_half_as_much_as_the_ones_after_them() -> None:
    """Halves, then quarters: what many rows favoured stays, and what none favours any more goes."""
    source = Recycling(V)
    observe(source, 7, Draft([7, 8]), row(1, 2), row(3, 1), row(5, 6))
    assert after(source, 7, 3) == [1, 3, 2]  # a half and a bit, a half, a bit
    observe(source, 7, EMPTY, row(9, 1))
    assert after(source, 7, 3) == [9, 1, 3]
    assert source._shares[7, :3] == pytest.approx([0.476, 0.274, 0.238], abs=0.001)
    for _ in range(20):
        observe(source, 7, EMPTY, row(*range(20, 28), step=0.5))
    assert after(source, 7) == list(range(20, 28))
    assert source._shares[7].sum() == pytest.approx(1, abs=1e-4)


def test_a_walk_goes_on_from_the_guess() -> None:
    source = Recycling(V)
    observe(source, 1, Draft([2]), row(2, 3), row(4, 5))
    place = source.advance(source.start([1]), 2)
    assert [token for token, _ in source.successors(place, 2)] == [4, 5]
    assert source.successors(source.advance(place, 4), 2) == []


def test_a_kind_is_a_guesss_rank_and_its_share_in_tenths() -> None:
    source = Recycling(V)
    observe(source, 1, EMPTY, row(2, 3, 4, 5, 6, step=np.log(2.0)))  # 16, 8, 4, 2 and 1 of 31
    kinds = [kind for _, kind in source.successors(source.start([1]), 8)]
    assert kinds[:6] == [5, 11 + 2, 22 + 1, 33, 33, 33]
    observe(source, 2, EMPTY, row(3, step=200.0))  # a whole share
    assert source.successors(source.start([2]), 1) == [(3, 10)]
    assert len(source.priors) == 44
    assert source.priors[:11] == sorted(source.priors[:11])
    assert 0 < min(source.priors) < max(source.priors) < 1


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 7, 8, 9])
def test_tiny_vocabularies(vocab_size: int) -> None:
    source = Recycling(vocab_size)
    logits = np.arange(vocab_size, dtype=np.float32)
    observe(source, 0, EMPTY, logits)
    assert after(source, 0) == list(range(vocab_size))[::-1][:8]


def test_ties_are_different_tokens() -> None:
    source = Recycling(V)
    observe(source, 0, EMPTY, np.zeros(V, np.float32))
    found = source.successors(source.start([0]), 8)
    assert len({token for token, _ in found}) == 8
    assert found[0][1] == 1, "an eighth: not sure of the first at all"
    observe(source, 1, EMPTY, np.repeat(np.float32([1, 0]), V // 2))
    assert {*after(source, 1)} <= {*range(V // 2)}


def test_nothing_computed_nothing_learnt() -> None:
    source = Recycling(V)
    source.start([3])
    source.observe(Outcome(EMPTY, 0, [1], np.empty((0, 0), np.float32)))
    assert after(source, 3) == []
