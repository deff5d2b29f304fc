"""The side of the protocol that is the same for every worker. Standard library only.

Requests and replies are one JSON object a line. ``{"op": "open", …}`` comes first, then any number of
``{"op": "answer", …}`` and ``{"op": "perplexity", …}``; the end of stdin closes the worker. A reply
``{"error": "…"}`` gives the reason for a failure in one line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable
from queue import SimpleQueue
from threading import Thread
from time import perf_counter, sleep
from typing import Any, Protocol


class Worker(Protocol):
    """A model, opened by one system."""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """``ids``: the whole prompt; ``text``: the last turn's; ``fresh``: nothing of an earlier answer may be
        in a cache; ``max_tokens``; ``temperature`` (0: greedy), ``top_k``, ``top_p``, ``seed``; ``stop_ids``: end after
        one of these, or after ``max_tokens``. Replies the fields of ``records.Answer`` that it knows, at
        least what ``timed`` gives."""

    def perplexity(self, windows: list[list[int]]) -> dict[str, Any]:
        """``{"loss": …, "tokens": …}``: Σ −ln p of each token but a window's first, and how many; each
        window is read from an empty cache. ``NotImplementedError`` where the system gives no logits."""


class Opener(Protocol):
    """Opens a model."""

    def __call__(self, request: dict[str, Any]) -> tuple[Worker, dict[str, Any]]:
        """``model``: path of a GGUF file; ``draft``: of another, or ``None``; ``context``, ``threads``; ``settings``:
        the system's own; ``folder``: where converted models are kept. Replies ``version``, and of
        ``records.System`` the fields that it knows (``weights``, ``weight_bytes``, …)."""


def timed(stream: Iterable[list[int]], started: float) -> dict[str, Any]:
    """Take all tokens as they come; ``token_ids``, ``first_tokens``, ``ttft_s`` and ``decode_s``."""
    ids: list[int] = []
    first, first_at, last_at = 0, started, started
    for piece in stream:
        if not piece:
            continue
        last_at = perf_counter()
        if not ids:
            first, first_at = len(piece), last_at
        ids += piece
    return {
        "token_ids": ids,
        "first_tokens": first,
        "ttft_s": first_at - started,
        "decode_s": last_at - first_at,
    }


_GRACE_S = 10.0


def _read(lines: SimpleQueue[str | None]) -> None:
    """In a thread, so that a worker that hangs does not outlive a bench that was killed."""
    for line in sys.stdin:
        lines.put(line)
    lines.put(None)
    sleep(_GRACE_S)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def serve(open_worker: Opener) -> None:
    """Answer requests until stdin ends. What libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker: Worker | None = None
    lines: SimpleQueue[str | None] = SimpleQueue()
    Thread(target=_read, args=[lines], daemon=True).start()
    while (line := lines.get()) is not None:
        request = json.loads(line)
        try:
            if request["op"] == "open":
                worker, reply = open_worker(request)
            elif worker is None:
                raise RuntimeError("no model is open")
            elif request["op"] == "answer":
                reply = worker.answer(request)
            elif request["op"] == "perplexity":
                reply = worker.perplexity(request["windows"])
            else:  # what only some workers have
                reply = getattr(worker, request["op"])(request)
        except Exception as error:  # the bench reports it and goes on
            reply = {"error": f"{type(error).__name__}: {error}".replace("\n", " ")[:500]}
        print(json.dumps(reply), file=replies, flush=True)
