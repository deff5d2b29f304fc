"""What several workers share. Needs numpy only."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

CHUNK = 128
"""Rows of a pass of ``windows_loss``."""


def pieces(
    run: Callable[[Callable[[list[int]], None]], Any], stops: list[int]
) -> Iterator[list[int]]:
    """What ``run(put)`` puts, as it comes, until one of ``stops``, which is the last.

    For systems that stream by calling back. ``run`` has ended when this has, and what it raises is raised.
    """
    queue: SimpleQueue[list[int] | None] = SimpleQueue()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            run(queue.put)
        except BaseException as error:
            failures.append(error)
        finally:
            queue.put(None)

    thread = Thread(target=work)
    thread.start()
    over = False
    while (piece := queue.get()) is not None:
        if over:
            continue  # a step of speculation may go past a stop
        end = next((n for n, token in enumerate(piece, 1) if token in stops), None)
        over = end is not None
        yield piece[:end]
    thread.join()
    if failures:
        raise failures[0]


def converted(source: str, folder: str, how: str, make: Callable[[Path], None]) -> Path:
    """The folder that ``make`` filled from ``source``, in ``folder``: made once for a content and a ``how``.

    It has its name when it is whole.
    """
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    target = Path(folder) / f"{Path(source).stem}-{digest.hexdigest()[:12]}-{how}"
    if not target.exists():
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        try:
            make(partial)
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def windows_loss(
    windows: list[list[int]],
    forget: Callable[[], Any],
    read: Callable[[list[int]], np.ndarray[Any, Any]],
) -> dict[str, Any]:
    """The reply of ``perplexity``: ``forget`` empties the cache, ``read`` appends and gives a row of logits a token."""
    total, count = 0.0, 0
    for window in windows:
        forget()
        for start in range(0, len(window) - 1, CHUNK):
            chunk, next_ = (window[s : s + CHUNK] for s in (start, start + 1))
            total += loss(read(chunk), next_)
            count += len(next_)
    forget()
    return {"loss": total, "tokens": count}


def loss(logits: np.ndarray[Any, Any], next_: list[int]) -> float:
    """Σ −ln p of the tokens that came next; ``logits`` has a row for each, and may have more."""
    logits = logits[: len(next_)].astype(np.float64)
    top = logits.max(axis=1)
    sums = np.exp(logits - top[:, None]).sum(axis=1)
    return float((np.log(sums) + top - logits[np.arange(len(next_)), next_]).sum())
