from __future__ import annotations

import numpy as np

from edgespec.draft import Draft
from edgespec.drafting import Budget, Outcome
from edgespec.drafting.hierarchy import Hierarchy
from edgespec.drafting.suffix import Suffix

NOTHING = np.empty((0, 0), dtype=np.float32)


def told(drafter: Hierarchy, context: list[int], said: list[int], nodes: int = 8) -> Draft:
    """Propose, let the target say ``said``, and go on from there."""
    draft = drafter.propose(context, Budget(nodes))
    drafter.observe(Outcome(draft, 0, said, NOTHING))
    context += said
    return draft


def test_copies_what_followed_the_longest_match() -> None:
    context = [1, 2, 3, 4, 5, 6, 9, 3, 7, 8, 0, 2, 3]
    assert Hierarchy([Suffix()]).propose(context, Budget(3)).tokens == [4, 5, 6]


def test_nothing_matches_nothing_drafted() -> None:
    for context in ([], [1], [1, 2, 3]):
        assert len(Hierarchy([Suffix()]).propose(context, Budget(4))) == 0
    assert len(Hierarchy([Suffix()]).propose([1, 1, 1], Budget(0))) == 0
    assert len(Hierarchy([]).propose([1, 1, 1], Budget(4))) == 0


def test_a_copy_that_reaches_the_end_goes_on_in_circles() -> None:
    assert Hierarchy([Suffix()]).propose([5, 1, 2, 1, 2, 1, 2], Budget(5)).tokens == [1, 2, 1, 2, 1]


def test_follows_a_growing_context_and_notices_another() -> None:
    drafter, context = Hierarchy([Suffix()]), [1, 2, 3]
    drafter.propose(context, Budget(2))
    context += [4, 1, 2]
    assert drafter.propose(context, Budget(2)).tokens == [3, 4]
    assert drafter.propose([7, 8, 7], Budget(2)).tokens == [8, 7]
    assert drafter.propose(context, Budget(1)).tokens == [3]


def test_confidence_grows_with_the_match() -> None:
    confidence = Hierarchy([Suffix()]).propose([1, 2, 3, 4, 5, 6, 1, 2], Budget(4)).confidence
    assert confidence is not None
    assert list(confidence) == sorted(confidence)
    assert confidence[0] == 2 / 5


def test_confidence_follows_what_the_target_says() -> None:
    for right in (True, False):
        drafter, rng = Hierarchy([Suffix()]), np.random.default_rng(0)
        context = [1, 2, 3, 4]
        first = told(drafter, context, [1]).confidence
        assert not first
        seen: list[float] = []
        for _ in range(200):
            draft = drafter.propose(context, Budget(1))
            said = draft.tokens[0] if right and len(draft) else int(rng.integers(5, 25))
            drafter.observe(Outcome(draft, 0, [said], NOTHING))
            context.append(said)
            seen += draft.confidence or []
        assert seen[-1] > 0.9 if right else seen[-1] < 0.3


def test_learns_from_what_was_not_offered() -> None:
    """Nothing is offered, the target keeps saying what would have been: confidence returns."""
    drafter = Hierarchy([Suffix()])
    context = [1, 2, 3, 4, 5] * 2
    before = drafter.propose(context, Budget(1)).confidence
    assert before is not None
    for i in range(30):
        told(drafter, context, [1 + i % 5], nodes=0)
    after = drafter.propose(context, Budget(1)).confidence
    assert after is not None
    assert after[0] > before[0]


def test_learning_stops_at_the_first_difference() -> None:
    drafter, context = Hierarchy([Suffix()]), [1, 2, 3, 4, 9, 5, 6, 7, 1]
    told(drafter, context, [2, 9])  # a match of 1 was right, one of 2 wrong
    confidence = drafter.propose(context, Budget(5)).confidence
    assert confidence is not None
    assert confidence[0] > 1 / 4
    assert confidence[1] < 2 / 5
    assert confidence[2:] == [3 / 6]  # and the path to a fifth token has hardly a chance


def test_estimates_begin_again_with_every_prompt() -> None:
    drafter, context = Hierarchy([Suffix()]), [1, 2, 3] * 3
    fresh = drafter.propose(context, Budget(3)).confidence
    for i in range(30):
        told(drafter, context, [1 + i % 3])
    learnt = drafter.propose(context, Budget(3)).confidence
    drafter.observe(Outcome(Draft(), 0, [1], NOTHING))
    context += [1, 2, 3]  # one said, two more by the user
    assert drafter.propose(context, Budget(3)).confidence == [16 / 19] * 3
    assert fresh is not None
    assert learnt is not None
    assert learnt[0] > max(fresh[0], 16 / 19)
