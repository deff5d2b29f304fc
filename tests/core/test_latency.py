"""What passes are expected to cost, as they are seen."""

from __future__ import annotations

import numpy as np
import pytest

from edgespec.core.latency import LatencyCurve, LatencyModel

ROWS = (1, 2, 4, 8, 16)


def curve(slope: float = 0.1, per_token: float = 0.0) -> LatencyCurve:
    """Passes of 10 ms and ``slope`` of that for each further token."""
    seconds = tuple(
        tuple(0.01 * (1 + slope * (n - 1)) + per_token * length for n in ROWS)
        for length in (0, 1000)
    )
    return LatencyCurve(ROWS, (0, 1000), seconds, ((0.0,) * len(ROWS),) * 2)


def passes(costs: LatencyModel, size: int, seconds: float, count: int) -> None:
    for _ in range(count):
        costs.record(size, seconds)


def test_the_curve_holds_until_passes_differ() -> None:
    costs = LatencyModel(curve(per_token=1e-6))
    assert costs.seconds(1) == pytest.approx(0.01)
    assert costs.seconds(3) == pytest.approx(0.012)
    assert costs.seconds(3, 960) == pytest.approx(0.012 + 960e-6, rel=0.01)
    assert costs.seconds(65) > costs.seconds(64) > costs.seconds(33)


def test_before_anything_is_known_passes_follow_the_prior() -> None:
    costs = LatencyModel(slope=0.5)
    assert (costs.seconds(1), costs.seconds(5)) == (1, 3)
    passes(costs, 2, 0.03, 2)
    assert costs.seconds(1) == pytest.approx(0.02)
    assert costs.seconds(9) == pytest.approx(0.1)


def test_all_sizes_share_the_pace_that_one_shows() -> None:
    costs = LatencyModel(curve())
    passes(costs, 1, 0.02, 20)
    assert costs.seconds(1) == pytest.approx(0.02, rel=0.05)
    assert costs.seconds(16) == pytest.approx(0.05, rel=0.05)


def test_a_size_slower_than_the_curve_is_learnt_and_others_keep_theirs() -> None:
    costs = LatencyModel(curve())
    for _ in range(10):
        passes(costs, 1, 0.01, 1)
        passes(costs, 8, 1.5 * 0.017, 1)
    assert costs.seconds(8) == pytest.approx(1.5 * 0.017, rel=0.05)
    assert costs.seconds(9) == pytest.approx(1.5 * 0.018, rel=0.07)
    assert costs.seconds(1) == pytest.approx(0.01, rel=0.07)


def test_a_change_shows_in_a_few_passes() -> None:
    costs = LatencyModel(curve())
    passes(costs, 4, 0.013, 50)
    passes(costs, 4, 1.5 * 0.013, 5)
    assert costs.seconds(4) > 1.3 * 0.013
    passes(costs, 4, 1.5 * 0.013, 15)
    assert costs.seconds(4) == pytest.approx(1.5 * 0.013, rel=0.02)


def test_a_hiccup_the_first_pass_of_a_size_and_clocks_that_stand_or_jump_hardly_show() -> None:
    costs = LatencyModel(curve())
    passes(costs, 1, 9.0, 1)
    assert costs.seconds(1) == 0.01, "it pays for the size's allocations"
    passes(costs, 1, 0.01, 20)
    for strange in (5.0, 0.0, -3.0, 4e4):
        passes(costs, 1, strange, 1)
        passes(costs, 1, 0.01, 4)
        assert costs.seconds(1) == pytest.approx(0.01, rel=0.06)


def test_no_size_takes_longer_than_a_larger_one() -> None:
    """It was measured at a bad moment, and would never be tried."""
    bad = curve()
    seconds = (0.3, *bad.seconds[0][1:])
    costs = LatencyModel(LatencyCurve(bad.rows, (0,), (seconds,), (bad.spread[0],)))
    assert costs.seconds(1) == costs.seconds(2) == pytest.approx(0.011)


def test_plain_decoding_is_measured_again_now_and_then() -> None:
    costs = LatencyModel(curve())
    stale = []
    for _ in range(400):
        stale.append(costs.plain_is_stale)
        passes(costs, 1 if stale[-1] else 8, 0.01 if stale[-1] else 0.017, 1)
    assert not any(stale[:9]), "what was measured is trusted at first"
    assert 5 <= sum(stale) <= 8
    passes(costs, 1, 0.001, 1)
    assert costs.seconds(1) < 0.005, "only slower passes may be hiccups"


def test_what_is_old_is_forgotten() -> None:
    costs = LatencyModel(curve())
    passes(costs, 8, 0.034, 10)
    passes(costs, 1, 0.01, 600)
    assert costs.seconds(8) == pytest.approx(0.017, rel=0.05)


def test_a_longer_cache_does_not_look_like_a_slower_machine() -> None:
    costs, slow = LatencyModel(curve(per_token=1e-5)), LatencyModel(curve())
    for length in range(0, 1000, 10):
        seconds = 0.01 + 1e-5 * length
        costs.record(1, seconds, length)
        slow.record(1, seconds, length)
    assert costs.seconds(1, 0) == pytest.approx(0.01, rel=0.05)
    assert slow.seconds(1, 0) > 0.018


def test_times_are_finite_whatever_is_recorded() -> None:
    rng, costs = np.random.default_rng(0), LatencyModel(curve())
    for _ in range(500):
        costs.record(int(rng.integers(1, 100)), float(10 ** rng.uniform(-9, 9)))
        times = [costs.seconds(n) for n in (1, 7, 64, 100)]
        assert np.isfinite(times).all()
        assert min(times) > 0
