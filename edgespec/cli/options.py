"""The options that commands share, and the session that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgespec.cli.progress import ProgressBar
from edgespec.device import machine
from edgespec.models.catalogue import DEFAULT_MODEL

if TYPE_CHECKING:
    from edgespec.core.acceptance import Rule
    from edgespec.device.planning import Plan
    from edgespec.engine import Engine
    from edgespec.session import Session

Command = TypeVar("Command", bound=Callable[..., Any])


def _memory_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes."""
    from edgespec.device.planning import parse_bytes

    return None if value is None else parse_bytes(value)


RUNTIMES = "auto|onnx|llama-cpp|ik-llama-cpp"
"""How help shows the values of ``--runtime``; other packages may add runtimes (``edgespec.runtimes``)."""


def runtime_name(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """The callback of ``--runtime``: a name, or several where it may be repeated."""
    for name in [value] if isinstance(value, str) else value:
        if name != "auto":
            from edgespec.runtimes import get

            get(name)  # raises before anything is loaded
    return value


runtime_option = click.option(
    "--runtime",
    callback=runtime_name,
    metavar=RUNTIMES,
    default="auto",
    show_default=True,
    help="What runs the model.",
)
model_argument = click.argument("model", default=DEFAULT_MODEL)

_PLAN_OPTIONS = (
    runtime_option,
    click.option(
        "--device",
        metavar="auto|cpu|gpu[:N]|npu",
        default="auto",
        show_default=True,
        help="Where it runs.",
    ),
    click.option(
        "--draft",
        metavar="auto|none|NAME|MODEL",
        default="auto",
        show_default=True,
        help="What guesses the next tokens: nothing (none); what followed the same words in this "
        "conversation (suffix), in earlier answers (ngram-cache), in files that were indexed (retrieval), "
        "or in all of them (hierarchy, auto); what the model last thought might follow (recycling); or a "
        "smaller model beside these: a name of `edgespec models list`, a .gguf file, a bundle or a "
        "safetensors folder. auto also takes the draft of a bundle.",
    ),
    click.option(
        "--context",
        type=click.IntRange(min=1),
        metavar="N",
        help="Tokens of prompt and answer to have room for. Default: the model's, at most 4096.",
    ),
    click.option(
        "--memory-budget",
        callback=_memory_size,
        metavar="SIZE",
        help="The most memory to take, such as 900MiB or 2GB: what runs is chosen to fit; "
        "`edgespec plan` shows it. Default: no limit.",
    ),
)
_OPTIONS = (
    *_PLAN_OPTIONS,
    click.option(
        "--provider",
        metavar="NAME",
        help="ONNX Runtime's execution provider, instead of the best one for --device; "
        "`edgespec doctor` lists them.",
    ),
    click.option(
        "--exact/--no-exact",
        default=None,
        help="Run passes so that greedy answers are the same bit for bit whatever is drafted. Default: where "
        "the runtime can; --exact: only on a runtime that can.",
    ),
    click.option(
        "--acceptance",
        type=click.Choice(["lossless", "typical", "entropy"]),
        default="lossless",
        show_default=True,
        help="Which drafted tokens are accepted: those that the model itself says; when sampling, also "
        "all that are typical of it, or all that a draft model was sure of. The last two change what is said.",
    ),
    click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="Default: one a physical core."
    ),
    click.option("--system", metavar="TEXT", help="What the model is to be or to obey."),
    click.option(
        "--temperature",
        type=float,
        metavar="T",
        help="0 always takes the likeliest token; higher is more varied. Default: 0; in chat, what a "
        "bundle recommends. So for the next four.",
    ),
    click.option("--top-k", type=int, metavar="K", help="Only the K likeliest tokens; 0: all."),
    click.option(
        "--top-p",
        type=float,
        metavar="P",
        help="Only the likeliest tokens that together have probability P.",
    ),
    click.option(
        "--min-p",
        type=float,
        metavar="P",
        help="Only tokens at least P times as probable as the likeliest.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="More than 1 avoids tokens that are in the context.",
    ),
    click.option(
        "--seed",
        type=int,
        metavar="N",
        help="The same seed draws the same words; with a model as drafter, as likely words.",
    ),
)


def plan_options(command: Command) -> Command:
    """Add those of MODEL's options that decide what memory it takes."""
    for option in reversed(_PLAN_OPTIONS):
        command = option(command)
    return command


def session_options(command: Command) -> Command:
    """Add MODEL's options; the command hands them on to ``opened``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


explain_option = click.option(
    "--explain",
    is_flag=True,
    help="Say after an answer what was drafted for it, what that was expected to bring, and what it "
    "brought.",
)


def max_tokens_option(default: int) -> Callable[[Command], Command]:
    return click.option(
        "--max-tokens",
        type=click.IntRange(min=0),
        metavar="N",
        default=default,
        show_default=True,
        help="The longest answer.",
    )


@contextmanager
def opened(
    model: str,
    progress: ProgressBar,
    *,
    system: str | None,
    acceptance: Rule,
    recommended: bool = False,
    **options: Any,
) -> Iterator[tuple[Engine, Session]]:
    """The engine and a session as the options of ``session_options`` describe them.

    ``recommended``: what the options leave open is as the model's makers would have it.
    """
    from edgespec.core.sampling import Sampling
    from edgespec.engine import Engine

    taken = {field.name: options.pop(field.name) for field in fields(Sampling)}
    given = {name: value for name, value in taken.items() if value is not None}
    Sampling(**given)  # what is wrong is said before anything is loaded
    try:
        with Engine.open(
            model, progress=progress, planned=_announce, notice=notice, **options
        ) as engine:
            progress.stop()
            sampling = Sampling(**{**(engine.recommended if recommended else {}), **given})
            yield (
                engine,
                engine.session(
                    system=system,
                    sampling=sampling,
                    acceptance=acceptance,
                    notice=notice,
                    progress=progress,
                ),
            )
    finally:
        progress.stop()


def _announce(plan: Plan) -> None:
    """Say what was given up for a memory budget; without one, where memory is short now."""
    from edgespec.device.planning import show_bytes

    if plan.budget is not None:
        for line in plan.given_up:
            notice(f"to stay within {show_bytes(plan.budget)}, without {line}")
        return
    available = machine.available_memory()
    if available is None or plan.memory.total <= available:
        return
    enough = f"--memory-budget {available >> 20}MiB would make it fit"
    advice = (
        enough if available >> 20 << 20 >= plan.least else "close programs, or take a smaller model"
    )
    notice(
        f"this takes about {show_bytes(plan.memory.total)} of memory, and {show_bytes(available)} "
        f"are available now; {advice}"
    )


def notice(line: str) -> None:
    """Say on stderr what a user should know though nothing went wrong."""
    click.secho(f"[{line}]", err=True, dim=True)
