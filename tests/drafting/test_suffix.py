from __future__ import annotations

import pytest

from edgespec.drafting.suffix import CONSTANTS, Suffix

OTHER = CONSTANTS.longest + 1
"""Added to the kind of what followed less lately, or a shorter match."""


def guesses(context: list[int], count: int = 4) -> list[tuple[int, int]]:
    source = Suffix()
    return list(source.successors(source.start(context), count))


def test_what_followed_the_longest_match_comes_first_then_that_of_shorter_ones() -> None:
    #          a match of 2: then 3   one of 1: then 4, then 5
    context = [*(1, 2, 3), *(9, 2, 4), *(8, 2, 5), *(7, 1, 2)]
    assert guesses(context) == [(3, 2), (5, 1 + OTHER), (4, 1 + OTHER)]
    assert guesses(context, 2) == [(3, 2), (5, 1 + OTHER)]


def test_what_followed_last_comes_first() -> None:
    context = [5, 1, 2, 3, 6, 1, 2, 4, 7, 1, 2]
    assert guesses(context) == [(4, 2), (3, 2 + OTHER)]
    assert guesses([*context, 3, 8, 1, 2]) == [(3, 2), (4, 2 + OTHER)]


@pytest.mark.parametrize("context", [[], [1], [1, 2, 3]])
def test_nothing_is_guessed_where_nothing_matches(context: list[int]) -> None:
    assert guesses(context) == []


def test_long_matches_are_one_kind() -> None:
    for length in (CONSTANTS.longest, CONSTANTS.longest + 9):
        text = list(range(1, length + 1))
        assert guesses([*text, 100, 0, *text]) == [(100, CONSTANTS.longest)]


def test_every_kind_has_a_prior() -> None:
    assert len(Suffix().priors) == 2 * OTHER
    assert Suffix().priors[2] == 2 / 5
    assert set(Suffix().priors[OTHER:]) == {CONSTANTS.other_prior}
    assert not Suffix.persistent


def test_a_walk_follows_the_context_and_loses_the_match_elsewhere() -> None:
    source = Suffix()
    place = source.start([1, 2, 3, 4, 5, 9, 1, 2])
    longer = source.advance(place, 3)
    assert source.successors(longer, 4) == [(4, 3)]
    other = source.advance(place, 5)
    assert source.successors(other, 4) == [(9, 1)]
    assert source.successors(source.advance(longer, 100), 4) == []
    assert source.successors(place, 4) == [(3, 2)]  # as before


def test_another_list_or_a_shorter_one_is_another_conversation() -> None:
    source, context = Suffix(), [1, 2, 3, 1]
    assert source.successors(source.start(context), 4) == [(2, 1)]
    assert source.successors(source.start([7, 8, 7]), 4) == [(8, 1)]
    assert source.successors(source.start(context), 4) == [(2, 1)]
    del context[1:]
    assert source.successors(source.start(context), 4) == []
    context += [5, 1]
    assert source.successors(source.start(context), 4) == [(5, 1)]
