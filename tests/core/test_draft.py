"""What acceptance is given: chains, trees and their beginnings."""

from __future__ import annotations

import numpy as np
import pytest

from edgespec.core.draft import EMPTY, Draft

PARENTS = [-1, 0, -1, 1, 1, 2]


def tree() -> Draft:
    q = np.arange(12, dtype=np.float32).reshape(6, 2)
    return Draft([5, 6, 7, 8, 9, 5], PARENTS, q, [0.5] * 6, 2.5, with_replacement=True)


def test_children_are_listed_by_row() -> None:
    assert tree().children() == [[0, 2], [1], [3, 4], [5], [], [], []]
    assert Draft([1, 2, 3]).children() == [[0], [1], [2], []]
    assert Draft([1, 2, 3], [-1, 0, 1]).children() == [[0], [1], [2], []]
    assert EMPTY.children() == [[]]


def test_depth_and_chains() -> None:
    assert tree().depth() == 3
    assert not tree().is_chain
    assert Draft([1, 2, 3]).depth() == Draft([1, 2, 3], [-1, 0, 1]).depth() == 3
    assert Draft([1, 2, 3], [-1, 0, 1]).is_chain
    assert Draft([1, 2, 3], [-1, -1, -1]).depth() == 1
    assert EMPTY.depth() == 0
    assert EMPTY.is_chain


@pytest.mark.parametrize("count", range(8))
def test_the_first_of_a_tree_are_a_tree(count: int) -> None:
    draft = tree().first(count)
    assert list(draft.tokens) == [5, 6, 7, 8, 9, 5][:count]
    assert draft.parents is not None
    assert list(draft.parents) == PARENTS[:count]
    assert draft.confidence == [0.5] * min(count, 6)
    assert draft.probabilities is not None
    np.testing.assert_array_equal(draft.probabilities, tree().probabilities[:count])
    assert draft.with_replacement
    assert draft.expected == [0, 1, 2, 2, 2.5, 2.5, 2.5, 2.5][count]  # no more than its depth


def test_the_first_of_a_chain() -> None:
    draft = Draft([1, 2, 3], expected=1.5)
    assert draft.first(2) == Draft([1, 2], expected=1.5)
    assert draft.first(1) == Draft([1], expected=1)
    assert draft.first(3) is draft
    assert draft.first(0) == Draft([])
