"""What a draft model's own probability of a token says of its acceptance, learnt as it drafts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from edgespec.core.runtime import FloatArray

BINS = 16
_BIN_WEIGHT = 0.5
"""How many observations the prior of a bin is worth: little, since neighbours are pooled."""
_BIN_FORGETTING = 0.98
"""What an observation leaves of the weight of those before it, in whichever bin."""
_MEAN_PRIOR, _MEAN_WEIGHT = 0.8, 5.0
"""Acceptance before anything is seen, rather hopeful: only what is tried is found out."""
_MEAN_FORGETTING = 0.96
"""What an observation leaves of the weight of those before it: the last 25 or so count."""
_MEAN_FADING = 0.02
"""The part of the way back to the prior, in a step that tried none."""


@dataclass
class Calibration:
    """How often a token is accepted, by the draft model's top probability before it is taken.

    A Beta posterior in each of a few bins, finer towards 1, made monotone by pooling neighbours that
    are out of order (isotonic regression). Everything seen is forgotten slowly, so that a bin
    that bad luck took out of use returns to its prior, and is tried again.
    """

    prior: FloatArray
    """Acceptance in each bin before anything is seen."""
    rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self._prior_hits = _BIN_WEIGHT * self.prior.astype(np.float64)
        self._hits = self._prior_hits.copy()
        self._trials = np.full(BINS, _BIN_WEIGHT)
        self.rates = self.prior.tolist()

    def learn(self, bin: int, accepted: bool) -> None:
        """Count one token of ``bin`` that the target has judged."""
        self._hits += (1 - _BIN_FORGETTING) * (self._prior_hits - self._hits)
        self._trials += (1 - _BIN_FORGETTING) * (_BIN_WEIGHT - self._trials)
        self._hits[bin] += accepted
        self._trials[bin] += 1
        self._pool()

    def halve(self) -> None:
        """Forget half of everything."""
        self._hits += (self._prior_hits - self._hits) / 2
        self._trials += (_BIN_WEIGHT - self._trials) / 2
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


@dataclass
class Mean:
    """How often tokens of a kind were accepted of late: a Beta posterior that forgets."""

    hits: float = _MEAN_PRIOR * _MEAN_WEIGHT
    trials: float = _MEAN_WEIGHT

    @property
    def rate(self) -> float:
        """The posterior's mean."""
        return self.hits / self.trials

    def learn(self, accepted: float) -> None:
        """Count a token."""
        self.hits = _MEAN_FORGETTING * self.hits + accepted
        self.trials = _MEAN_FORGETTING * self.trials + 1

    def fade(self) -> None:
        """Draw near the prior: none was tried."""
        self.hits += _MEAN_FADING * (_MEAN_PRIOR * _MEAN_WEIGHT - self.hits)
        self.trials += _MEAN_FADING * (_MEAN_WEIGHT - self.trials)


def bin_of(top: float) -> int:
    """The bin of a top probability: two for each halving of what it leaves to other tokens."""
    return int(-2 * math.log2(max(1 - top, 2 ** (-(BINS - 1) / 2))))


_TOP = 1 - 2 ** -((np.arange(BINS) + 0.5) / 2)  # the top probability in the middle of each bin
GREEDY_PRIOR = _TOP.astype(np.float32)
SAMPLED_PRIOR = (0.5 + _TOP / 2).astype(np.float32)  # two flat distributions overlap, too
