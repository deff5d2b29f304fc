"""Repetition drafts for the draft model: fewer passes, the same drafts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgespec.core.drafter import Budget
from edgespec.core.latency import LatencyModel
from edgespec.core.sampling import Sampling
from edgespec.drafting.cascade import Cascade
from edgespec.drafting.model import ModelDrafter
from tests.drafting.test_model import FLAT, PROMPT, Fixed, model, say
from tests.memory_runtime import CertainDrafter

PER_PASS, PER_TOKEN = Fixed(0.05), Fixed(0.0, 0.05)


def drafter(costs: LatencyModel, cascade: bool, seed: int = 1) -> ModelDrafter:
    return ModelDrafter(model(seed), 12, costs, cascade=cascade)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_is_drafted_in_fewer_passes(seed: int) -> None:
    alone, helped = drafter(PER_PASS, False, seed), drafter(PER_PASS, True, seed)
    plain, _ = say(model(), CertainDrafter([]), list(PROMPT), 300)
    context = [*PROMPT, *plain]
    for end in range(20, 300, 3):
        budget = Budget(6, pass_seconds=FLAT.seconds)
        one, other = (d.propose(context[:end], budget) for d in (alone, helped))
        shorter = min(len(one), len(other))  # a pass that is not run may make room for more
        assert shorter > 0
        assert list(one.tokens[:shorter]) == list(other.tokens[:shorter])
    assert say(model(), alone, list(PROMPT), 300)[0] == plain
    assert say(model(), helped, list(PROMPT), 300)[0] == plain
    if seed == 0:  # the draft model agrees with the target
        assert helped.passes < 0.7 * alone.passes
    else:
        assert max(helped.runtime.passes[1:]) > 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(("seed", "costs"), [(0, Fixed(1.0, 0.2)), (1, FLAT)])
def test_the_cache_has_context_and_draft_and_perhaps_a_guess(
    seed: int, costs: LatencyModel
) -> None:
    helped = drafter(PER_PASS, True, seed)
    target, context, unused = model(), list(PROMPT), 0
    for _ in range(300):
        draft = helped.propose(context, Budget(6, pass_seconds=costs.seconds))
        cached: list[int] = helped.runtime.tokens  # type: ignore[attr-defined]
        assert helped.follower._cached == cached
        drafted = [*context, *draft.tokens]
        assert cached[: len(drafted) - 1] == drafted[:-1]
        unused += len(cached) > len(drafted)
        context.append(int(target.logits_after([(token, 0) for token in context]).argmax()))
    assert max(helped.runtime.passes[1:]) > 2, "or nothing is tested"  # type: ignore[attr-defined]
    assert (unused > 0) == (costs is not FLAT)


def test_nothing_is_guessed_where_long_passes_are_expensive() -> None:
    helped, alone = drafter(PER_TOKEN, True), drafter(PER_TOKEN, False)
    for each in (helped, alone):
        say(model(), each, list(PROMPT), 200)
    assert helped.passes == alone.passes > 50
    assert helped.runtime.passes == alone.runtime.passes  # type: ignore[attr-defined]


def test_what_is_drawn_is_not_guessed() -> None:
    runtimes = []
    for cascade in (False, True):
        each = drafter(PER_PASS, cascade)
        say(model(), each, list(PROMPT), 100, Sampling(temperature=0.8, seed=1))
        runtimes.append(each.runtime.passes)  # type: ignore[attr-defined]
    assert runtimes[0] == runtimes[1]


def test_the_latest_place_is_followed_and_changed_text_forgotten() -> None:
    cascade = Cascade()

    def guess(context: Sequence[int], drafted: Sequence[int]) -> list[int]:
        return list(cascade.guess(context, drafted, 2, lambda tokens: 1.0))

    context = [1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 0]
    cascade.read(context, 0)
    assert guess(context, [1, 2, 3]) == [6, 7]
    assert guess(context, [2, 3]) == [], "but for the end of the context it was never there"
    assert guess([*context, 1], [2, 3]) == [6, 7]
    assert list(cascade.guess(context, [1, 2, 3], 0, lambda tokens: 1.0)) == []
    context[8:] = [9, 9]  # the end became other tokens
    cascade.read(context, 8)
    assert guess(context, [1, 2, 3]) == [9, 9]
    assert guess(context, [2, 3, 9]) == [9]
    cascade.forget()
    cascade.read([5, 5], 0)
    assert guess([5, 5], [1, 2, 3]) == []


def test_wrong_guesses_are_given_up_and_tried_again() -> None:
    cascade = Cascade()
    context = [1, 2, 3, 4, 1, 2, 3]
    cascade.read(context, 0)

    def costs(tokens: int) -> float:
        return 1 + 0.3 * (tokens - 1)

    assert cascade.guess(context, [], 4, costs)
    for _ in range(40):
        cascade.learn(False)
        cascade.end(unused=False)
    assert not cascade.guess(context, [], 4, costs)
    for _ in range(200):
        cascade.end(unused=False)
    assert cascade.guess(context, [], 4, costs)
