"""Acceptance rates learnt by the draft model's probability."""

from __future__ import annotations

import numpy as np
import pytest

from edgespec.drafting.acceptance_estimator import BINS, GREEDY_PRIOR, AcceptanceEstimator, bin_of


def test_bins_are_finer_towards_certainty() -> None:
    bins = [bin_of(top) for top in (0.0, 0.2, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)]
    assert bins == [0, 0, 2, 4, 6, 13, 15, 15]
    assert max(bins) == BINS - 1


def test_the_acceptance_estimator_learns_rates_by_probability_and_stays_monotone() -> None:
    rng = np.random.default_rng(0)
    estimator = AcceptanceEstimator(GREEDY_PRIOR)
    assert estimator.rates == pytest.approx(GREEDY_PRIOR)
    for _ in range(3000):  # overconfident: right half as often as it thinks
        bin = int(rng.integers(BINS))
        estimator.learn(bin, rng.random() < GREEDY_PRIOR[bin] / 2)
        assert estimator.rates == sorted(estimator.rates)
    assert len(estimator.rates) == BINS
    np.testing.assert_allclose(estimator.rates[4:], GREEDY_PRIOR[4:] / 2, atol=0.15)


def test_bad_luck_is_forgotten() -> None:
    estimator = AcceptanceEstimator(GREEDY_PRIOR)
    for _ in range(30):
        estimator.learn(5, False)
    assert estimator.rates[5] < 0.3
    for _ in range(3000):
        estimator.learn(BINS - 1, True)
    assert estimator.rates[5] == pytest.approx(GREEDY_PRIOR[5], abs=0.1)
