"""Decides how long a draft model drafts: while a further token gains more than it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec.core.drafter import Budget
from edgespec.drafting.acceptance_estimator import (
    GREEDY_PRIOR,
    SAMPLED_PRIOR,
    AcceptanceEstimator,
    MeanAcceptance,
    bin_of,
)


@dataclass(frozen=True)
class StoppingConstants:
    """Constants of the stopping rule. All of them are guesses."""

    recent: float = 0.98
    """Factor on earlier tokens and times, per step: about the last 50 steps make the token rate."""
    answer_prior: float = 50.0
    """Expected tokens of an answer before the first. The first answer should not be half over before it
    is drafted."""
    answer_weight: float = 0.3
    """Weight of the last answer's length in the running mean of lengths."""
    reading_share: float = 0.12
    """Largest share of the expected remaining time that reading the prompt may take. That time is spent for
    certain; the gain is not."""


CONSTANTS = StoppingConstants()


class AnswerLength:
    """Tokens of this answer so far, and how many are expected."""

    def __init__(self) -> None:
        self._start = self._end = -1  # the context's length when the prompt ended, and now
        self._mean = CONSTANTS.answer_prior

    @property
    def tokens(self) -> int:
        """Output tokens of this answer so far."""
        return self._end - self._start

    def is_continued(self, length: int) -> bool:
        """Whether a context of ``length`` tokens has grown by output tokens alone."""
        return length == self._end

    def begin(self, length: int) -> None:
        """A prompt ends at ``length`` tokens of context; learn the last answer's length."""
        if self._end > self._start >= 0:
            self._mean += CONSTANTS.answer_weight * (self._end - self._start - self._mean)
        self._start = self._end = length

    def add(self, tokens: int) -> None:
        """Count output tokens."""
        self._end += tokens

    def expected_left(self, most: int) -> float:
        """Expected further tokens, at most ``most``: as many again, or what recent answers had more."""
        return min(most, max(self.tokens, self._mean - self.tokens))


class StoppingRule:
    """Weighs expected accepted tokens against expected seconds.

    A token pays if what it gains exceeds its seconds times the current token rate (the marginal form of
    goodput: maximising a ratio maximises tokens - rate · seconds). This contains SpecDec++'s rule, a threshold
    on the chance that a drafted token was rejected: the product of the acceptance rates so far is the
    complement of that chance. ``draft_s`` gives the seconds of a draft pass over so many tokens.
    """

    def __init__(self, draft_s: Callable[[int], float]) -> None:
        self.first, self.later = MeanAcceptance(), MeanAcceptance()
        """Acceptance of first tokens, and of later ones where they are reached."""
        self._draft_s = draft_s
        self._estimators = {
            True: AcceptanceEstimator(GREEDY_PRIOR),
            False: AcceptanceEstimator(SAMPLED_PRIOR),
        }
        # Steps, tokens, and times in plain target passes, which the machine's load does not change.
        self._recent: npt.NDArray[np.float64] = np.zeros(3)
        self._budget, self._room = Budget(0), 0
        self._evaluated: list[tuple[int, int]] = []  # this step's tokens and their bins

    def start_step(self, budget: Budget, room: int = 0) -> None:
        """Begin a step in which ``room`` tokens may be drafted."""
        self._budget, self._room = budget, room
        self._evaluated = []

    def acceptance(self, top: float) -> float:
        """Estimated acceptance rate of a token with the draft's top probability ``top``."""
        return self._estimators[self._budget.sampling.greedy].rates[bin_of(top)]

    def add(self, token: int, top: float) -> None:
        """The target's ``token`` was evaluated next; ``observe`` learns from it, offered or not."""
        self._evaluated.append((token, bin_of(top)))

    def learn_unverified(self, rate: float, offered: int) -> None:
        """Count a token that is not verified, after ``offered`` others, by its estimated ``rate``."""
        (self.later if offered else self.first).learn(rate)

    def observe(self, output: Sequence[int], step_s: float) -> float:
        """Learn from the step's output tokens; returns the seconds gained over plain decoding.

        ``step_s``: the draft passes and the target pass of the step.
        """
        estimator = self._estimators[self._budget.sampling.greedy]
        pairs = zip(self._evaluated, output, strict=False)
        for position, ((token, bin), actual) in enumerate(pairs):
            estimator.learn(bin, token == actual)
            (self.later if position else self.first).learn(token == actual)
            if token != actual:
                break
        if len(self._evaluated) == 1:
            self.later.fade()  # else longer drafts, once given up, would never pay again
        self._evaluated = []
        plain_s = self._budget.pass_seconds(1)
        self._recent = CONSTANTS.recent * self._recent + (1, len(output), step_s / plain_s)
        return len(output) * plain_s - step_s

    def forget_half(self) -> None:
        """Before a trial: forget the means, and half of what the estimators learnt."""
        self.first, self.later = MeanAcceptance(), MeanAcceptance()
        for estimator in self._estimators.values():
            estimator.halve()

    def token_rate(self) -> float:
        """Recent tokens per second; no less than plain decoding's."""
        _, tokens, passes = self._recent
        return max(1.0, tokens / passes if passes else 0.0) / self._budget.pass_seconds(1)

    def pays_to_start(self, missing: int, tokens_left: float) -> bool:
        """Whether a first pass pays, which also evaluates the ``missing`` tokens of the context.

        The cost of reading a prompt is spread over the ``tokens_left`` of the answer.
        """
        seconds = self._draft_s(min(missing, 2))
        steps, tokens, _ = self._recent
        reading_s = self._draft_s(missing) - seconds
        if reading_s > CONSTANTS.reading_share * tokens_left / self.token_rate():
            return False
        tokens_left *= steps / tokens if tokens else 1.0
        seconds += reading_s / max(tokens_left, 1)
        return self.pays(1.0, self.first.rate, seconds, 0, self._gain_of_best())

    def pays(
        self, chance: float, rate: float, seconds: float, offered: int, gain_of_best: float = 0.0
    ) -> bool:
        """Whether a further token, or a few more after it, gain more than they cost.

        ``chance``: that all ``offered`` tokens are accepted; ``rate``: that the next one then is;
        ``seconds``: of the draft model until it is drafted; ``gain_of_best``: tokens to surpass.
        """
        target_s, draft_s = self._budget.pass_seconds, self._draft_s(1)
        token_rate = self.token_rate()
        before, gain = target_s(1 + offered), -gain_of_best
        for rows in range(2 + offered, 2 + self._room):
            chance *= rate
            gain += chance
            if gain > token_rate * (seconds + target_s(rows) - before):
                return True
            rate, seconds = self.later.rate, seconds + draft_s
        return False

    def _gain_of_best(self) -> float:
        """Tokens that the best draft so far gains over none, less its extra time at the token rate."""
        if self._budget.best_so_far is None:
            return 0.0
        tokens, seconds = self._budget.best_so_far
        return tokens - 1 - self.token_rate() * (seconds - self._budget.pass_seconds(1))
