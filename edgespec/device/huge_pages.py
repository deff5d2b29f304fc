"""Memory in pages of 2 MiB: a pass reads all weights, and looks up 500 times fewer addresses in them.

On Linux programs must ask for such pages ("madvise", what most distributions set). glibc, 2.35 and later,
asks for all that ``malloc`` gives, if asked when a process begins.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_TUNABLES, _ASK = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def in_use() -> bool:
    """Whether this process's weights lie in such pages, by its settings."""
    mode = _mode()
    return mode == "always" or (mode == "madvise" and f"{_ASK}=1" in os.environ.get(_TUNABLES, ""))


def restart() -> None:
    """Begin this process again with such pages, where they must be asked for and nobody decided it yet.

    Not under ``--memory-budget``: they take some percent more memory.
    """
    tunables = os.environ.get(_TUNABLES, "")
    limited = any(argument.startswith("--memory-budget") for argument in sys.argv)
    if _mode() != "madvise" or _ASK in tunables or limited or not sys.executable:
        return
    os.environ[_TUNABLES] = ":".join(filter(None, (tunables, f"{_ASK}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _mode() -> str | None:
    try:
        modes = _MODES.read_text()
    except OSError:  # not Linux, or a kernel without them
        return None
    return modes.partition("[")[2].partition("]")[0]
