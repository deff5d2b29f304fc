from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import pytest

from edgespec.core.drafter import Drafter
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Scheduler
from edgespec.core.statistics import Statistics
from edgespec.device.machine import peak_memory_bytes
from edgespec.drafting.hierarchy import Hierarchy
from edgespec.drafting.suffix import Suffix
from edgespec.errors import UserError
from edgespec.session import EngineState, Session
from tests.memory_runtime import (
    LetterTemplate,
    LetterTokenizer,
    MemoryRuntime,
    RandomDrafter,
)

KEYS = [
    *("prompt_tokens", "generated_tokens", "ttft_s", "decode_s", "decode_tokens_per_s"),
    *("target_passes", "drafted", "accepted", "block_efficiency", "acceptance_rate", "mbsu"),
    *("peak_memory_bytes", "energy_j", "runtime", "device", "drafter", "acceptance", "exact"),
]


def loaded(
    drafter: str = "suffix",
    context: int = 512,
    seed: int = 0,
    pass_sizes: tuple[int, ...] = (2, 4, 6, 8, 16, 32),
    bos: int | None = 1,
) -> EngineState:
    """A model that says letters and the stop token, never another control token."""
    tokenizer = LetterTokenizer(bos)
    target = MemoryRuntime(
        tokenizer.vocab_size, 2, context, pass_sizes, scale=3, seed=seed, mute=range(1, 5)
    )
    makers: dict[str, Drafter] = {
        "none": Hierarchy([]),
        "suffix": Hierarchy([Suffix()]),
        "random": RandomDrafter(target),
    }
    scheduler = Scheduler([makers[drafter]])
    return EngineState(
        target, scheduler, cast(Any, tokenizer), cast(Any, LetterTemplate(tokenizer))
    )


def runtime(model: EngineState) -> MemoryRuntime:
    return cast(MemoryRuntime, model.target)


def consistent(model: EngineState) -> bool:
    return runtime(model).tokens == model.context[: model.target.length]


def test_chat_keeps_the_conversation_and_streams_it() -> None:
    model = loaded()
    session = Session(model, system="be kind")
    pieces = list(session.chat("hello there", max_tokens=20))
    answer = {"role": "assistant", "content": "".join(pieces)}
    assert len(pieces) > 1
    assert session.messages == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello there"},
        answer,
    ]
    stopped = session.token_ids[-1] in model.tokenizer.stop_tokens
    assert session.finish_reason == ("stop" if stopped else "length")
    assert session.statistics.generated_tokens == len(session.token_ids) <= 20
    session.reset()
    assert session.messages == [{"role": "system", "content": "be kind"}]


@pytest.mark.parametrize("drafter", ["suffix", "random"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_conversation_is_the_same_with_and_without_drafting(
    drafter: str, seed: int, temperature: float
) -> None:
    """Across turns too: prompts longer than the sizes that agree are split the same way."""

    def talk(kind: str) -> list[list[int]]:
        session = Session(loaded(kind, 4096, seed), sampling=Sampling(temperature, seed=5))
        said = []
        for turn in range(6):
            list(session.chat("tell me more about that old story. " * 3, max_tokens=30 + turn))
            said.append(session.token_ids)
        return said

    assert talk(drafter) == talk("none")


def test_a_turn_evaluates_only_what_is_new_and_the_context_grows_in_place() -> None:
    model = loaded("none", context=4096)
    session = Session(model)
    prompt = "abcdefghij " * 30
    list(session.chat(prompt, max_tokens=40))
    assert session.finish_reason == "stop", "this seed's answer must end by itself"
    first, held = runtime(model).rows_evaluated, model.context
    assert first == session.statistics.prompt_tokens - 1 + session.statistics.target_passes
    list(session.chat("go on", max_tokens=40))
    assert model.context is held
    # the stop token, the role, five letters, the end, the next role: the last is the first step's
    assert session.statistics.prefilled_tokens == 1 + 1 + 5 + 1
    second = runtime(model).rows_evaluated - first
    assert second == 8 + session.statistics.target_passes


def test_an_edited_conversation_reuses_its_common_beginning() -> None:
    model = loaded(context=4096)
    session = Session(model)
    list(session.chat("the first question of two", max_tokens=10))
    list(session.chat("the second", max_tokens=10))
    held = model.context
    session.messages[2:] = [{"role": "user", "content": "other"}]
    session.messages.pop()
    list(session.chat("another second", max_tokens=10))
    assert model.context is not held
    assert session.statistics.prefilled_tokens < 30 < session.statistics.prompt_tokens
    assert consistent(model)


def test_two_sessions_share_one_cache_without_mixing_it_up() -> None:
    # how a prompt is split into passes depends on what is cached: no sizes, no difference
    model, alone = loaded(pass_sizes=()), loaded(pass_sizes=())
    a, b = Session(model), Session(model)
    only = Session(alone)
    for text in ("good morning", "and what then"):
        list(a.chat(text, max_tokens=15))
        list(b.chat("something else entirely", max_tokens=15))
        assert consistent(model)
        list(only.chat(text, max_tokens=15))
        assert a.messages == only.messages


@pytest.mark.parametrize("drafter", ["none", "suffix"])
def test_an_answer_overtaken_by_another_session_continues(drafter: str) -> None:
    # how a prompt is split into passes depends on what is cached: no sizes, no difference
    alone = Session(loaded(drafter, pass_sizes=()), ignore_stop=True)
    expected = "".join(alone.chat("good morning", max_tokens=50))
    model = loaded(drafter, pass_sizes=())
    a, b = Session(model, ignore_stop=True), Session(model)
    stream = a.chat("good morning", max_tokens=50)
    text = next(stream)
    for piece in stream:
        list(b.chat("hello", max_tokens=3))
        text += piece
    assert text == expected
    assert a.token_ids == alone.token_ids
    assert consistent(model)


def interrupt(stream: Any, how: str, pieces: int) -> list[str]:
    got = list(itertools.islice(stream, pieces))
    if how == "close":
        stream.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
    return got


@pytest.mark.parametrize("how", ["close", "ctrl-c"])
def test_a_stopped_answer_is_kept_as_far_as_it_was_said(how: str) -> None:
    model = loaded()
    session = Session(model)
    got = interrupt(session.chat("please begin", max_tokens=100), how, 3)
    assert session.messages[1:] == [{"role": "assistant", "content": "".join(got)}]
    assert session.finish_reason is None
    assert session.statistics.generated_tokens >= 3
    assert consistent(model)
    list(session.chat("and now", max_tokens=10))
    fresh = Session(loaded())
    fresh.messages[:] = [*session.messages[:2]]
    list(fresh.chat("and now", max_tokens=10))
    assert fresh.messages == session.messages


@pytest.mark.parametrize("where", ["forward", "keep"])
def test_ctrl_c_inside_the_runtime(where: str) -> None:
    model = loaded()
    session = Session(model)
    list(session.chat("first", max_tokens=5))
    whole, calls = getattr(model.target, where), itertools.count()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    setattr(model.target, where, interrupted)
    pieces: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        pieces.extend(session.chat("second", max_tokens=50))
    assert session.messages[-1] == {"role": "assistant", "content": "".join(pieces)}
    assert consistent(model)
    list(session.chat("third", max_tokens=5))
    assert session.finish_reason is not None


def test_a_question_interrupted_before_any_answer_is_withdrawn() -> None:
    def cancel(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    model = loaded()
    session = Session(model, progress=cancel)
    with pytest.raises(KeyboardInterrupt):
        list(session.chat("hello"))
    assert session.messages == []
    assert session.finish_reason is None
    assert consistent(model)


def test_a_new_answer_stops_the_one_that_still_runs() -> None:
    session = Session(loaded())
    stream = session.chat("first", max_tokens=100)
    said = next(stream)
    list(session.chat("second", max_tokens=3))
    roles = [m["role"] for m in session.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    assert session.messages[1]["content"] == said
    assert list(stream) == []


def test_an_overflowing_conversation_drops_its_oldest_turns_and_says_so() -> None:
    notices: list[str] = []
    model = loaded(context=200)
    session = Session(model, system="stay", notice=notices.append)
    texts = [f"{'abcdefghijk'[i]} question " * 3 for i in range(8)]
    for text in texts:
        list(session.chat(text, max_tokens=20))
        assert consistent(model)
        assert session.statistics.prompt_tokens + 20 <= 200
        system = model.tokenizer.encode("stay")
        assert model.context[1:5] == system
        assert all(t in model.context for t in model.tokenizer.encode(text))
    assert session.forgotten > 0
    assert 1 <= len(notices) <= 4, "half of the context is freed at a time"
    assert "200 tokens" in notices[0]
    assert "\n" not in notices[0]
    assert [m["content"] for m in session.messages if m["role"] == "user"] == texts


def test_a_message_longer_than_the_context_says_what_to_do_and_forgets_nothing() -> None:
    session = Session(loaded(context=100))
    list(session.chat("hello", max_tokens=5))
    before, forgotten = list(session.messages), session.forgotten
    with pytest.raises(UserError, match=r"prompt is 503 tokens .* holds 100; .* --context 768"):
        list(session.chat("x" * 500))
    assert session.messages == before
    assert session.forgotten == forgotten
    with pytest.raises(UserError, match="1000000 tokens"):
        list(session.complete("y" * 1_000_000))
    answer = "".join(session.chat("hello again", max_tokens=5))
    assert session.messages[len(before) :] == [
        {"role": "user", "content": "hello again"},
        {"role": "assistant", "content": answer},
    ]
    assert session.statistics.generated_tokens > 0


def test_the_end_of_the_context_ends_the_answer() -> None:
    model = loaded(context=60)
    session = Session(model, ignore_stop=True)
    list(session.chat("hello"))
    assert session.finish_reason == "length"
    assert len(model.context) == 61
    assert model.target.length == 60


def test_completion_is_raw_and_leaves_the_conversation_alone() -> None:
    model = loaded()
    session = Session(model)
    text = "".join(session.complete("abc", max_tokens=9))
    assert session.messages == []
    assert model.context[:3] == model.tokenizer.encode("abc")
    stopped = session.finish_reason == "stop"
    ids = session.token_ids[:-1] if stopped else session.token_ids
    assert text == model.tokenizer.decode(ids)


def test_an_empty_prompt_begins_with_the_beginning_token_or_is_refused() -> None:
    model = loaded()
    session = Session(model)
    list(session.complete("", max_tokens=4))
    assert model.context[0] == model.tokenizer.bos
    assert session.statistics.prompt_tokens == 1
    with pytest.raises(UserError, match="empty"):
        list(Session(loaded(bos=None)).complete(""))


@pytest.mark.parametrize("chat", [True, False])
def test_max_tokens_0_evaluates_nothing(chat: bool) -> None:
    model = loaded()
    session = Session(model)
    stream = session.chat("abc", max_tokens=0) if chat else session.complete("abc", max_tokens=0)
    assert list(stream) == []
    assert session.finish_reason == "length"
    assert session.token_ids == []
    assert runtime(model).passes == []
    figures = session.statistics.as_dict()
    assert figures["prompt_tokens"] == (6 if chat else 3)
    for name in ("generated_tokens", "ttft_s", "decode_tokens_per_s", "block_efficiency", "mbsu"):
        assert figures[name] == 0
    with pytest.raises(UserError, match="max_tokens"):
        list(session.complete("abc", max_tokens=-1))


def test_a_model_without_a_template_cannot_chat() -> None:
    model = loaded()
    model.template = None
    session = Session(model)
    with pytest.raises(UserError, match="template"):
        list(session.chat("hello"))
    assert session.messages == []


def test_a_seed_repeats_an_answer_and_no_seed_does_not() -> None:
    def say(seed: int | None) -> list[int]:
        session = Session(loaded(), sampling=Sampling(temperature=2.0, seed=seed), ignore_stop=True)
        list(session.complete("abc", max_tokens=40))
        return session.token_ids

    assert say(3) == say(3) != say(4)
    assert say(None) != say(None)


def test_statistics_are_the_designs_and_add_up() -> None:
    model = loaded("random")
    session = Session(model, ignore_stop=True)
    list(session.chat("hello", max_tokens=50))
    stats, figures = session.statistics, session.statistics.as_dict()
    assert list(figures) == KEYS
    assert stats.generated_tokens == 50 == stats.accepted + stats.target_passes
    assert figures["block_efficiency"] == figures["mbsu"] == 50 / stats.target_passes
    assert figures["acceptance_rate"] == stats.accepted / stats.drafted > 0
    assert stats.decode_s == pytest.approx(stats.draft_s + stats.pass_s + stats.overhead_s)
    assert stats.prefill_s < stats.ttft_s < stats.prefill_s + stats.decode_s
    assert figures["decode_tokens_per_s"] == pytest.approx(50 / stats.decode_s)
    assert figures["exact"] is True
    assert figures["drafter"] == "random"
    assert figures["energy_j"] is None
    assert figures["runtime"] == "memory"


def test_mbsu_charges_draft_passes() -> None:
    stats = Statistics(generated_tokens=30, target_passes=10, draft_passes=40, draft_pass_cost=0.25)
    assert stats.mbsu == pytest.approx(3 / 2)


def test_peak_memory_counts_what_was_touched() -> None:
    before = peak_memory_bytes()
    block = np.ones(before + 2**26, dtype=np.uint8)
    assert peak_memory_bytes() >= block.nbytes
    del block
    assert peak_memory_bytes() >= before + 2**26


def test_a_lossy_rule_is_named_and_refused_where_it_would_do_nothing() -> None:
    warm = Sampling(temperature=1.0, seed=1)
    session = Session(loaded(), sampling=warm, acceptance="typical")
    "".join(session.complete("ab", max_tokens=20))
    figures = session.statistics.as_dict()
    assert (figures["acceptance"], figures["exact"]) == ("typical", False)
    with pytest.raises(UserError, match="--temperature above 0"):
        Session(loaded(), acceptance="typical")
    with pytest.raises(UserError, match="--draft MODEL"):
        Session(loaded(), sampling=warm, acceptance="entropy")


def test_a_trace_is_of_the_sessions_own_answer() -> None:
    """Another session of the same engine may have answered meanwhile."""
    model = loaded("suffix")
    first, other = Session(model), Session(model)
    list(first.complete("abcabc", max_tokens=8))
    before = first.trace()
    list(other.complete("something else", max_tokens=8))
    assert first.trace() == before
    assert list(before.prompt) == first.prompt_ids == model.tokenizer.encode("abcabc")
    assert before.recording is not None
    assert before.recording.fresh
    assert sum(1 + len(step.tokens) for step in before.recording.steps) >= 8
    assert other.trace().recording.fresh is False  # type: ignore[union-attr]


class CountingTemplate(LetterTemplate):
    """Counts the characters that are rendered."""

    rendered = 0

    def render(self, messages: Any, add_generation_prompt: bool = True) -> list[int]:
        self.rendered += sum(len(message["content"]) for message in messages)
        return super().render(messages, add_generation_prompt)


@pytest.mark.parametrize("turns", [30, 300, 3000])
@pytest.mark.parametrize("context", [200, 400])
def test_turns_that_do_not_fit_are_dropped_before_they_are_rendered(
    turns: int, context: int
) -> None:
    """A long conversation from elsewhere costs about what fits, however long it is."""
    model = loaded(context=context)
    template = CountingTemplate(cast(Any, model.tokenizer))
    model.template = cast(Any, template)
    session = Session(model, system="stay")
    for turn in range(turns):
        letters = "abcdefghijklmnop"[: 4 + turn % 12]
        session.messages.append({"role": "user", "content": letters})
        session.messages.append({"role": "assistant", "content": letters})
    tokens = session._prompt(None)
    rendered = template.rendered

    def render(start: int) -> list[int]:
        return template.render(session.messages[:1] + session.messages[1 + start :])

    fitting = itertools.takewhile(
        lambda start: len(render(start)) <= context // 2, range(2 * turns - 2, 0, -2)
    )
    assert session.forgotten == min(fitting)
    assert tokens == render(session.forgotten)
    assert rendered < 16 * context + 12 * context
