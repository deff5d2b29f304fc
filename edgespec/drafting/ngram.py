"""Longest match: what followed when the context last ended like this (prompt lookup, CopySpec)."""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.draft import EMPTY, Draft
from edgespec.drafting import Budget, Outcome
from edgespec.drafting.suffix_automaton import SuffixAutomaton

_LONGEST = 16
"""Matches of this length and more share one estimate."""
_PRIOR_WEIGHT = 4.0
"""How many observations the prior is worth."""
_PRIOR_HITS = [_PRIOR_WEIGHT * m / (m + 3) for m in range(_LONGEST + 1)]
_DECAY = 0.9
"""What an observation keeps of its weight at the next one of its kind: the last ten or so count."""


class NgramDrafter:
    """Copies what followed the longest earlier match of the context's end, at its latest place.

    The j-th token copied rests on a match of m + j tokens if those before it were right, so its
    confidence is the estimated acceptance a(m + j). a(m) starts at m / (m + 3), about what answers of all kinds show, and follows
    what the target says, with exponentially forgotten counts (the mean of a Beta posterior). What
    the copy would have been is compared also where the scheduler cut it off, so that the estimates
    go on learning, for nothing, even while nothing is drafted. They begin again with every prompt:
    how much one answer copied says little of the next. The scheduler makes the draft's length of
    these confidences and of what passes cost.
    """

    name = "ngram"

    def __init__(self) -> None:
        self._context: Sequence[int] | None = None
        self._index = SuffixAutomaton()
        self._copy: Sequence[int] = ()
        self._heard = -1  # the context's length if only the target has added to it
        self._hits: list[float] = []
        self._trials: list[float] = []

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        """At most ``budget.nodes`` tokens with confidences; empty where nothing matches."""
        if context is not self._context or len(context) < self._index.size:
            self._context, self._index, self._heard = context, SuffixAutomaton(), -1
        if len(context) != self._heard:  # a prompt came in between
            self._hits, self._trials = list(_PRIOR_HITS), [_PRIOR_WEIGHT] * len(_PRIOR_HITS)
        for position in range(self._index.size, len(context)):
            self._index.append(context[position])
        match = self._index.match
        if not match:
            self._copy = ()
            return EMPTY
        # at least one token is looked at, offered or not, to learn from
        wanted = max(1, budget.nodes)
        start = self._index.end + 1
        copy = list(context[start : start + wanted])
        period = len(context) - start  # a copy that reaches the context's end goes on in circles
        while len(copy) < wanted:
            copy.append(copy[-period])
        self._copy = copy
        if not budget.nodes:
            return EMPTY
        rates = [hits / trials for hits, trials in zip(self._hits, self._trials, strict=True)]
        confidence = [rates[min(match + j, _LONGEST)] for j in range(wanted)]
        return Draft(copy, confidence=confidence)

    def observe(self, outcome: Outcome) -> None:
        """Compare the copy with what was said, up to where they part."""
        self._heard = self._index.size + len(outcome.said)
        match = self._index.match
        for j, (copied, said) in enumerate(zip(self._copy, outcome.said, strict=False)):
            m = min(match + j, _LONGEST)
            self._hits[m] = (
                self._hits[m] * _DECAY + (1 - _DECAY) * _PRIOR_HITS[m] + (copied == said)
            )
            self._trials[m] = self._trials[m] * _DECAY + (1 - _DECAY) * _PRIOR_WEIGHT + 1
            if copied != said:
                break
        self._copy = ()
