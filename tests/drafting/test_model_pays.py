"""A draft model runs while that pays, and is tried again now and then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.core.decoding import prefill
from edgespec.core.drafter import Budget, Outcome
from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Scheduler
from tests.drafting.test_model import FLAT, PROMPT, Fixed, Watched, model, say
from tests.memory_runtime import MemoryRuntime


class Wrong(MemoryRuntime):
    """Sure of what never comes."""

    def logits_after(self, rows: Sequence[tuple[int, int]]) -> FloatArray:
        return np.where(np.arange(12) == 11, 9.0, 0.0).astype(np.float32)


def test_a_draft_that_is_wrong_is_given_up_and_one_that_is_right_is_not() -> None:
    def passes(runtime: MemoryRuntime) -> tuple[int, int]:
        drafter = Watched(runtime, 12, Fixed(0.3))
        target, context = model(), list(PROMPT)
        say(target, drafter, context, 300)
        early = drafter.passes
        say(target, drafter, context, 300)
        return early, drafter.passes - early

    early, late = passes(model())
    assert early > 100
    assert late > 200
    early, late = passes(Wrong())
    assert 0 < early < 60
    assert late * 0.3 < 0.04 * 300, "only to see whether it still is"


def test_one_that_takes_as_long_as_the_target_hardly_runs() -> None:
    drafter = Watched(model(), 12, Fixed(1.0))
    _, steps = say(model(), drafter, list(PROMPT), 400, costs=Fixed(1.0, 0.1))
    assert drafter.passes <= 0.02 * 400
    assert sum(step.drafted for step in steps) <= 8


def test_drafting_begins_again_when_it_would_pay() -> None:
    costs = Fixed(5.0)
    drafter = Watched(model(), 12, costs)
    target, context = model(), list(PROMPT)
    _, steps = say(target, drafter, context, 50)
    assert not any(step.drafted for step in steps)
    costs.start = 0.01
    _, steps = say(target, drafter, context, 50)
    assert sum(step.accepted for step in steps) > 30


def test_a_machine_that_was_busy_does_not_make_the_draft_look_expensive_for_good() -> None:
    pace = 10.0

    class Paced(Fixed):
        def seconds(self, size: int, length: int = 0) -> float:
            return pace * super().seconds(size)

    drafter = Watched(model(), 12, Fixed(0.3 * pace))  # its passes were measured while it was busy
    target, context, costs = model(), list(PROMPT), Paced(1.0, 0.1)
    say(target, drafter, context, 50, costs=costs)
    pace = 1.0
    _, steps = say(target, drafter, context, 50, costs=costs)
    assert steps[0].drafted > 0


def test_what_was_given_up_is_tried_again_now_and_then() -> None:
    """A model that is no use for one text, and right on the next one."""
    runtime = Wrong()
    drafter = Watched(runtime, 12, Fixed(0.3))
    target, context = model(), list(PROMPT)
    say(target, drafter, context, 400)
    runtime.logits_after = model().logits_after  # type: ignore[method-assign]
    _, steps = say(target, drafter, context, 2000)
    assert not any(step.drafted for step in steps[:10])
    assert sum(step.accepted for step in steps[-50:]) > 100


def test_nothing_is_tried_again_in_an_answer_that_lost_too_much() -> None:
    for lost, tried in ((0.0, True), (1000.0, False)):
        drafter, context = Watched(Wrong(), 12, Fixed(0.3)), list(PROMPT)
        say(model(), drafter, context, 400)
        scheduler = Scheduler([drafter], FLAT)
        scheduler._lost_passes = lost
        target, before = model(), drafter.passes
        prefill(target, context)
        for _ in range(2000):
            choice = scheduler.choose(context, 1000, target.info, Sampling())
            logits = target.forward([context[-1], *choice.draft.tokens])
            target.keep([0])
            output = [int(logits[0].argmax())]
            drafter.observe(Outcome(choice.draft, 0, output, logits))
            context += output
        assert (drafter.passes > before) == tried


def test_longer_drafts_are_tried_again_now_and_then() -> None:
    drafter = Watched(model(), 12, Fixed(0.3))
    drafter.stopping.later.hits, drafter.stopping.later.trials = (
        1.0,
        25.0,
    )  # second tokens were never right
    _, steps = say(model(), drafter, list(PROMPT), 400)
    drafted = [step.drafted for step in steps]
    assert max(drafted[:10]) == 1
    assert max(drafted) > 4


def test_it_stops_where_the_draft_is_unsure() -> None:
    """After 0 to 3 the next number is certain; after 4 any of them comes."""

    class Song(MemoryRuntime):
        def logits_after(self, rows: Sequence[tuple[int, int]]) -> FloatArray:
            likely = np.arange(12) < 4
            if (last := rows[-1][0]) < 4:
                likely = np.arange(12) == last + 1
            rng = np.random.default_rng([self.seed, *(token for token, _ in rows)])
            return np.where(likely, 9 + rng.normal(0, 0.1, 12), 0).astype(np.float32)

    target = Song(order=400, pass_sizes=(), seed=1)
    drafter = Watched(Song(order=400, pass_sizes=(), seed=2), 12, Fixed(0.3))
    costs = Fixed(1.0, 0.1)
    context = list(PROMPT)
    say(target, drafter, context, 400, costs=costs)
    lengths = {
        last: len(drafter.propose([*context, 0, 1, 2, 3, 4][: len(context) + last + 1], budget))
        for budget in [Budget(8, pass_seconds=costs.seconds)]
        for last in range(5)
    }
    # up to the one of which it is unsure, which is known before it costs a pass of its own
    assert lengths == {0: 5, 1: 4, 2: 3, 3: 2, 4: 1}
