"""Prompt lookup: what followed the longest earlier match in this conversation (CopySpec)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgespec.core.drafter import Outcome
from edgespec.drafting.suffix_automaton import SuffixAutomaton


@dataclass(frozen=True)
class SuffixConstants:
    """Constants of prompt lookup. Guesses, except for ``prior_tokens``."""

    longest: int = 16
    """Matches of so many tokens and more are one kind."""
    prior_tokens: float = 3.0
    """A match of m tokens has the prior m / (m + this): about what answers of all kinds show."""
    other_prior: float = 0.1
    """Prior of a token where another followed the match more recently."""
    states: int = 4
    """Suffixes, the longest first, for which continuations are looked up."""


CONSTANTS = SuffixConstants()

Placement = tuple[int, int]
"""A state of the automaton, and the length of the match that led there."""


class Suffix:
    """What followed the longest earlier matches, the latest place first.

    A kind is the match's length m; ``longest`` + 1 + m where another token followed the match more recently. One
    answer's copying says little about the next, so the kinds start anew with every prompt.
    """

    name = "suffix"
    persistent = False

    def __init__(self) -> None:
        self._context: Sequence[int] | None = None
        self._index = SuffixAutomaton()
        lengths = range(CONSTANTS.longest + 1)
        self.priors = [m / (m + CONSTANTS.prior_tokens) for m in lengths]
        self.priors += [CONSTANTS.other_prior for _ in lengths]

    def start(self, context: Sequence[int]) -> Placement:
        if context is not self._context or len(context) < self._index.size:
            self._context, self._index = context, SuffixAutomaton()
        for position in range(self._index.size, len(context)):
            self._index.append(context[position])
        return self._index.place

    def successors(self, place: Placement, count: int) -> Sequence[tuple[int, int]]:
        index, found, longest = self._index, dict[int, int](), CONSTANTS.longest
        state, match = place
        for _ in range(CONSTANTS.states):
            if state <= 0 or len(found) >= count:
                break
            kind = min(match, longest)
            for token in index.latest[state]:
                found.setdefault(token, kind if not found else kind + longest + 1)
            state = index.link[state]
            match = index.length[state]
        return list(found.items())[:count]

    def advance(self, place: Placement, token: int) -> Placement:
        return self._index.step(place, token)

    def observe(self, outcome: Outcome) -> None:
        """Nothing to learn: the output tokens come with the context."""
