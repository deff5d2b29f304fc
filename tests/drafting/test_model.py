"""A draft model: its cache follows the target's, and it drafts as long as that pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from edgespec.core.decoding import Step, decode
from edgespec.core.draft import Draft
from edgespec.core.drafter import Budget, Drafter, Outcome
from edgespec.core.latency import LatencyModel
from edgespec.core.runtime import FloatArray, Logits
from edgespec.core.sampling import Sampling, probabilities
from edgespec.core.scheduler import Scheduler
from edgespec.core.statistics import Statistics
from edgespec.drafting.hierarchy import Hierarchy
from edgespec.drafting.model import ModelDrafter
from edgespec.session import EngineState, Session
from tests.memory_runtime import LetterTemplate, LetterTokenizer, MemoryRuntime

CHUNK = 32


class Fixed(LatencyModel):
    """A pass takes ``start`` and ``each`` for every token, whatever it really takes."""

    plain_is_stale = False

    def __init__(self, start: float, each: float = 0.0) -> None:
        super().__init__()
        self.start, self.each = start, each

    def seconds(self, size: int, length: int = 0) -> float:
        return self.start + self.each * size


CHEAP, FLAT = Fixed(0.01), Fixed(1.0)


class Trimmed:
    """A runtime whose head has the columns of ``token_ids`` alone."""

    def __init__(self, whole: MemoryRuntime, token_ids: Sequence[int]) -> None:
        self.whole, self.ids = whole, list(token_ids)
        self.info = replace(whole.info, vocab_size=len(self.ids), token_ids=tuple(self.ids))
        self.keep, self.truncate, self.close = whole.keep, whole.truncate, whole.close

    @property
    def length(self) -> int:
        return self.whole.length

    @property
    def tokens(self) -> list[int]:
        return self.whole.tokens

    def forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None = None, *, logits: Logits = "all"
    ) -> FloatArray:
        return self.whole.forward(tokens, parents, logits=logits)[:, self.ids]


class Watched(ModelDrafter):
    """Checks after every draft that the cache holds the context and the draft without its end."""

    outcomes: list[Outcome]

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        before, self.outcomes = self.passes, getattr(self, "outcomes", [])
        draft = super().propose(context, budget)
        assert len(draft) <= budget.nodes
        cached = self.runtime.tokens  # type: ignore[attr-defined]
        if self.passes > before:
            whole = [*context, *draft.tokens]
            assert cached == whole[: len(cached)]
            assert len(cached) >= len(context)
            assert self.passes - before == len(cached) - len(context) + 1
        else:
            assert not draft
        return draft

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        super().observe(outcome)


def model(seed: int = 0, context: int = 4096, pass_sizes: tuple[int, ...] = ()) -> MemoryRuntime:
    """A counting song with variations; another ``seed`` varies it elsewhere."""
    return MemoryRuntime(seed=seed, period=5, scale=2.5, context=context, pass_sizes=pass_sizes)


def say(
    target: MemoryRuntime,
    drafter: Drafter,
    context: list[int],
    max_tokens: int = 100,
    sampling: Sampling | None = None,
    costs: LatencyModel = FLAT,
) -> tuple[list[int], list[Step]]:
    """The output tokens after ``context``, and the steps."""
    before = len(context)
    scheduler = Scheduler([drafter], costs)
    steps = list(decode(target, scheduler, context, max_tokens=max_tokens, sampling=sampling))
    return context[before:], steps


PROMPT = [0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("pass_sizes", [(), (2, 4, 8, 16)])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
@pytest.mark.parametrize("seed", range(3))
def test_the_cache_is_in_step_through_acceptance_and_rejection(
    seed: int, penalty: float, pass_sizes: tuple[int, ...]
) -> None:
    sampling = Sampling(repetition_penalty=penalty)
    plain, _ = say(model(pass_sizes=pass_sizes), Hierarchy([]), list(PROMPT), sampling=sampling)
    drafter = Watched(model(seed=seed), 12, CHEAP)
    output, steps = say(model(pass_sizes=pass_sizes), drafter, list(PROMPT), sampling=sampling)
    assert output == plain
    found = {(s.accepted > 0, s.accepted < s.drafted) for s in steps if s.drafted}
    # the model itself is always right; another one right and wrong, from the first token or later
    assert found == ({(True, False)} if seed == 0 else {(True, False), (True, True), (False, True)})


def test_only_what_is_missing_is_evaluated() -> None:
    target, runtime = model(pass_sizes=(1, 2, 3)), model(seed=1)  # at most two are drafted
    drafter = Watched(runtime, 12, CHEAP)
    context = list(PROMPT)
    missing = []
    for _ in decode(target, Scheduler([drafter], FLAT), context, max_tokens=100):
        missing += runtime.passes[:1]
        assert set(runtime.passes[1:]) <= {1}, "token by token"
        runtime.passes.clear()
    assert missing[0] == len(PROMPT)
    # the last token drafted was not evaluated yet where it was as many as may be
    full = [len(o.draft) == o.accepted == 2 for o in drafter.outcomes]
    assert all(now == (2 if whole else 1) for whole, now in zip(full, missing[1:], strict=False))
    assert set(full) == {True, False}


def test_a_conversation_goes_on_and_another_one_takes_over_what_they_share() -> None:
    target, runtime = model(), model(seed=1)
    drafter = Watched(runtime, 12, CHEAP)
    first = list(PROMPT)
    say(target, drafter, first, 20)
    evaluated = runtime.rows_evaluated
    first += [7, 8, 9]  # the next turn
    say(target, drafter, first, 1)
    drafter.propose(first, Budget(1, pass_seconds=FLAT.seconds))
    assert runtime.rows_evaluated - evaluated <= 6
    other = [*PROMPT, *first[len(PROMPT) : len(PROMPT) + 5], 11, 10]
    evaluated = runtime.rows_evaluated
    drafter.propose(other, Budget(1, pass_seconds=FLAT.seconds))
    assert runtime.rows_evaluated - evaluated == 2
    drafter.propose(other[4:], Budget(1, pass_seconds=FLAT.seconds))  # its oldest turn was dropped
    assert runtime.rows_evaluated - evaluated == 2 + len(other[4:])


def test_a_chat_that_outgrows_its_context() -> None:
    """Its oldest turns are dropped, and it goes on with what is left."""
    tokenizer = LetterTokenizer()

    def talk(drafter: Drafter) -> tuple[list[dict[str, str]], int]:
        target = MemoryRuntime(34, context=90, pass_sizes=(), mute=range(1, 5), seed=2, scale=3)
        parts = (target, Scheduler([drafter], FLAT), tokenizer, LetterTemplate(tokenizer))
        session = Session(EngineState(*parts))  # type: ignore[arg-type]
        for turn in ("hello there", "what then", "and more of it", "the end is near", "a b c", "d"):
            list(session.chat(turn, max_tokens=20))
        return session.messages, session.forgotten

    runtime = MemoryRuntime(34, context=90, pass_sizes=(), mute=range(1, 5), seed=2, scale=3)
    drafter = Watched(runtime, 34, CHEAP)
    messages, forgotten = talk(drafter)
    assert (messages, forgotten) == talk(Hierarchy([]))
    assert forgotten > 2
    assert sum(outcome.accepted for outcome in drafter.outcomes) > 40


def test_a_draft_asked_twice_is_the_same() -> None:
    drafter = Watched(model(), 12, CHEAP)
    context, budget = list(PROMPT), Budget(3, pass_seconds=FLAT.seconds)
    assert drafter.propose(context, budget) == drafter.propose(context, budget)


def test_long_prompts_are_read_in_chunks() -> None:
    runtime = model()
    context = np.random.default_rng(0).integers(0, 12, 3 * CHUNK + 5).tolist()
    drafter = Watched(runtime, 12, CHEAP)
    drafter.propose(context, Budget(1, pass_seconds=FLAT.seconds))
    assert runtime.passes == [CHUNK] * 3 + [4, 1]
    assert drafter.passes == 1, "a prompt's passes are not counted"


def test_a_prompt_too_long_for_the_rest_of_the_answer_is_not_read() -> None:
    costs = Fixed(0.01, 0.3)
    context = [0, 1, 2, 3, 4] * 100

    def passes(tokens: int) -> int:
        drafter = Watched(model(), 12, costs)
        drafter.propose(context, Budget(8, tokens=tokens, pass_seconds=FLAT.seconds))
        return drafter.passes

    assert passes(20) == 0
    drafter = Watched(model(), 12, Fixed(0.01, 0.003))
    drafter.propose(context[:5], Budget(8, tokens=20, pass_seconds=FLAT.seconds))
    assert drafter.passes > 0


@pytest.mark.parametrize("capacity", [4, len(PROMPT), 40])
def test_a_draft_with_a_shorter_context_stops_there(capacity: int) -> None:
    plain, _ = say(model(), Hierarchy([]), list(PROMPT))
    drafter = Watched(model(context=capacity), 12, CHEAP)
    output, steps = say(model(), drafter, list(PROMPT))
    assert output == plain
    drafted = [step.drafted for step in steps]
    assert (max(drafted) > 0) == (capacity > 4)
    assert max(drafted[-40:]) == 0
    if capacity == len(PROMPT):
        assert drafted[0] == 1, "the token after the last that fits"


def test_the_end_of_the_targets_context() -> None:
    drafter = Watched(model(context=30), 12, CHEAP)
    output, _ = say(model(context=30), drafter, list(PROMPT))
    assert len(output) == 30 - len(PROMPT) + 1


@pytest.mark.parametrize("greedy", [True, False])
def test_a_trimmed_head_drafts_its_own_tokens_under_their_ids(greedy: bool) -> None:
    kept = [0, 1, 2, 4, 7, 9]
    sampling = Sampling(0.0 if greedy else 1.0, repetition_penalty=1.1, seed=3)
    drafter = Watched(Trimmed(model(), kept), 12, CHEAP)
    target = model()
    output, _ = say(target, drafter, list(PROMPT), 200, sampling)
    if greedy:
        assert output == say(model(), Hierarchy([]), list(PROMPT), 200, sampling)[0]
    offered = {token for o in drafter.outcomes for token in o.draft.tokens}
    assert len(offered) > 3
    assert offered <= set(kept)
    assert sum(o.accepted for o in drafter.outcomes) > 40


def test_sampled_drafts_come_with_what_they_were_drawn_from() -> None:
    kept = [0, 1, 2, 4, 7, 9]
    sampling = Sampling(0.7, top_k=4, top_p=0.9, repetition_penalty=1.3, seed=3)
    drafter = ModelDrafter(Trimmed(model(), kept), 14, CHEAP)
    draft = drafter.propose(PROMPT, Budget(4, pass_seconds=FLAT.seconds, sampling=sampling))
    q = draft.probabilities
    assert q is not None
    assert (q.dtype, q.shape) == (np.float32, (len(draft), 14))
    assert draft.confidence is None, "to cut by what was drawn would bias it"
    whole = model()
    context = list(PROMPT)
    for token, row in zip(draft.tokens, q, strict=True):
        logits = np.full(14, -np.inf, np.float32)
        logits[kept] = whole.logits_after([(t, 0) for t in context])[kept]
        expected = probabilities(logits[None], sampling, context)[0]
        np.testing.assert_allclose(row, expected, atol=1e-6)
        assert row[token] > 0
        context.append(token)


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("draft_size", [8, 20])
def test_vocabularies_may_differ_in_their_padding(draft_size: int, greedy: bool) -> None:
    """Ids that the target lacks are not drafted, those that the draft lacks are not fed to it."""
    sampling = Sampling(0.0 if greedy else 1.5, seed=0)
    target = MemoryRuntime(vocab_size=12, scale=3.0, pass_sizes=())
    runtime = MemoryRuntime(vocab_size=draft_size, scale=3.0, seed=4, pass_sizes=())
    drafter = ModelDrafter(runtime, 12, CHEAP)
    output, steps = say(target, drafter, [1, 2, 11], 150, sampling)
    assert any(token >= 8 for token in output)
    assert sum(step.drafted for step in steps) > 20
    if draft_size > 12:  # it would have liked to
        assert any(runtime.logits_after(runtime.cache[:i]).argmax() >= 12 for i in range(2, 60))


@pytest.mark.parametrize("where", ["forward", "keep", "truncate"])
@pytest.mark.parametrize("when", range(6))
def test_interrupted_anywhere_it_goes_on_as_before(where: str, when: int) -> None:
    runtime, calls = model(seed=1), 0
    whole = getattr(runtime, where)

    def interrupted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == when + 1:
            raise KeyboardInterrupt
        done = whole(*args, **kwargs)
        if calls == when + 2:
            raise KeyboardInterrupt
        return done

    setattr(runtime, where, interrupted)
    drafter, target, context = Watched(runtime, 12, CHEAP), model(), list(PROMPT)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            say(target, drafter, context, 60)
    say(target, drafter, context, 60)
    assert context == PROMPT + say(model(), Hierarchy([]), list(PROMPT), len(context) - 7)[0]


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupted_while_it_forgets(when: str) -> None:
    """It cached the whole context, and is asked again for what follows."""
    runtime = model()
    drafter = Watched(runtime, 12, CHEAP)
    context, budget = list(PROMPT), Budget(1, pass_seconds=FLAT.seconds)
    drafter.propose(context, budget)
    truncate = runtime.truncate

    def interrupted(length: int) -> None:
        if when == "after":
            truncate(length)
        raise KeyboardInterrupt

    runtime.truncate = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        drafter.propose(context, budget)
    runtime.truncate = truncate  # type: ignore[method-assign]
    context.append(3)
    drafter.propose(context, budget)
    assert runtime.tokens == context


def test_every_drafted_token_counts_in_the_figures() -> None:
    statistics = Statistics(draft_pass_cost=0.25)
    drafter = Watched(model(), 12, CHEAP)
    _, steps = say(model(), drafter, list(PROMPT), 64)
    for step in steps:
        statistics.add(step)
    assert statistics.draft_passes == drafter.passes == sum(step.drafted for step in steps)
    per_pass = statistics.draft_passes / statistics.target_passes
    assert statistics.mbsu == pytest.approx(statistics.block_efficiency / (1 + 0.25 * per_pass))
