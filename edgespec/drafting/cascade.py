"""Cascade Speculative Drafting: repetition drafts for the draft model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgespec.drafting.calibration import Mean

_MATCH = 3
"""Tokens that must have occurred before: shorter matches are seldom right."""


class Cascade:
    """Guesses at what a draft model will say, for it to evaluate with the token it said last.

    What followed the last three tokens at their latest place in its context (prompt lookup). A
    guess that the draft model says too saves it a pass of one token, so as many are made as are
    expected to save more than the longer pass takes. How often one is of use, so that the draft model
    not only says it but is asked for what follows, is learnt; on a device where its long passes
    are dear none is ever made. Only for drafts that are not drawn: of a distribution there is
    nothing to be verified by comparing.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self._read = 0  # tokens of the context
        self._mean = Mean()
        self._tried = False

    def forget(self) -> None:
        """Another context begins."""
        self._places, self._read = {}, 0

    def read(self, context: Sequence[int], stable: int) -> None:
        """Take in what was added to ``context``, of which the first ``stable`` tokens did not change."""
        for end in range(max(_MATCH, min(self._read, stable)), len(context)):
            self._places[tuple(context[end - _MATCH : end])] = end
        self._read = len(context)

    def guess(
        self,
        context: Sequence[int],
        drafted: Sequence[int],
        most: int,
        pass_seconds: Callable[[int], float],
    ) -> Sequence[int]:
        """At most ``most`` tokens that may follow ``context`` and ``drafted``; often none."""
        last = (*context[-_MATCH:], *drafted)[-_MATCH:]
        place = self._places.get(last)
        if place is None:
            return ()
        best, best_s, saved_s, chance, single_s = 0, 0.0, 0.0, 1.0, pass_seconds(1)
        for count in range(1, most + 1):
            chance *= self._mean.rate
            saved_s += chance * single_s
            gain_s = saved_s - (pass_seconds(1 + count) - single_s)
            if gain_s > best_s:
                best, best_s = count, gain_s
        return context[place : place + best]

    def learn(self, used: bool) -> None:
        """Count a guess that was, or was not, of use."""
        self._tried = True
        self._mean.learn(used)

    def end(self, unused: bool) -> None:
        """The draft is made, with a guess left ``unused`` or not."""
        if unused:
            self.learn(False)
        if not self._tried:
            self._mean.fade()  # or what it never tries again would never pay
        self._tried = False
