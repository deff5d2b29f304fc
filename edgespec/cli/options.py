"""The options that commands share, and the session that they open."""

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
    from edgespec.answer_text import Reasoning
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
    help="The library that runs the model.",
)
model_argument = click.argument("model", default=DEFAULT_MODEL)

_PLAN_OPTIONS = (
    runtime_option,
    click.option(
        "--device",
        metavar="auto|cpu|gpu[:N]|npu",
        default="auto",
        show_default=True,
        help="The device that the model runs on.",
    ),
    click.option(
        "--draft",
        metavar="auto|none|NAME|MODEL",
        default="auto",
        show_default=True,
        help="The drafter: none (plain decoding); suffix (prompt lookup in this conversation); "
        "ngram-cache (n-grams of earlier answers); retrieval (files from `edgespec index`); hierarchy "
        "(all of these); recycling (candidates from earlier logits); or a smaller MODEL besides "
        "hierarchy: a name from `edgespec models list`, a .gguf file, a bundle or a safetensors folder. "
        "auto: hierarchy, and the draft model of a bundle.",
    ),
    click.option(
        "--context",
        type=click.IntRange(min=1),
        metavar="N",
        help="The size of the context in tokens, prompt and answer. Default: the model's, at most 4096.",
    ),
    click.option(
        "--memory-budget",
        callback=_memory_size,
        metavar="SIZE",
        help="The most memory to use, such as 900MiB or 2GB. Runtime, context, cache and draft model are "
        "chosen to fit; `edgespec plan` shows them. Default: no limit.",
    ),
)
_OPTIONS = (
    *_PLAN_OPTIONS,
    click.option(
        "--provider",
        metavar="NAME",
        help="The execution provider of ONNX Runtime. Default: the best one for --device. "
        "`edgespec doctor` lists them.",
    ),
    click.option(
        "--exact/--no-exact",
        default=None,
        help="--exact: greedy tokens are bit for bit the same with and without drafts; requires a runtime "
        "that can prove it. Default: exact if the runtime can.",
    ),
    click.option(
        "--acceptance",
        type=click.Choice(["lossless", "typical", "entropy"]),
        default="lossless",
        show_default=True,
        help="The acceptance rule. lossless keeps the model's output distribution. typical also accepts "
        "tokens that are typical of the model, entropy tokens that the draft model is sure of; both are "
        "lossy and need a --temperature above 0.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help="The number of CPU threads. Default: one per physical core.",
    ),
    click.option("--system", metavar="TEXT", help="The system prompt."),
    click.option(
        "--reasoning",
        type=click.Choice(["show", "hide", "separate"]),
        default="show",
        show_default=True,
        help="What a reasoning model thinks before it answers. show: part of the answer, with its marks, "
        "such as <think>. hide: left out. separate: on stderr; with --json, under `reasoning`.",
    ),
    click.option(
        "--temperature",
        type=float,
        metavar="T",
        help="Sampling temperature; 0 is greedy. Default: 0; in chat, the bundle's recommendation. The "
        "next four options have such defaults, too.",
    ),
    click.option(
        "--top-k", type=int, metavar="K", help="Sample from the K likeliest tokens; 0: from all."
    ),
    click.option(
        "--top-p",
        type=float,
        metavar="P",
        help="Sample from the likeliest tokens with total probability P.",
    ),
    click.option(
        "--min-p",
        type=float,
        metavar="P",
        help="Sample from tokens with at least P times the probability of the likeliest.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="Above 1: lower the probability of tokens in the context.",
    ),
    click.option(
        "--seed",
        type=int,
        metavar="N",
        help="The random seed for sampling. With a draft model the same seed may give other tokens of the "
        "same distribution.",
    ),
)


def plan_options(command: Command) -> Command:
    """Add the options that determine the memory of MODEL."""
    for option in reversed(_PLAN_OPTIONS):
        command = option(command)
    return command


def session_options(command: Command) -> Command:
    """Add all options of MODEL; the command passes them to ``opened``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


explain_option = click.option(
    "--explain",
    is_flag=True,
    help="Print after an answer how often each drafter was used, and the expected and measured results.",
)


def max_tokens_option(default: int) -> Callable[[Command], Command]:
    return click.option(
        "--max-tokens",
        type=click.IntRange(min=0),
        metavar="N",
        default=default,
        show_default=True,
        help="The most tokens of an answer.",
    )


def _ignore(piece: str) -> None:
    pass


@contextmanager
def opened(
    model: str,
    progress: ProgressBar,
    *,
    system: str | None,
    acceptance: Rule,
    reasoning: Reasoning,
    recommended: bool = False,
    on_reasoning: Callable[[str], None] = _ignore,
    **options: Any,
) -> Iterator[tuple[Engine, Session]]:
    """The engine and a session as the options of ``session_options`` describe them.

    ``recommended``: options that are not given have the values that the model recommends.
    ``on_reasoning`` receives the pieces of a separate reasoning.
    """
    from edgespec.core.sampling import Sampling
    from edgespec.engine import Engine

    taken = {field.name: options.pop(field.name) for field in fields(Sampling)}
    given = {name: value for name, value in taken.items() if value is not None}
    Sampling(**given)  # reports invalid values before loading
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
                    reasoning=reasoning,
                    on_reasoning=on_reasoning,
                    notice=notice,
                    progress=progress,
                ),
            )
    finally:
        progress.stop()


def _announce(plan: Plan) -> None:
    """Report what was given up for a memory budget; without one, report short memory."""
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
        enough if available >> 20 << 20 >= plan.least else "close programs, or use a smaller model"
    )
    notice(
        f"this needs about {show_bytes(plan.memory.total)} of memory, and {show_bytes(available)} "
        f"are available now; {advice}"
    )


def notice(line: str) -> None:
    """Print a notice on stderr."""
    click.secho(f"[{line}]", err=True, dim=True)
