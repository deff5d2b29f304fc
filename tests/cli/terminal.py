"""A pseudo-terminal with a command in it."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Sequence

if os.name == "posix":
    import fcntl
    import pty
    import termios

    def _take_terminal() -> None:
        """Make stdin this process's terminal, so that Ctrl-C typed there reaches it."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """Type into a program and read what it shows, stdout and stderr together."""

    def __init__(self, command: Sequence[str]) -> None:
        self._side, other = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            command,
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(other)
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._side)

    def type(self, text: str) -> None:
        os.write(self._side, text.encode())

    def until(self, pattern: str, seconds: float = 30) -> str:
        """Read until a pattern is shown; returns what was shown up to it, and forgets that."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.shown)):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} never came; shown: {self.shown!r}"
            if select.select([self._side], [], [], left)[0]:
                try:
                    self.shown += os.read(self._side, 65536).decode(errors="replace")
                except OSError:  # the program has left
                    raise AssertionError(f"it ended; shown: {self.shown!r}") from None
        before, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return before

    def ends(self, seconds: float = 15) -> int:
        """The exit code, when it has left."""
        return self.process.wait(seconds)
