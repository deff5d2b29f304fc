"""Forks: the threads of the runtimes do not exist in a forked process.

OpenMP and ONNX Runtime wait for their threads for ever there, in a pass and when the process ends.
"""

from __future__ import annotations

import ctypes
import os
import sys

from edgespec.errors import EngineClosed

_ADVICE = (
    "open an engine after the fork and none before it, or start the process with "
    "multiprocessing's spawn"
)
_first_process: int | None = None
"""The first process that loaded a model, of this one and those that it was forked from."""


def check_process(owner: int) -> None:
    """Raise ``EngineClosed`` if an engine of the process ``owner`` is used in another one."""
    if os.getpid() != owner:
        raise EngineClosed(f"this engine belongs to process {owner}, not {os.getpid()}; {_ADVICE}")


def check_not_forked() -> None:
    """Raise ``EngineClosed`` if this process was forked from one that had loaded a model.

    For use before a model is loaded.
    """
    global _first_process
    if _first_process is None:
        _first_process = os.getpid()
        if sys.platform == "linux":
            _exit_without_destructors_after_forks()
    elif _first_process != os.getpid():
        raise EngineClosed(
            f"process {os.getpid()} was forked from {_first_process}, which had loaded a model; {_ADVICE}"
        )


def _exit_without_destructors_after_forks() -> None:
    """Let forked processes end without the destructors of C++ libraries, which would wait for threads.

    ``exit`` calls what was registered last first. Only glibc's ``on_exit`` passes the exit status. musl
    has no ONNX Runtime, and macOS and Windows do not fork by default (``multiprocessing``).
    """
    c = ctypes.CDLL(None)
    if hasattr(c, "on_exit"):
        os.register_at_fork(after_in_child=lambda: c.on_exit(c._exit, None))
