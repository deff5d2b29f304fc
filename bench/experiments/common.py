"""What the experiments share: their options, and how they print what they found."""

from __future__ import annotations

import functools
import json
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from edgespec.bench.running.machine import version_of
from edgespec.bench.workloads import Prompt, first_of_each, read_prompts
from edgespec.device.machine import cpu_name, physical_cores
from edgespec.errors import UserError
from edgespec.models import store
from edgespec.runtimes import specs


class Failure(click.ClickException):
    """What a user can put right: one line on stderr."""

    exit_code = 2


def note(line: str) -> None:
    """Print progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def machine(model: str | Path) -> str:
    """In one line: the processor, the versions, the model file."""
    path = store.resolve(str(model))
    names = ("edgespec", "onnxruntime", "llama-cpp-python", "numpy")
    versions = [f"{name} {version}" for name in names if (version := version_of(name))]
    return ", ".join(
        [
            f"{cpu_name()}, {physical_cores()} cores",
            f"{platform.system()} {platform.machine()}",
            f"Python {platform.python_version()}",
            *versions,
            f"{path.name} ({path.stat().st_size:,} bytes)",
        ]
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its first column aligned left and the others right."""
    lines = [headers, [":--", *["--:"] * (len(headers) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(
    title: str, machine: str, tables: Sequence[str], json_path: Path | None, figures: Any
) -> None:
    """Print the tables, and write the figures to ``json_path`` if there is one."""
    print("\n\n".join([f"### {title}", machine, *tables]), flush=True)
    if json_path is not None:
        whole = {"title": title, "machine": machine, "figures": figures}
        json_path.write_text(json.dumps(whole, indent=1), encoding="utf-8")


runtime_option = click.option(
    "--runtime", type=click.Choice(list(specs())), default="onnx", show_default=True
)
threads_option = click.option("--threads", type=int, help="Default: one a core.")
prompts_option = click.option(
    "--prompts",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Questions in Spec-Bench's format. Default: edgespec's own thirty.",
)
max_tokens_option = functools.partial(
    click.option, "--max-tokens", type=click.IntRange(2), show_default=True
)
context_option = functools.partial(click.option, "--context", show_default=True)


def chosen_prompts(path: Path | None, per_category: int | None) -> list[Prompt]:
    """The first ``per_category`` prompts of each category of a file, or of edgespec's own thirty."""
    prompts = read_prompts(path) if path else read_prompts()
    return first_of_each(prompts, per_category) if per_category else prompts


def experiment(command: Callable[..., None]) -> click.Command:
    """A click command over MODEL with ``--json``; prints a ``UserError`` as one line, exit code 2."""

    @functools.wraps(command)
    def guarded(**options: Any) -> None:
        try:
            command(**options)
        except UserError as error:
            raise Failure(str(error)) from error

    guarded = click.option(
        "--json", "json_path", type=click.Path(path_type=Path), help="Write the figures there."
    )(guarded)
    return click.command()(click.argument("model")(guarded))
