"""Estimates how often a drafted token is accepted, from the draft model's own probability of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from edgespec.core.runtime import FloatArray

BINS = 16
"""Bins of the draft model's top probability."""


@dataclass(frozen=True)
class EstimatorConstants:
    """Constants of the acceptance estimators. All of them are guesses."""

    bin_weight: float = 0.5
    """Observations that the prior of a bin counts for. Small, because neighbouring bins are pooled."""
    bin_forgetting: float = 0.98
    """Factor on the weight of earlier observations, per observation in any bin."""
    mean_prior: float = 0.8
    """Acceptance rate before the first observation. High, because only tokens that are tried are learnt."""
    mean_weight: float = 5.0
    """Observations that ``mean_prior`` counts for."""
    mean_forgetting: float = 0.96
    """Factor on the weight of earlier observations, per observation: about the last 25 count."""
    mean_fading: float = 0.02
    """Share of the way back to the prior, per step without an observation."""


CONSTANTS = EstimatorConstants()


@dataclass
class AcceptanceEstimator:
    """Estimates a token's acceptance rate from the draft model's top probability at its position.

    A Beta posterior in each of ``BINS`` bins, which are finer towards 1. Neighbouring bins that are out
    of order are pooled, so that the rates are monotone (isotonic regression). Observations are forgotten
    slowly: a bin that had bad luck returns to its prior and is tried again.
    """

    prior: FloatArray
    """Acceptance rate by bin before the first observation, ``[BINS]``."""
    rates: list[float] = field(init=False)
    """Estimated acceptance rate by bin."""

    def __post_init__(self) -> None:
        self._prior_hits = CONSTANTS.bin_weight * self.prior.astype(np.float64)
        self._hits = self._prior_hits.copy()
        self._trials = np.full(BINS, CONSTANTS.bin_weight)
        self.rates = self.prior.tolist()

    def learn(self, bin: int, accepted: bool) -> None:
        """Count one token of ``bin`` that the target has verified."""
        self._hits += (1 - CONSTANTS.bin_forgetting) * (self._prior_hits - self._hits)
        self._trials += (1 - CONSTANTS.bin_forgetting) * (CONSTANTS.bin_weight - self._trials)
        self._hits[bin] += accepted
        self._trials[bin] += 1
        self._pool()

    def halve(self) -> None:
        """Forget half of every observation."""
        self._hits += (self._prior_hits - self._hits) / 2
        self._trials += (CONSTANTS.bin_weight - self._trials) / 2
        self._pool()

    def _pool(self) -> None:
        pools: list[tuple[float, float, int]] = []  # hits, trials, bins
        for hits, trials in zip(self._hits.tolist(), self._trials.tolist(), strict=True):
            bins = 1
            while pools and pools[-1][0] * trials > hits * pools[-1][1]:
                before = pools.pop()
                hits, trials, bins = hits + before[0], trials + before[1], bins + before[2]
            pools.append((hits, trials, bins))
        self.rates = [hits / trials for hits, trials, bins in pools for _ in range(bins)]


def _prior_hits() -> float:
    return CONSTANTS.mean_prior * CONSTANTS.mean_weight


@dataclass
class MeanAcceptance:
    """Recent acceptance rate of one kind of token: a Beta posterior that forgets."""

    hits: float = field(default_factory=_prior_hits)
    trials: float = field(default_factory=lambda: CONSTANTS.mean_weight)

    @property
    def rate(self) -> float:
        """The posterior's mean."""
        return self.hits / self.trials

    def learn(self, accepted: float) -> None:
        """Count a token: 1 accepted, 0 rejected, or its estimated acceptance rate."""
        self.hits = CONSTANTS.mean_forgetting * self.hits + accepted
        self.trials = CONSTANTS.mean_forgetting * self.trials + 1

    def fade(self) -> None:
        """Move towards the prior, after a step that tried no such token."""
        self.hits += CONSTANTS.mean_fading * (_prior_hits() - self.hits)
        self.trials += CONSTANTS.mean_fading * (CONSTANTS.mean_weight - self.trials)


def bin_of(top: float) -> int:
    """The bin of a top probability: two bins for each halving of 1 - ``top``."""
    return int(-2 * math.log2(max(1 - top, 2 ** (-(BINS - 1) / 2))))


_TOP = 1 - 2 ** -((np.arange(BINS) + 0.5) / 2)  # the top probability in the middle of each bin
GREEDY_PRIOR = _TOP.astype(np.float32)
"""Prior for greedy drafts: the draft model's probabilities are right."""
SAMPLED_PRIOR = (0.5 + _TOP / 2).astype(np.float32)
"""Prior for sampled drafts. It is higher, since two flat distributions overlap too."""
