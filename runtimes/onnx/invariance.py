"""Which sizes of pass give a row the same bits: found by trying, and remembered."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np

from edgespec.core.runtime import Runtime
from edgespec.files import replacing
from edgespec.progress import Progress

PROBED_SIZES = 16
"""Batch invariance is probed for passes of up to so many rows."""


def agreeing_sizes(runtime: Runtime, start: int, progress: Progress) -> tuple[int, ...]:
    """The sizes of pass, after ``start`` tokens, whose rows have the same bits as in the largest.

    The rows compared begin one token later: a row must not depend on its place either. The cache is empty
    before and after. Sizes that the context has no room for are not tried.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, runtime.info.vocab_size, start + PROBED_SIZES + 1).tolist()
    tokens = tokens[: runtime.info.context]
    head, tail = tokens[: -PROBED_SIZES - 1], tokens[-PROBED_SIZES - 1 :]
    for first in range(0, len(head), 128):
        runtime.forward(head[first : first + 128], logits="none")
        runtime.keep(range(len(head[first : first + 128])))
    reference = runtime.forward(tail[:PROBED_SIZES])[1:].copy()
    runtime.keep([0])
    agreeing = []
    for size in range(1, len(tail)):
        progress("proving that passes of different sizes agree", size, len(tail) - 1)
        rows = min(size, len(reference))
        if np.array_equal(runtime.forward(tail[1 : 1 + size])[:rows], reference[:rows]):
            agreeing.append(size)
    runtime.truncate(0)
    return tuple(agreeing)


def remembered_sizes(path: Path, key: str) -> tuple[int, ...] | None:
    """The sizes that were kept at ``path`` under the same ``key``; ``None`` without a file to trust."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        known = json.loads(path.read_text(encoding="utf-8"))
        sizes = [size for size in range(1, PROBED_SIZES + 1) if size in known["pass_sizes"]]
        if known["key"] == key and known["pass_sizes"] == sizes:
            return tuple(sizes)
    return None


def remember_sizes(path: Path, key: str, sizes: tuple[int, ...]) -> None:
    """Keep them for ``remembered_sizes``."""
    with contextlib.suppress(OSError):  # a read-only folder only costs the next probe
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(json.dumps({"key": key, "pass_sizes": sizes}), encoding="utf-8")
