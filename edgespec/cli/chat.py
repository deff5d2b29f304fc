"""``edgespec chat``: a conversation."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgespec.cli.answer import ReasoningPrinter, print_answer, print_status
from edgespec.cli.explain import print_explanation
from edgespec.cli.options import (
    explain_option,
    max_tokens_option,
    model_argument,
    notice,
    opened,
    session_options,
)
from edgespec.cli.progress import ProgressBar
from edgespec.errors import UserError
from edgespec.files import replacing

if TYPE_CHECKING:
    from edgespec.session import Session


@click.command()
@model_argument
@explain_option
@max_tokens_option(1024)
@session_options
def chat(model: str, explain: bool, max_tokens: int, **options: Any) -> None:
    """Talk to a model.

    MODEL is a name from `edgespec models list`, a .gguf file, a bundle or a safetensors folder;
    smollm2-135m-instruct by default.
    Each line is one message. Piped input is answered line by line. Speed and acceptance of each
    answer go to stderr.

    Ctrl-C stops an answer and keeps the conversation; at the prompt, Ctrl-C and Ctrl-D exit.
    /help lists the commands: /stats, /why, /reset, /save FILE, /exit.

    \b
    Start a conversation (downloads 94 MiB once):
      edgespec chat
    Use a code model with a system prompt:
      edgespec chat qwen2.5-coder-1.5b-instruct --system "Answer with code only."
    Draft with a smaller model of its family:
      edgespec chat qwen2.5-coder-1.5b-instruct --draft qwen2.5-coder-0.5b-instruct
    Send two messages from a pipe:
      printf 'My name is Ada.\\nWhat is my name?\\n' | edgespec chat
    """
    interactive = sys.stdin is not None and sys.stdin.isatty()
    progress = ProgressBar()
    reasoning = ReasoningPrinter(progress)
    with opened(model, progress, recommended=True, on_reasoning=reasoning, **options) as (
        engine,
        session,
    ):
        if not engine.can_chat:
            raise UserError(f"{model} is no chat model; use `edgespec generate {model} --raw`")
        if interactive:
            info = engine.info
            notice(f"{info.name} on {info.runtime} {info.device}; /help lists the commands")
        for line in _typed() if interactive else sys.stdin or ():
            try:
                if line.startswith("/"):
                    if not _obey(line, session):
                        break
                elif line.strip():
                    answer = session.chat(line.strip(), max_tokens=max_tokens)
                    print_answer(answer, progress, reasoning)
                    print_status(session, max_tokens)
                    if explain:
                        print_explanation(session.statistics)
            except UserError as error:
                if not interactive:
                    raise
                click.secho(f"Error: {error}", err=True, fg="red")
            except KeyboardInterrupt:
                if not interactive:
                    raise
                signal.signal(signal.SIGINT, signal.default_int_handler)  # the next one is a first
                print_status(session, max_tokens)


def _typed() -> Iterator[str]:
    """The lines that are typed at the prompt, with editing and history where the system has it."""
    with suppress(ImportError):  # Windows' console has its own
        import readline  # noqa: F401
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        yield line


def _obey(line: str, session: Session) -> bool:
    """Carry out a /command; whether the conversation goes on."""
    name, _, argument = line.strip().partition(" ")
    if name == "/exit":
        return False
    if name in _COMMANDS:
        _COMMANDS[name](session, argument.strip())
    else:
        click.echo(f"There is no command {name}; /help lists them.", err=True)
    return True


def _help(session: Session, argument: str) -> None:
    click.echo(_HELP)


def _stats(session: Session, argument: str) -> None:
    for name, value in session.statistics.as_dict().items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        click.echo(f"{name:<20} {'-' if shown is None else shown}")


def _why(session: Session, argument: str) -> None:
    print_explanation(session.statistics)


def _reset(session: Session, argument: str) -> None:
    session.reset()
    notice("the conversation was reset")


def _save(session: Session, argument: str) -> None:
    """Write the messages as JSON, whole or not at all; never over another file."""
    if not argument:
        raise UserError("name a file: /save FILE")
    path = Path(os.path.expanduser(argument))
    try:
        if path.exists():
            raise UserError(f"{path} exists; name another file")
        text = json.dumps(session.messages, ensure_ascii=False, indent=1)
        with replacing(path) as partial:
            partial.write_text(text + "\n", encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:  # ValueError: no name for a file
        cause = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {cause}; name another file") from error
    notice(f"saved {len(session.messages)} messages to {path}")


_COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "/help": _help,
    "/stats": _stats,
    "/why": _why,
    "/reset": _reset,
    "/save": _save,
}

_HELP = """\
/stats      statistics of the last answer
/why        how often each drafter was used, and the expected and measured results
/reset      start over; keep the system message
/save FILE  write the conversation to a new JSON file
/help       show this list
/exit       exit; so does Ctrl-D
To send a message that begins with /, put a space before it."""
