"""The bench's side of a worker: starts it, asks it, and loses nothing when it crashes, hangs or lies."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import psutil

MAX_LINE = 64 << 20
"""Bytes of a reply."""
_GRACE_S = 5.0
"""Given to a worker to end by itself."""
_CLOCK_S = 1e-3
"""By which a worker's clock may differ from ours."""
_FAMILIAR_S = 5.0
"""Between two looks for new processes while memory is watched: a look reads all of the machine's."""
_SLICE_S = 0.5
_MAX_TEXT = 300


class PeerFailure(Exception):
    """One line: how a worker failed to answer."""


class Client:
    """A worker's process, and all processes that it starts. A failure other than ``{"error": …}`` ends it."""

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        """Start it; what it prints on stderr is appended to ``log``. Raises ``PeerFailure``."""
        self._lock = threading.Lock()  # others look at its memory while it answers
        self._seen: dict[psutil.Process, float] = {}
        """Processor time of each of its processes, when last looked at."""
        self._looked = 0.0
        self._cpu_s = 0.0
        self._closed = False
        self._writer: threading.Thread | None = None
        self._log, self._log_start = log, log.stat().st_size if log.exists() else 0
        with log.open("ab") as stderr:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=env,
                    # Ctrl-C is the bench's: it decides when its workers end.
                    start_new_session=True,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
            except OSError as error:
                why = error.strerror or str(error)
                raise PeerFailure(f"cannot be started: {command[0]}: {why}") from error
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen[psutil.Process(self._process.pid)] = 0.0
        self._replies: queue.Queue[bytes | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pids(self) -> list[int]:
        """Of its processes that run now."""
        return [process.pid for process in self._tree()]

    def resident_bytes(self) -> int:
        """Of its processes together, now."""
        total = 0
        for process in self._tree(_FAMILIAR_S):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def cpu_seconds(self) -> float:
        """Of all cores, by its processes so far. One that ends between two looks may count too little."""
        live = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._seen[process] = times.user + times.system
                # Of children that ended; on Linux only, and there exact.
                ended = getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
                live += self._seen[process] + ended
        with self._lock:
            self._cpu_s = max(self._cpu_s, live, sum(self._seen.values()))
        return self._cpu_s

    def request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Its reply, and ``wall_s``: how long it took, as seen here. Raises ``PeerFailure``."""
        if self._closed:
            raise PeerFailure("has been closed")
        try:
            reply = self._ask(message, timeout_s)
        except BaseException:  # the next reply would be this request's
            self._end(0)
            raise
        if isinstance(error := reply.get("error"), str):
            raise PeerFailure(_line(error))
        return reply

    def close(self) -> None:
        """End it and all that it started: first by closing its stdin, then by killing it. Never raises."""
        self._end(_GRACE_S)

    def _ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        data = json.dumps(message).encode() + b"\n"
        if not self._replies.empty():
            self._failed("replied without a request")
        started = perf_counter()
        # In a thread: a worker that does not read would hold us up for ever.
        self._writer = threading.Thread(target=self._write, args=[data], daemon=True)
        self._writer.start()
        line = self._next_line(started + timeout_s)
        wall_s = perf_counter() - started
        if line is None:
            raise PeerFailure(f"did not reply for {timeout_s:g} s")
        if not line.endswith(b"\n"):
            self._failed(f"a line of more than {MAX_LINE} bytes")
        try:
            reply = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError):
            self._failed(f"no JSON: {_line(line[:80].decode('utf-8', 'replace'))}")
        if not isinstance(reply, dict):
            self._failed(f"a {type(reply).__name__}, not an object")
        return {**reply, "wall_s": wall_s}

    def _next_line(self, until: float) -> bytes | None:
        """``None`` if there is none by then. In slices: Windows delivers Ctrl-C between them, and a child
        of a worker that has crashed may hold its output open."""
        while (left := until - perf_counter()) > 0:
            ended = self._process.poll() is not None
            try:
                line = self._replies.get(timeout=min(left, _SLICE_S))
            except queue.Empty:
                if not ended:
                    continue
                line = None
            if line is None:
                raise PeerFailure(self._how_it_ended())
            return line
        return None

    def _failed(self, what: str) -> NoReturn:
        raise PeerFailure(f"answered garbage: {what}")

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return "closed its output and went on"
        if code < 0:
            names = {s.value: s.name for s in signal.Signals}
            how = f"crashed with signal {names.get(-code, str(-code))}"
        else:
            how = f"crashed with exit code {code}"
        with self._log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - 4096))
            output = log.read().decode("utf-8", "replace")
        last = [line for line in output.splitlines() if line.strip()][-1:]
        return ": ".join([how, *map(_line, last)])

    def _read(self) -> None:
        """Lines of its stdout, in a thread of its own; ``None`` at the end, or after one too long."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(MAX_LINE):
            if line.endswith(b"\n") or len(line) == MAX_LINE:
                self._replies.put(line)
            if not line.endswith(b"\n"):  # half a line, then the end, is no reply
                break
        self._replies.put(None)

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # it ended: the reader sees that
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _tree(self, age_s: float = 0.0) -> list[psutil.Process]:
        """Those that run now, new ones looked for unless that was done ``age_s`` ago or later.

        All that were ever seen are remembered, should their parent end.
        """
        with self._lock:
            if perf_counter() - self._looked >= age_s:
                for top in list(self._seen)[:1]:
                    with contextlib.suppress(psutil.Error):
                        for process in top.children(recursive=True):
                            self._seen.setdefault(process, 0.0)
                self._looked = perf_counter()
            return [process for process in self._seen if _runs(process)]

    def _end(self, grace_s: float) -> None:
        if self._closed:
            return
        self._closed = True
        self.cpu_seconds()
        if grace_s and not (self._writer and self._writer.is_alive()):
            self._close_pipe(self._process.stdin)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        self._kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        for thread, pipe in (
            (self._writer, self._process.stdin),
            (self._reader, self._process.stdout),
        ):
            if thread:
                thread.join(_GRACE_S)
            if not (thread and thread.is_alive()):  # closing would wait for it
                self._close_pipe(pipe)

    def _kill(self) -> None:
        """Everything: by its group where there are groups, and each process that was ever seen."""
        tree = self._tree()
        if sys.platform != "win32":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for process in tree:
            with contextlib.suppress(psutil.Error):
                process.kill()
        until = perf_counter() + _GRACE_S
        while any(map(_runs, tree)) and perf_counter() < until:
            time.sleep(0.01)

    @staticmethod
    def _close_pipe(pipe: Any) -> None:
        with contextlib.suppress(OSError):
            pipe.close()


def checked_answer(
    reply: Mapping[str, Any], request: Mapping[str, Any], vocab_size: int
) -> dict[str, Any]:
    """The fields of ``records.Answer`` in a reply to ``request``, if they can be true.

    Raises ``PeerFailure`` otherwise.
    """
    known = {name: reply[name] for name in reply if name != "wall_s"}
    if unknown := set(known) - _FIELDS:
        _garbage(f"no answer has {_line(', '.join(sorted(unknown)))}")
    if missing := {"token_ids", "first_tokens", "ttft_s", "decode_s"} - set(known):
        _garbage(f"it lacks {', '.join(sorted(missing))}")
    ids, limit, stops = known["token_ids"], request["max_tokens"], set(request["stop_ids"])
    if not isinstance(ids, list) or not all(_count(i) and i < vocab_size for i in ids):
        _garbage(f"its token ids are not all whole numbers from 0 to {vocab_size - 1}")
    if not 1 <= len(ids) <= limit:
        _garbage(f"it output {len(ids)} tokens; 1 to {limit} were requested")
    if stops.intersection(ids[:-1]):
        _garbage("it went on after a stop token")
    for name in _COUNTS & set(known):
        if known[name] is not None and not _count(known[name]):
            _garbage(f"{name} is no count")
    for name in _TIMES & set(known):
        if not _seconds(known[name]) and (
            known[name] is not None or name in ("ttft_s", "decode_s")
        ):
            _garbage(f"{name} is no time")
    first, took = known["first_tokens"], known["ttft_s"] + known["decode_s"]
    if not first or first > len(ids):
        _garbage(f"first_tokens is {first} of {len(ids)}")
    if took > reply["wall_s"] + _CLOCK_S:
        _garbage(f"it reports {took:.3f} s, but took {reply['wall_s']:.3f} s")
    drafted, accepted = known.get("drafted"), known.get("accepted")
    if drafted is not None and accepted is not None and accepted > drafted:
        _garbage(f"it accepted {accepted} of {drafted} drafted tokens")
    if "by_drafter" in known:
        _table(known["by_drafter"], "by_drafter", 2, _count)
    if "by_rows" in known:
        rows = _table(known["by_rows"], "by_rows", 3, _seconds)
        if not all(name.isdecimal() and len(name) < 7 for name in rows):
            _garbage("by_rows is no table")
        known["by_rows"] = {int(name): values for name, values in rows.items()}
    return known


def _runs(process: psutil.Process) -> bool:
    """A zombie does not."""
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


_COUNTS = {"first_tokens", "passes", "draft_passes", "drafted", "accepted"}
_TIMES = {"ttft_s", "decode_s", "draft_s", "pass_s", "own_s"}
_FIELDS = _COUNTS | _TIMES | {"token_ids", "by_drafter", "by_rows"}


def _table(value: Any, name: str, width: int, valid: Any) -> dict[str, list[Any]]:
    """By a name, ``width`` numbers."""
    if not isinstance(value, dict) or not all(
        isinstance(row, list) and len(row) == width and all(map(valid, row))
        for row in value.values()
    ):
        _garbage(f"{name} is no table")
    return dict(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _seconds(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value < 1e9


def _garbage(what: str) -> NoReturn:
    raise PeerFailure(f"answered garbage: {what}")


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _line(text: str) -> str:
    """Without what a terminal would obey, and not too long."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:_MAX_TEXT]
