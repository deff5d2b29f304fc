"""Answers of one engine, read from several threads and from asyncio, closed and cancelled."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgespec import EngineBusy, EngineClosed, UserError
from edgespec.queueing import Answer, Call
from edgespec.session import EngineState, Session
from tests.test_session import consistent, loaded

TEXTS = ["one morning", "another day", "the third", "last of all"]


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """The result or the error of each function, each run in a thread of its own."""
    found: list[Any] = [None] * len(functions)

    def run(i: int) -> None:
        try:
            found[i] = functions[i]()
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return found


def answer(model: EngineState, text: str) -> str:
    return "".join(Session(model, ignore_stop=True).complete(text, max_tokens=40))


def blocked(model: EngineState) -> tuple[threading.Event, threading.Event]:
    """Let the next pass of ``model`` set the first event and wait for the second."""
    entered, proceed, whole = threading.Event(), threading.Event(), model.target.forward

    def forward(*args: Any, **options: Any) -> Any:
        entered.set()
        assert proceed.wait(60)
        return whole(*args, **options)

    model.target.forward = forward  # type: ignore[method-assign]
    return entered, proceed


@pytest.mark.parametrize("drafter", ["none", "suffix"])
def test_each_thread_gets_its_own_answer(drafter: str) -> None:
    expected = [answer(loaded(drafter, pass_sizes=()), text) for text in TEXTS]
    model = loaded(drafter, pass_sizes=())
    for _ in range(5):
        assert in_threads(*[lambda t=t: answer(model, t) for t in TEXTS]) == expected  # type: ignore[misc]
        assert consistent(model)


def test_two_threads_in_one_session_take_turns() -> None:
    session = Session(loaded())
    in_threads(*[lambda t=t: list(session.chat(t, max_tokens=5)) for t in TEXTS])  # type: ignore[misc]
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * len(TEXTS)
    assert sorted(m["content"] for m in session.messages[::2]) == sorted(TEXTS)


def test_a_paused_stream_gives_its_turn_to_another_thread_and_continues() -> None:
    expected = answer(loaded(pass_sizes=()), TEXTS[0])
    model = loaded(pass_sizes=())
    model.turns.patience = 0.0
    stream = Session(model, ignore_stop=True).complete(TEXTS[0], max_tokens=40)
    first = next(stream)
    [other] = in_threads(lambda: answer(model, TEXTS[1]))
    assert other == answer(loaded(pass_sizes=()), TEXTS[1])
    assert first + "".join(stream) == expected


def test_a_call_that_does_not_wait_names_the_running_answer() -> None:
    model = loaded()
    entered, proceed = blocked(model)
    running = threading.Thread(target=answer, args=(model, TEXTS[0]), name="worker-7")
    running.start()
    assert entered.wait(60)
    with pytest.raises(EngineBusy, match=r"the answer to 'one morning' in worker-7") as caught:
        list(Session(model, wait=0).complete("abc", max_tokens=3))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)
    proceed.set()
    running.join(60)
    assert list(Session(model, wait=0).complete("abc", max_tokens=3))


def test_a_call_from_inside_an_answer_is_busy() -> None:
    model = loaded()
    errors: list[Exception] = []

    def progress(what: str, done: int, total: int) -> None:
        try:
            list(Session(model).complete("abc", max_tokens=3))
        except EngineBusy as error:
            errors.append(error)

    list(Session(model, progress=progress).complete(TEXTS[0], max_tokens=3))
    assert errors
    assert all("waits for this call" in str(error) for error in errors)


def test_a_queued_answer_can_be_cancelled() -> None:
    model = loaded()
    entered, proceed = blocked(model)
    queued = Session(model).complete(TEXTS[1], max_tokens=5)

    def cancel() -> None:
        assert entered.wait(60)
        queued.cancel()
        proceed.set()

    def read() -> list[str]:
        assert entered.wait(60)
        return list(queued)

    first, pieces, _ = in_threads(lambda: answer(model, TEXTS[0]), read, cancel)
    assert pieces == []
    assert first == answer(loaded(), TEXTS[0])


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_running_answer_ends_before_its_next_pass(how: str) -> None:
    model = loaded()
    session = Session(model, ignore_stop=True)
    stream = session.chat(TEXTS[0], max_tokens=100)
    entered, proceed = blocked(model)

    def end() -> None:
        assert entered.wait(60)
        model.turns.cancel(stream)
        proceed.set()
        getattr(stream, how)()

    pieces, _ = in_threads(lambda: list(stream), end)
    assert len(pieces) <= 1
    assert list(stream) == []
    assert session.finish_reason is None
    assert answer(model, TEXTS[1]) == answer(loaded(), TEXTS[1])


def test_a_dropped_stream_frees_its_turn() -> None:
    model = loaded()
    stream = Session(model).complete(TEXTS[0], max_tokens=50)
    next(stream)
    del stream
    gc.collect()
    assert in_threads(lambda: list(Session(model, wait=0).complete("abc", max_tokens=3)))[0]


def test_a_stream_gives_its_turn_when_its_reader_waits_too() -> None:
    """Another thread waits before the reader's next call: the stream cannot continue before both."""
    model = loaded()
    model.turns.patience = 1e9
    stream = Session(model).complete(TEXTS[0], max_tokens=50)
    queued, waits = threading.Event(), model.turns._changed.wait

    def wait(timeout: float | None = None) -> bool:
        queued.set()
        return waits(timeout)

    model.turns._changed.wait = wait  # type: ignore[method-assign]

    def read() -> str:
        next(stream)
        other.start()
        assert queued.wait(60)
        return answer(model, TEXTS[2])

    other = threading.Thread(target=answer, args=(model, TEXTS[1]))
    assert in_threads(read) == [answer(loaded(), TEXTS[2])]
    other.join(60)
    assert not other.is_alive()


def test_ctrl_c_at_the_end_of_a_turn_leaves_it_free() -> None:
    model = loaded()
    leave, calls = model.turns._leave, itertools.count()

    def interrupted(call: Call) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        leave(call)

    model.turns._leave = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        answer(model, TEXTS[0])
    assert in_threads(lambda: list(Session(model, wait=0).complete("abc", max_tokens=3)))[0]


@pytest.mark.parametrize("how", ["end", "close", "drop", "ctrl-c"])
def test_learnt_ngrams_are_saved_after_any_answer(how: str) -> None:
    model = loaded()
    saved: list[float] = []
    model.cache = cast(Any, SimpleNamespace(save=lambda every: saved.append(every)))
    stream = Session(model).complete(TEXTS[0], max_tokens=20)
    next(stream)
    assert not saved
    if how == "end":
        list(stream)
    elif how == "close":
        stream.close()
    elif how == "drop":
        del stream
    else:
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
    assert len(saved) == 1


def test_ngrams_are_not_saved_while_another_thread_uses_them() -> None:
    model = loaded()
    model.turns.patience = 0.0
    saved: list[float] = []
    stream = Session(model).complete(TEXTS[0], max_tokens=20)
    next(stream)
    model.cache = cast(Any, SimpleNamespace(save=lambda every: saved.append(every)))
    entered, proceed = blocked(model)
    running = threading.Thread(target=answer, args=(model, TEXTS[1]))
    running.start()
    assert entered.wait(60)
    stream.close()
    assert not saved
    proceed.set()
    running.join(60)
    assert len(saved) == 1


def test_a_conversation_reset_by_its_own_answer_stays_empty() -> None:
    def progress(what: str, done: int, total: int) -> None:
        session.reset()

    session = Session(loaded(), progress=progress)
    assert list(session.chat("abc" * 20, max_tokens=3)) == []
    assert session.messages == []


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_calls_ends_in_answers_and_public_errors(seed: int) -> None:
    """Six threads answer, pause, cancel, close, reset and trace; half of the engines close meanwhile."""
    expected = {text: answer(loaded(pass_sizes=()), text) for text in TEXTS}
    model = loaded(pass_sizes=())
    model.turns.patience = 0.001
    shared, streams = Session(model, ignore_stop=True), []
    freed: list[bool] = []

    def calls(thread: int) -> bool:
        rng = random.Random(f"{seed} {thread}")
        for _ in range(15):
            text, wait = rng.choice(TEXTS), rng.choice([None, None, 0.0, 0.005])
            stream = Session(model, ignore_stop=True, wait=wait).complete(text, max_tokens=40)
            kind = rng.randrange(6)
            try:
                if kind < 2:
                    assert "".join(stream) == expected[text]
                elif kind == 2:
                    streams.append(stream)
                    next(rng.choice(streams), None)
                elif kind == 3 and streams:
                    rng.choice([Answer.cancel, Answer.close])(rng.choice(streams))
                elif kind == 4:
                    list(shared.chat(text, max_tokens=5))
                elif shared.token_ids:
                    rng.choice([shared.trace, shared.reset])()
            except (EngineBusy, EngineClosed):
                pass
        return True

    functions: list[Callable[[], Any]] = [partial(calls, thread) for thread in range(6)]
    if seed % 2:
        functions.append(lambda: model.turns.close(lambda: freed.append(True)))
    switches = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        assert in_threads(*functions)[:6] == [True] * 6
    finally:
        sys.setswitchinterval(switches)
    if seed % 2:
        assert freed == [True]
    else:
        assert consistent(model)
        assert answer(model, TEXTS[0]) == expected[TEXTS[0]]


def test_closing_under_a_running_answer_waits_for_its_pass() -> None:
    model = loaded()
    entered, proceed = blocked(model)
    freed: list[bool] = []

    def close() -> None:
        assert entered.wait(60)
        threading.Timer(0.05, proceed.set).start()  # closing waits for it
        model.turns.close(lambda: freed.append(True))

    running, _ = in_threads(lambda: answer(model, TEXTS[0]), close)
    assert isinstance(running, EngineClosed)
    assert freed == [True]
    model.turns.close(lambda: freed.append(True))
    assert freed == [True], "closing twice frees once"
    for call in (lambda: answer(model, "abc"), lambda: Session(model).complete("abc").send(None)):
        with pytest.raises(EngineClosed, match="closed; open another"):
            call()


def test_closing_inside_an_answer_frees_when_it_has_ended() -> None:
    model = loaded()
    freed: list[bool] = []

    def progress(what: str, done: int, total: int) -> None:
        model.turns.close(lambda: freed.append(True))
        assert not freed

    with pytest.raises(EngineClosed):
        list(Session(model, progress=progress).complete("abc" * 20, max_tokens=3))
    assert freed == [True]


def test_asyncio_reads_streams_side_by_side_and_cancels_them() -> None:
    model = loaded(pass_sizes=())
    model.turns.patience = 0.0

    async def read(text: str) -> str:
        stream = Session(model, ignore_stop=True).complete(text, max_tokens=40)
        return "".join([piece async for piece in stream])

    async def interleaved(text: str) -> str:
        found = ""
        for piece in Session(model, ignore_stop=True).complete(text, max_tokens=40):
            found += piece
            await asyncio.sleep(0)
        return found

    async def run() -> None:
        expected = [answer(loaded(pass_sizes=()), text) for text in TEXTS]
        assert await asyncio.gather(*map(read, TEXTS)) == expected
        assert await asyncio.gather(*map(interleaved, TEXTS)) == expected
        task = asyncio.create_task(read(TEXTS[0]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await read(TEXTS[1]) == expected[1]

    asyncio.run(run())
