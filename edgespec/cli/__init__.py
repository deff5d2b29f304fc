"""The command line: click commands, one file each; no logic of its own."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import threading
from typing import Any

import click

from edgespec.errors import UserError

_COMMANDS = {
    "chat": "edgespec.cli.chat",
    "generate": "edgespec.cli.generate",
    "models": "edgespec.cli.models",
    "cache": "edgespec.cli.cache",
    "export": "edgespec.cli.export",
    "tune": "edgespec.cli.tune",
    "plan": "edgespec.cli.plan",
    "index": "edgespec.cli.index",
    "bench": "edgespec.cli.bench",
    "doctor": "edgespec.cli.doctor",
}
"""Imported on use, so that a command does not wait for the others."""

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
"""What a full disk or a broken device answers; elsewhere such errors are reported where they occur."""
_INTERRUPTED = 130
"""128 + SIGINT, as in shells."""


class Failure(click.ClickException):
    """An error that a user can fix: one line on stderr."""

    exit_code = 2


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(_COMMANDS[cmd_name]), cmd_name)
        return command

    def main(self, *args: Any, **options: Any) -> Any:
        # on Windows click would expand *, ~ and $NAME even in a quoted prompt
        try:
            return super().main(*args, **{"windows_expand_args": False, **options})
        except OSError as error:
            if error.errno not in _UNWRITABLE or sys.stdout is None:
                raise
            # What is buffered goes there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            line = (
                f"cannot write to standard output: {error.strerror}; make room, or write elsewhere"
            )
            Failure(line).show()
            sys.exit(Failure.exit_code)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. An error of the user or the machine is one line; a bug is a traceback."""
        if sys.stdout is None:
            raise Failure(
                "standard output is closed, where the answer goes; open it, or add > FILE"
            )
        _end_on_a_second_interrupt()
        try:
            found = super().invoke(ctx)
            sys.stdout.flush()
            return found
        except UserError as error:
            raise Failure(str(error)) from error
        except MemoryError as error:
            hint = "out of memory; close other programs, or try a smaller model or --context"
            raise Failure(hint) from error
        except KeyboardInterrupt:
            click.echo(err=True)  # the terminal has shown ^C
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends anyway
            ctx.exit(_INTERRUPTED)


def _end_on_a_second_interrupt() -> None:
    """The first Ctrl-C is a ``KeyboardInterrupt``. Another one ends the process while that is tidied up."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # the last: ignored in the background of a shell

    def second(*_: object) -> None:
        os._exit(_INTERRUPTED)

    def first(*_: object) -> None:
        signal.signal(signal.SIGINT, second)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)


@click.group("edgespec", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgespec", message="%(prog)s %(version)s")
def main() -> None:
    """Run large language models on this machine, faster by speculative decoding.

    The model verifies every draft, so the answer is the same with and without drafts. Models are
    downloaded when first used; the default model has 94 MiB.

    \b
    Talk to a model:
      edgespec chat
    Complete one prompt:
      edgespec generate -p "Why is the sky blue?"
    """
    _accept_any_text()


def _accept_any_text() -> None:
    """No text may crash a stream: not Latin-1 from a pipe, not an emoji on an old console."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None, if whoever started us closed it
            piped_in = stream is sys.stdin and not stream.isatty()
            stream.reconfigure(encoding="utf-8-sig" if piped_in else None, errors="replace")
