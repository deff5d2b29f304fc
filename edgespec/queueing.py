"""One owner of the model's cache: calls take turns in the order in which they came.

A call is an answer, or other work on the model. One thread runs it at a time. A stream is paused
between two pieces and keeps its turn, so that its cached tokens stay. A waiting call takes the turn
of a stream that is paused longer than ``PATIENCE_S``. It does so at once if the waiting thread
itself read the last piece: the stream cannot continue while its reader waits.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from edgespec.errors import EngineBusy, EngineClosed
from edgespec.forking import check_process

PATIENCE_S = 1.0
"""Seconds that a paused stream keeps its turn while other calls wait."""
_POLL_S = 0.1
"""Seconds of one wait: Windows delivers Ctrl-C only between two."""
_LEAVE_S = 1.0
"""Seconds that the end of the program waits for threads to leave the engine."""
_CLOSED = "the engine has been closed; open another one"
_ENDING = "the program ends, and its engines are closed"


class Stopped(BaseException):
    """Ends a running call from inside: it was cancelled, or the engine was closed."""


@dataclass(eq=False)
class Call:
    """A call as the queue knows it. ``wait``: seconds to wait for other calls; ``None``: no limit."""

    label: str
    wait: float | None = None
    cancelled: bool = False
    finished: bool = False
    thread: threading.Thread | None = None
    """The thread that ran it last."""
    paused_at: float = 0.0


@dataclass(eq=False)
class _Entry:
    """A thread that waits to run a call, or runs it."""

    call: Call
    thread: threading.Thread = field(default_factory=threading.current_thread)


class Turns:
    """Lets one call at a time use a model. Safe to use from several threads.

    ``patience`` is ``PATIENCE_S``; ``clock`` returns seconds.
    """

    def __init__(
        self, patience: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.patience, self._clock = patience, clock
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._queue: list[_Entry] = []
        self._running: _Entry | None = None
        self._holder: Call | None = None  # running or paused
        self._closed: str | None = None
        self._free: Callable[[], None] | None = None  # set by ``close`` until it was called

    @contextmanager
    def turn(self, call: Call) -> Iterator[None]:
        """Wait for ``call``'s turn and run it in this thread.

        Raises ``EngineBusy`` if this thread runs a call already or ``call.wait`` is over,
        ``EngineClosed`` if the engine is closed or belongs to another process, and ``Stopped`` if
        ``call`` was cancelled.
        """
        check_process(self._process)
        entry = _Entry(call)
        try:
            self._enter(entry)
            yield
        finally:
            self._leave(entry)

    @property
    def forked(self) -> bool:
        """Whether this process was forked from the engine's."""
        return os.getpid() != self._process

    @property
    def closed(self) -> str | None:
        """Why the engine is closed; ``None`` while it is open."""
        return self._closed

    def check(self) -> None:
        """Raise ``Stopped`` if the running call is to end. For use between two passes."""
        holder = self._holder
        if self._closed is not None or (holder is not None and holder.cancelled):
            raise Stopped

    def runs_here(self, call: Call) -> bool:
        """Whether this thread runs ``call``."""
        running = self._running
        return (
            running is not None
            and running.call is call
            and running.thread is threading.current_thread()
        )

    def cancel(self, call: Call) -> None:
        """Ask ``call`` to end: before its next pass if it runs, at once if it waits."""
        if not self.forked:
            with self._changed:
                call.cancelled = True
                self._changed.notify_all()

    def close(self, free: Callable[[], None]) -> None:
        """End all calls, then call ``free`` once. Waits for the pass that runs.

        If the running call is in this thread, ``free`` is called when that call has ended. After a
        fork nothing happens in the child: the memory belongs to the parent.
        """
        if self.forked:
            return
        with self._changed:
            first = self._closed != _CLOSED
            self._closed = _CLOSED
            if first:
                self._free = free
            self._changed.notify_all()
            running = self._running
            if running is not None and running.thread is threading.current_thread():
                return
            while self._running is not None:
                self._changed.wait(_POLL_S)
            self._free_now()

    def stop(self) -> None:
        """End all calls because the program ends; the threads get a moment to leave."""
        if self.forked or self._closed is not None:
            return
        with self._changed:
            self._closed = _ENDING
            entries = [*self._queue, *([self._running] if self._running else [])]
            self._changed.notify_all()
            while self._running is not None:
                self._changed.wait(_POLL_S)
        deadline = self._clock() + _LEAVE_S
        for entry in entries:
            with suppress(AssertionError, RuntimeError):  # a thread that Python did not start
                entry.thread.join(max(0.0, deadline - self._clock()))

    def _enter(self, entry: _Entry) -> None:
        wait = entry.call.wait
        deadline = None if wait is None else self._clock() + wait
        with self._changed:
            running = self._running
            if running is not None and running.thread is entry.thread:
                raise EngineBusy(
                    f"{self._describe()}, which waits for this call; call the engine after it"
                )
            try:
                self._queue.append(entry)
                while not self._may_run(entry):
                    if deadline is not None and self._clock() >= deadline:
                        raise EngineBusy(
                            f"{self._describe()}; try again later, or wait longer than {wait:g} s"
                        )
                    left = _POLL_S if deadline is None else deadline - self._clock()
                    self._changed.wait(min(_POLL_S, max(0.0, left)))
            finally:
                with suppress(ValueError):
                    self._queue.remove(entry)
            self._running, self._holder = entry, entry.call
            entry.call.thread = entry.thread

    def _may_run(self, entry: _Entry) -> bool:
        if self._closed is not None:
            raise EngineClosed(self._closed)
        if entry.call.cancelled:
            raise Stopped
        holder = self._holder
        if self._running is not None:
            return False
        if holder is entry.call:
            return True
        if self._queue[0] is not entry:
            return False
        return (
            holder is None
            or holder.cancelled
            or holder.finished
            or holder.thread is entry.thread
            or self._clock() >= holder.paused_at + self.patience
        )

    def _leave(self, entry: _Entry) -> None:
        with self._changed:
            if self._running is entry:
                self._running = None
                entry.call.paused_at = self._clock()
                if entry.call.finished:
                    self._holder = None
                if self._closed is not None:
                    self._free_now()
            self._changed.notify_all()

    def _free_now(self) -> None:
        free, self._free = self._free, None
        self._holder = None
        if free is not None:
            free()

    def _describe(self) -> str:
        call = self._holder or self._queue[0].call
        name = call.thread.name if call.thread else "another thread"
        return f"the engine is busy with {call.label} in {name}"


class Answer(Generator[str, None, None]):
    """The pieces of one answer. Any thread may read it, close it or cancel it.

    Reading waits for the answer's turn, and raises ``EngineBusy`` or ``EngineClosed`` as
    ``Turns.turn`` does. ``async for`` reads it in a thread of its own and cancels it if the task is
    cancelled. ``begin`` is called with the answer before its first piece.
    """

    def __init__(
        self,
        pieces: Generator[str, None, None],
        turns: Turns,
        call: Call,
        begin: Callable[[Answer], None],
    ) -> None:
        self._pieces, self._turns, self._call, self._begin = pieces, turns, call, begin
        self._advancing = threading.Lock()
        self._begun = False

    def send(self, value: None) -> str:
        """The next piece."""
        return self._advance(self._pieces.send, value)

    def throw(self, *error: Any) -> str:
        """Raise an exception in the answer, which ends it."""
        return self._advance(self._pieces.throw, *error)

    def cancel(self) -> None:
        """End the answer without waiting: a queued one at once, a running one before its next pass."""
        self._turns.cancel(self._call)
        if self._advancing.acquire(blocking=False):
            try:
                self._finish()
            finally:
                self._advancing.release()

    def close(self) -> None:
        """End the answer. Waits for its pass, unless the caller is that pass's own thread."""
        self.cancel()
        waits = not self._turns.forked and not self._turns.runs_here(self._call)
        if waits and not self._call.finished:
            with self._advancing:
                self._finish()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Read the answer without blocking the event loop."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        loop = asyncio.get_running_loop()
        # The loop's own threads may all be waiting for this answer to end.
        with _left_alone(ThreadPoolExecutor(1, "edgespec-answer")) as reader:
            try:
                while (piece := await loop.run_in_executor(reader, next, self, None)) is not None:
                    yield piece
            finally:
                self.cancel()

    def __del__(self) -> None:
        if hasattr(self, "_begun"):
            self.cancel()

    def _advance(self, step: Callable[..., str], *arguments: Any) -> str:
        if self._call.finished:
            raise StopIteration
        try:
            with self._turns.turn(self._call):
                piece = self._piece(step, *arguments)
        except EngineClosed:
            self.close()
            raise
        except Stopped:
            cancelled = self._call.cancelled
            self.close()
            if cancelled:
                raise StopIteration from None
            raise EngineClosed(self._turns.closed) from None
        if piece is None:
            raise StopIteration
        return piece

    def _piece(self, step: Callable[..., str], *arguments: Any) -> str | None:
        """The next piece; ``None`` at the end."""
        with self._advancing:
            if self._call.finished:
                return None
            try:
                if not self._begun:
                    self._begun = True
                    self._begin(self)
                piece = step(*arguments)
            except StopIteration:
                self._call.finished = True
                return None
            except BaseException:
                self._finish()
                raise
            if self._call.cancelled:
                self._finish()
            return piece

    def _finish(self) -> None:
        """End the answer's generator, which keeps the text so far."""
        self._call.finished = True
        self._pieces.close()


@contextmanager
def _left_alone(executor: Any) -> Iterator[Any]:
    """``executor``, shut down at the end without waiting for its thread."""
    try:
        yield executor
    finally:
        executor.shutdown(wait=False)
