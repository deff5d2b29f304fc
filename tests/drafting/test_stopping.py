"""A further token is drafted while it gains more than it costs."""

from __future__ import annotations

import pytest

from edgespec.core.drafter import Budget
from edgespec.drafting.stopping import CONSTANTS, AnswerLength, StoppingRule


def rule(draft_s: float = 0.0, per_row: float = 0.1, room: int = 8) -> StoppingRule:
    """A target pass takes 1 second and ``per_row`` for each further token."""
    found = StoppingRule(lambda tokens: draft_s * tokens)
    found.start_step(Budget(room, pass_seconds=lambda rows: 1 + per_row * (rows - 1)), room)
    return found


def test_a_token_pays_if_its_acceptance_exceeds_its_share_of_a_pass() -> None:
    found = rule(room=1)
    assert found.pays(1.0, 0.11, 0.0, 0)
    assert not found.pays(1.0, 0.09, 0.0, 0)
    assert not found.pays(0.5, 0.11, 0.0, 0), "those before it may be rejected"
    assert not found.pays(1.0, 0.11, 0.02, 0), "the draft's pass takes time too"
    assert not found.pays(1.0, 0.11, 0.0, 0, gain_of_best=0.05)


def test_a_token_may_pay_for_those_after_it() -> None:
    assert not rule(room=1, per_row=0.5).pays(1.0, 0.45, 0.0, 0)
    found = rule(room=8, per_row=0.0)
    found.later.hits, found.later.trials = 1.0, 1.0
    assert found.pays(1.0, 0.5, 3.0, 0)


def test_nothing_pays_without_room() -> None:
    assert not rule(room=0).pays(1.0, 1.0, 0.0, 0)


def test_reading_a_long_prompt_does_not_pay_for_a_short_rest() -> None:
    found = rule(draft_s=0.01)
    assert found.pays_to_start(missing=300, tokens_left=200)
    assert not found.pays_to_start(missing=300, tokens_left=10)


def test_the_best_draft_so_far_must_be_surpassed() -> None:
    found = StoppingRule(lambda tokens: 0.0)
    for best, pays in ((None, True), ((1.0, 1.0), True), ((9.0, 1.0), False)):
        found.start_step(Budget(8, pass_seconds=lambda rows: 1.0, best_so_far=best), 8)
        assert found.pays_to_start(2, 50) == pays


def test_learning_stops_at_the_first_rejected_token() -> None:
    found = rule()
    for token in (1, 2, 3):
        found.add(token, 0.5)
    first, later = found.first.rate, found.later.trials
    gained_s = found.observe([1, 9], 1.5)
    assert gained_s == pytest.approx(0.5)
    assert found.first.rate > first
    assert found.later.trials == pytest.approx(0.96 * later + 1), "the third was not verified"
    assert found.token_rate() == pytest.approx(2 / 1.5)


def test_plain_decoding_is_the_least_token_rate() -> None:
    found = rule()
    found.observe([1], 5.0)
    assert found.token_rate() == 1.0


def test_an_answer_goes_on_for_as_long_as_it_was_or_as_recent_ones_were() -> None:
    answer = AnswerLength()
    assert not answer.is_continued(0)
    answer.begin(10)
    assert answer.expected_left(1000) == CONSTANTS.answer_prior
    assert answer.expected_left(7) == 7
    answer.add(40)
    assert answer.is_continued(50)
    assert answer.expected_left(1000) == 40
    answer.begin(60)  # 40 tokens, where 50 were expected
    mean = CONSTANTS.answer_prior - 10 * CONSTANTS.answer_weight
    assert answer.expected_left(1000) == pytest.approx(mean)
