"""Cascade Speculative Drafting: prompt lookup drafts for the draft model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgespec.drafting.acceptance_estimator import MeanAcceptance


@dataclass(frozen=True)
class CascadeConstants:
    """Constants of prompt lookup for the draft model."""

    match: int = 3
    """Tokens that must match an earlier place. A guess: shorter matches are seldom right."""


CONSTANTS = CascadeConstants()


class Cascade:
    """Guesses the draft model's next tokens, so that one of its passes evaluates several of them.

    A guess is what followed the last ``match`` tokens at their latest earlier place (prompt lookup).
    A guess that the draft model confirms saves it a pass over one token. The number of guesses maximises
    the expected saving less the cost of the longer pass. A guess counts as used if the draft model confirms
    it and is then asked for the next token. On a device where longer passes are expensive, no guess is made.
    For greedy drafts only: a sampled draft cannot be verified by comparison.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self._read = 0  # tokens of the context
        self._used = MeanAcceptance()
        self._tried = False

    def forget(self) -> None:
        """Begin another context."""
        self._places, self._read = {}, 0

    def read(self, context: Sequence[int], stable: int) -> None:
        """Index what was added to ``context``; its first ``stable`` tokens did not change."""
        match = CONSTANTS.match
        for end in range(max(match, min(self._read, stable)), len(context)):
            self._places[tuple(context[end - match : end])] = end
        self._read = len(context)

    def guess(
        self,
        context: Sequence[int],
        drafted: Sequence[int],
        most: int,
        pass_seconds: Callable[[int], float],
    ) -> Sequence[int]:
        """At most ``most`` tokens that may follow ``context`` and ``drafted``; often none."""
        match = CONSTANTS.match
        last = (*context[-match:], *drafted)[-match:]
        place = self._places.get(last)
        if place is None:
            return ()
        best, best_s, saved_s, chance, single_s = 0, 0.0, 0.0, 1.0, pass_seconds(1)
        for count in range(1, most + 1):
            chance *= self._used.rate
            saved_s += chance * single_s
            gain_s = saved_s - (pass_seconds(1 + count) - single_s)
            if gain_s > best_s:
                best, best_s = count, gain_s
        return context[place : place + best]

    def learn(self, used: bool) -> None:
        """Count a guess that was ``used`` or not."""
        self._tried = True
        self._used.learn(used)

    def end(self, unused: bool) -> None:
        """End a draft, in which a guess was left ``unused`` or not."""
        if unused:
            self.learn(False)
        if not self._tried:
            self._used.fade()  # else a guess that is never tried would never pay again
        self._tried = False
