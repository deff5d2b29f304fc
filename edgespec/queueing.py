"""One owner of the model's cache: calls take turns in the order in which they came.

A call is an answer, or other work on the model. One thread runs it at a time. A stream is paused
between two pieces and keeps its turn, so that its cached tokens stay. A waiting call takes the turn
of a stream that is paused longer than ``PATIENCE_S``. It does so at once if the thread that read the
last piece waits too: the stream cannot continue before that.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakSet, ref

from edgespec.errors import EngineBusy, EngineClosed
from edgespec.forking import check_process

T = TypeVar("T")

PATIENCE_S = 1.0
"""Seconds that a paused stream keeps its turn while other calls wait."""
_POLL_S = 0.1
"""Seconds of one wait. Patience ends between two waits, and Windows delivers Ctrl-C only there."""
_CLOSED = "the engine has been closed; open another one"
_ENDING = "the program ends, and its engines are closed"


class Cancelled(BaseException):
    """Ends a call from inside."""


class Call:
    """A use of the model. ``wait``: seconds to wait for other calls; ``None``: no limit."""

    def __init__(self, label: str, wait: float | None = None) -> None:
        self.label, self.wait = label, wait
        self.ended = False
        """Whether it has finished, or must end before its next pass."""
        self.thread: threading.Thread | None = None
        """The thread that runs it or ran it last."""
        self.paused_at = 0.0

    def release(self) -> None:
        """Free what an ended call holds. No thread runs it."""


class Turns:
    """Lets one call at a time use a model. Safe to use from several threads.

    ``patience`` is ``PATIENCE_S``; ``clock`` returns seconds.
    """

    def __init__(
        self, patience: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.patience, self._clock = patience, clock
        self.handovers = 0
        """How often another call than before got the turn, and may have changed the caches."""
        self._process = os.getpid()
        # Entered by itself: Ctrl-C inside of Condition.__enter__ would leave it locked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: list[threading.Thread] = []
        self._running: Call | None = None
        self._holder: Callable[[], Call | None] = lambda: None
        """The call that runs or is paused. A weak reference: a stream that nobody reads ends."""
        self._calls: WeakSet[Call] = WeakSet()
        self._closed: str | None = None
        self._free: Callable[[], None] | None = None  # set by ``close`` until it was called

    def run(self, call: Call, work: Callable[[], T]) -> T:
        """Wait for ``call``'s turn and do ``work`` in this thread.

        Raises ``EngineBusy`` if this thread runs a call already or ``call.wait`` is over,
        ``EngineClosed`` if the engine is closed or belongs to another process, and ``Cancelled`` if
        ``call`` has ended.
        """
        check_process(self._process)
        if self._is_running_here():
            raise EngineBusy(
                f"{self._busy_with()}, which waits for this call; call the engine after it"
            )
        try:
            self._enter(call)
            return work()
        finally:
            try:
                self._leave(call)
            except KeyboardInterrupt:  # else nobody would get the turn any more
                self._leave(call)
                raise

    def check(self) -> None:
        """Raise what ends the running call. For use between two passes."""
        if self._running is not None:
            self._check(self._running)

    def if_free(self, work: Callable[[], None]) -> None:
        """Do ``work`` on the caches, unless another thread uses them."""
        if not self._is_forked():
            with self._lock:
                if self._running is None or self._is_running_here():
                    work()

    def cancel(self, call: Call, *, wait: bool = False) -> None:
        """End ``call``: before its next pass if it runs, now if not. ``wait`` for the running pass.

        In a forked process nothing happens: the locks may belong to threads of the other process.
        """
        if self._is_forked():
            return
        with self._lock:
            call.ended = True
            self._changed.notify_all()
            while wait and self._running is call and not self._is_running_here():
                self._changed.wait(_POLL_S)
            if self._running is not call:
                call.release()

    def close(self, free: Callable[[], None]) -> None:
        """End all calls, then call ``free`` once. Waits for the running pass.

        If this thread runs a call, ``free`` is called when that has ended. In a forked process
        nothing happens: the memory belongs to the other process.
        """
        if self._is_forked():
            return
        with self._lock:
            if self._closed != _CLOSED:
                self._closed, self._free = _CLOSED, free
            self._changed.notify_all()
            while self._running is not None and not self._is_running_here():
                self._changed.wait(_POLL_S)
            self._free_if_closed()

    def stop(self) -> None:
        """End all calls because the program ends. Waits for the running pass."""
        if self._is_forked() or self._closed is not None:
            return
        with self._lock:
            self._closed = _ENDING
            self._changed.notify_all()
            while self._running is not None:
                self._changed.wait(_POLL_S)
            for call in list(self._calls):
                self.cancel(call)

    def _is_forked(self) -> bool:
        return os.getpid() != self._process

    def _is_running_here(self) -> bool:
        running = self._running
        return running is not None and running.thread is threading.current_thread()

    def _check(self, call: Call) -> None:
        if call.ended:
            raise Cancelled
        if self._closed == _ENDING and threading.current_thread() is not threading.main_thread():
            raise SystemExit  # ends a daemon thread without a traceback
        if self._closed is not None:
            raise EngineClosed(self._closed)

    def _enter(self, call: Call) -> None:
        thread, started = threading.current_thread(), self._clock()
        with self._lock:
            self._queue.append(thread)
            try:
                while not self._may_run(call, thread):
                    left = _POLL_S
                    if call.wait is not None:
                        left = min(left, started + call.wait - self._clock())
                        if left <= 0:
                            raise EngineBusy(
                                f"{self._busy_with()}; try again later, or wait longer than {call.wait:g} s"
                            )
                    self._changed.wait(left)
            finally:
                self._queue.remove(thread)
            if self._holder() is not call:
                self.handovers += 1
            self._calls.add(call)
            call.thread, self._holder, self._running = thread, ref(call), call

    def _may_run(self, call: Call, thread: threading.Thread) -> bool:
        self._check(call)
        holder = self._holder()
        if self._running is not None:
            return False
        if holder is call:
            return True
        if self._queue[0] is not thread:
            return False
        return (
            holder is None
            or holder.ended
            or holder.thread in self._queue
            or self._clock() >= holder.paused_at + self.patience
        )

    def _leave(self, call: Call) -> None:
        with self._lock:
            if self._running is call and self._is_running_here():
                self._running, call.paused_at = None, self._clock()
                if call.ended:
                    call.release()
                self._free_if_closed()
            self._changed.notify_all()

    def _free_if_closed(self) -> None:
        if self._running is None and self._free is not None:
            free, self._free = self._free, None
            free()

    def _busy_with(self) -> str:
        call = self._running or self._holder()
        if call is None or call.thread is None:
            return "the engine is busy with calls that came earlier"
        return f"the engine is busy with {call.label} in {call.thread.name}"


class Answer(Call, Generator[str, None, None]):
    """The pieces of one answer. Any thread may read it, close it or cancel it.

    Reading waits for the answer's turn, and raises ``EngineBusy`` or ``EngineClosed`` as
    ``Turns.run`` does. ``async for`` reads it in a thread of its own and cancels it when the loop
    ends. ``begin`` is called with the answer before each piece.
    """

    def __init__(
        self,
        pieces: Generator[str, None, None],
        turns: Turns,
        begin: Callable[[Answer], None],
        label: str,
        wait: float | None,
    ) -> None:
        super().__init__(label, wait)
        self._pieces, self._turns, self._begin = pieces, turns, begin

    def send(self, value: None) -> str:
        """The next piece."""
        return self._advance(lambda: self._pieces.send(value))

    def throw(self, *error: Any) -> str:
        """Raise an exception in the answer, which ends it."""
        return self._advance(lambda: self._pieces.throw(*error))

    def cancel(self) -> None:
        """End the answer without waiting: a queued one now, a running one before its next pass."""
        self._turns.cancel(self)

    def close(self) -> None:
        """End the answer. Waits for its pass, unless the caller is that pass's own thread."""
        self._turns.cancel(self, wait=True)

    def release(self) -> None:
        """End the answer's generator, which keeps the text so far."""
        self._pieces.close()

    async def __aiter__(self) -> AsyncIterator[str]:
        """Read the answer without blocking the event loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        # The loop's own threads may all be waiting for this answer to end.
        reader = ThreadPoolExecutor(1, "edgespec-answer")
        try:
            while (piece := await loop.run_in_executor(reader, next, self, None)) is not None:
                yield piece
        finally:
            self.cancel()
            reader.shutdown(wait=False)

    def _advance(self, step: Callable[[], str]) -> str:
        def work() -> str:
            try:
                self._begin(self)
                return step()
            except BaseException:
                self.ended = True
                raise

        try:
            return self._turns.run(self, work)
        except Cancelled:
            raise StopIteration from None
        except EngineClosed:
            self.cancel()
            raise
