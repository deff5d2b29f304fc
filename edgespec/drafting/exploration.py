"""Decides when to try drafting again although it is not expected to pay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ExplorationConstants:
    """Constants of exploration. All of them are guesses."""

    explored: float = 0.02
    """Share of all decoding time that trials may cost, beyond what drafting has gained so far."""
    risked: float = 0.15
    """Largest share that one trial may cost of the time since the last trial, and of the time that this
    answer has taken: the answer may be at its end."""
    trials: int = 5
    """Steps of a trial."""
    strong: float = 1.5
    """Expected tokens of another drafter's draft from which no trial replaces it."""


CONSTANTS = ExplorationConstants()


class Exploration:
    """A budget of seconds for trials, filled by a share of decoding time and by what drafting gains."""

    def __init__(self) -> None:
        self._idle_s = self._total_s = self._gained_s = 0.0

    def starts(
        self,
        missing: int,
        answer_s: float,
        draft_s: Callable[[int], float],
        target_s: Callable[[int], float],
    ) -> bool:
        """Whether a trial can be afforded now; counts a step without drafting.

        A trial evaluates the ``missing`` tokens of the context and drafts in a few steps. ``answer_s``: the time
        of this answer so far; ``draft_s`` and ``target_s``: seconds of a pass over so many tokens.
        """
        self._idle_s += target_s(1)
        cost_s = draft_s(missing) + CONSTANTS.trials * (draft_s(1) + target_s(2) - target_s(1))
        spare_s = CONSTANTS.explored * self._total_s + self._gained_s
        if cost_s > min(spare_s, CONSTANTS.risked * self._idle_s, CONSTANTS.risked * answer_s):
            return False
        self._idle_s = 0.0
        return True

    def record(self, step_s: float, gained_s: float) -> None:
        """Count a step's expected seconds, and what it gained over plain decoding."""
        self._total_s += step_s
        self._gained_s += gained_s
