from __future__ import annotations

import time

import numpy as np
import pytest

from edgespec.drafting.suffix_automaton import SuffixAutomaton


def longest_earlier_match(tokens: list[int]) -> int:
    """The definition, by brute force: the longest suffix that also ends earlier."""
    n = len(tokens)
    best = 0
    for end in range(n - 1):
        length = 0
        while length <= end and tokens[end - length] == tokens[n - 1 - length]:
            length += 1
        best = max(best, length)
    return best


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_finds_the_longest_match_after_every_token(vocabulary: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocabulary, 120).tolist()
    tokens += tokens[30:80]
    index = SuffixAutomaton()
    for i, token in enumerate(tokens):
        index.append(token)
        said = tokens[: i + 1]
        assert index.size == i + 1
        assert index.match == longest_earlier_match(said)
        if index.match:
            assert index.end < i
            assert said[index.end - index.match + 1 : index.end + 1] == said[-index.match :]


def test_prefers_the_latest_place() -> None:
    index = SuffixAutomaton()
    for token in [1, 2, 7, 1, 2, 8, 1, 2]:
        index.append(token)
    assert (index.match, index.end) == (2, 4)


@pytest.mark.parametrize("kind", ["one token", "two tokens", "text"])
def test_time_does_not_grow_with_the_context(kind: str) -> None:
    size = 40_000
    words = {"one token": 1, "two tokens": 2, "text": 5000}[kind]
    tokens = np.random.default_rng(0).integers(0, words, size).tolist()
    index, quarters = SuffixAutomaton(), []
    for quarter in range(4):
        started = time.perf_counter()
        for token in tokens[quarter * size // 4 : (quarter + 1) * size // 4]:
            index.append(token)
        quarters.append(time.perf_counter() - started)
    assert quarters[-1] < 4 * min(quarters) + 0.05  # a rescan would make it 7 times the first
