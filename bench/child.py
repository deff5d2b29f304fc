"""Calls a function in a fresh process, with threads and memory of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def in_child(function: Callable[..., T], *arguments: Any) -> T:
    """Call ``function`` in a fresh process; return what it returns, or raise what it raises."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
