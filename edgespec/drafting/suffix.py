"""Longest match in this conversation: what followed when it last ended like this (CopySpec, prompt
lookup)."""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.core.drafter import Outcome
from edgespec.drafting.suffix_automaton import SuffixAutomaton

_LONGEST = 16
"""Matches of this length and more are one kind."""
_OTHER_PRIOR = 0.1
_STATES = 4
"""Suffixes, the longest first, whose continuations are looked at."""

Placement = tuple[int, int]
"""A state of the automaton, and how long the match is that led there."""


class Suffix:
    """What followed the longest earlier matches, the latest place first.

    A kind is the match's length m, starting from m / (m + 3), about what answers of all kinds show;
    17 + m where something else followed the match more lately. How much one answer copied says little
    of the next, so that the kinds' chances begin again with every prompt.
    """

    name = "suffix"
    priors = (*(m / (m + 3) for m in range(_LONGEST + 1)), *[_OTHER_PRIOR] * (_LONGEST + 1))
    lasting = False

    def __init__(self) -> None:
        self._context: Sequence[int] | None = None
        self._index = SuffixAutomaton()

    def start(self, context: Sequence[int]) -> Placement:
        if context is not self._context or len(context) < self._index.size:
            self._context, self._index = context, SuffixAutomaton()
        for position in range(self._index.size, len(context)):
            self._index.append(context[position])
        return self._index.place

    def successors(self, place: Placement, count: int) -> Sequence[tuple[int, int]]:
        index, found = self._index, dict[int, int]()
        state, match = place
        for _ in range(_STATES):
            if state <= 0 or len(found) >= count:
                break
            kind = min(match, _LONGEST)
            for token in index.latest[state]:
                found.setdefault(token, kind if not found else kind + _LONGEST + 1)
            state = index.link[state]
            match = index.length[state]
        return list(found.items())[:count]

    def advance(self, place: Placement, token: int) -> Placement:
        return self._index.step(place, token)

    def observe(self, outcome: Outcome) -> None:
        """Nothing to learn: what was said comes with the context."""
