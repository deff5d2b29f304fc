"""Trials of drafting cost a bounded share of the time."""

from __future__ import annotations

from edgespec.drafting.exploration import CONSTANTS, Exploration


def starts(exploration: Exploration, missing: int = 1, answer_s: float = 1e9) -> bool:
    """A draft pass takes 0.1 s a token, a target pass 1 s whatever its size."""
    return exploration.starts(missing, answer_s, lambda n: 0.1 * n, lambda n: 1.0)


def test_trials_cost_at_most_their_share_of_time() -> None:
    exploration, trials, steps = Exploration(), 0, 20_000
    for _ in range(steps):
        cost_s = 0.1 * (1 + CONSTANTS.trials)
        if starts(exploration):
            trials += 1
            exploration.record(1.0, -cost_s)
        else:
            exploration.record(1.0, 0.0)
    spent_s = trials * 0.1 * (1 + CONSTANTS.trials)
    assert 0.5 * CONSTANTS.explored * steps < spent_s <= CONSTANTS.explored * steps


def test_what_drafting_gained_pays_for_trials() -> None:
    gained, lost = Exploration(), Exploration()
    gained.record(1.0, 10.0)
    lost.record(1.0, -10.0)
    tried = [[starts(each) for _ in range(100)] for each in (gained, lost)]
    assert any(tried[0])
    assert not any(tried[1])


def test_a_trial_is_not_started_early_in_an_answer_or_where_much_is_missing() -> None:
    exploration = Exploration()
    exploration.record(1e6, 0.0)
    for _ in range(100):
        assert not starts(exploration, answer_s=1.0)
    assert not starts(exploration, missing=1000)
    assert starts(exploration)
    assert not starts(exploration), "not again at once"
