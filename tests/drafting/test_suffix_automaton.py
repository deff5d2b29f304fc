from __future__ import annotations

from copy import deepcopy

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


def followers(tokens: list[int], suffix: list[int]) -> tuple[int, ...]:
    """By brute force: what followed ``suffix``, the latest first, three different tokens at most."""
    places = range(len(tokens) - len(suffix) - 1, -1, -1)
    found = [tokens[i + len(suffix)] for i in places if tokens[i : i + len(suffix)] == suffix]
    return tuple(dict.fromkeys(found))[:3]


def stream(vocabulary: int, seed: int) -> list[int]:
    """Random tokens, some of them repeated."""
    tokens = np.random.default_rng(seed).integers(0, vocabulary, 120).tolist()
    return [*tokens, *tokens[30:80]]


def indexed(tokens: list[int]) -> SuffixAutomaton:
    index = SuffixAutomaton()
    for token in tokens:
        index.append(token)
    return index


every_stream = pytest.mark.parametrize(
    ("vocabulary", "seed"), [(v, seed) for v in (1, 2, 3, 10, 1000) for seed in range(3)]
)


@every_stream
def test_finds_the_longest_match_after_every_token(vocabulary: int, seed: int) -> None:
    tokens, index = stream(vocabulary, seed), SuffixAutomaton()
    for i, token in enumerate(tokens):
        index.append(token)
        assert index.size == i + 1
        assert index.place[1] == longest_earlier_match(tokens[: i + 1])


@every_stream
def test_knows_what_followed_a_match_and_its_shorter_suffixes_last(
    vocabulary: int, seed: int
) -> None:
    tokens, index = stream(vocabulary, seed), SuffixAutomaton()
    for i, token in enumerate(tokens):
        index.append(token)
        output = tokens[: i + 1]
        state, match = index.place
        while state > 0:
            assert index.latest[state] == followers(output, output[-match:])
            state = index.link[state]
            match = index.length[state]
    assert index.latest[0] == ()


@every_stream
def test_a_step_leads_where_appending_to_a_copy_would(vocabulary: int, seed: int) -> None:
    tokens, index = stream(vocabulary, seed), SuffixAutomaton()
    random = np.random.default_rng(seed + 100)
    for i, token in enumerate(tokens):
        index.append(token)
        if i % 10:
            continue
        output = tokens[: i + 1]
        for following in {*random.choice(output, 2).tolist(), vocabulary}:
            state, match = index.step(index.place, following)
            copy = deepcopy(index)
            copy.append(following)
            assert match == copy.place[1]
            suffix = [*output, following][len(output) + 1 - match :]
            assert index.latest[state] == (followers(output, suffix) if match else ())


def test_steps_lead_to_the_longest_suffix_of_the_path_that_occurred() -> None:
    random = np.random.default_rng(0)
    tokens = random.integers(0, 3, 80).tolist()
    index = indexed(tokens)
    output = {tuple(tokens[i:j]) for i in range(80) for j in range(i + 1, 81)}
    place, path = index.place, list(tokens)
    for token in random.integers(0, 4, 200).tolist():  # 3 never occurs
        place = index.step(place, token)
        path.append(token)
        longest = max((n for n in range(81) if tuple(path[-n:]) in output), default=0)
        assert place[1] == longest
        assert (place[0] == 0) == (longest == 0)


def test_prefers_the_latest_place() -> None:
    index = indexed([1, 2, 7, 1, 2, 8, 1, 2])
    state, match = index.place
    assert (match, index.latest[state]) == (2, (8, 7))


@pytest.mark.parametrize("kind", ["one token", "two tokens", "text"])
def test_neither_states_nor_work_grow_with_the_context(kind: str) -> None:
    """Following links is what appending spends its time with: so many are read."""

    class Counted(list[int]):
        reads = 0

        def __getitem__(self, at):  # type: ignore[no-untyped-def]
            self.reads += 1
            return super().__getitem__(at)

    size = 8000
    words = {"one token": 1, "two tokens": 2, "text": 5000}[kind]
    tokens = np.random.default_rng(0).integers(0, words, size).tolist()
    index = SuffixAutomaton()
    links = index.link = Counted(index.link)
    most = 0
    for quarter in range(4):
        before = links.reads
        for token in tokens[quarter * size // 4 : (quarter + 1) * size // 4]:
            earlier = links.reads
            index.append(token)
            most = max(most, links.reads - earlier)
        assert links.reads - before <= 40 * size / 4
        assert len(index.link) <= 2 * index.size
    assert most < size / 10
