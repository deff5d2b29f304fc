"""What the programs share: prompts, text, child processes, means and tables."""

from __future__ import annotations

import functools
import json
import multiprocessing
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import click

import edgespec
from edgespec.cli import Failure
from edgespec.errors import UserError
from edgespec.models import store
from edgespec.device.machine import cpu_name, physical_cores

T = TypeVar("T")

PROMPTS = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, a turn after the other."""

    id: int
    category: str
    turns: tuple[str, ...]

    @property
    def text(self) -> str:
        """The first turn."""
        return self.turns[0]


def read_prompts(path: Path = PROMPTS / "thirty.jsonl") -> list[Prompt]:
    """Every question in a file of Spec-Bench's format, JSON lines.

    A line has ``question_id``, ``category`` and ``turns``; also ``text``, where the first turn is about a
    long text: its name in the folder ``texts`` beside the file. Raises ``UserError`` for other files.
    """
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        prompts = [_prompt(row, path.parent / "texts") for row in rows]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} does not hold prompts in Spec-Bench's format: {error}") from error
    if not prompts:
        raise UserError(f"{path} is empty; give a file with prompts in Spec-Bench's format")
    return prompts


def _prompt(row: dict[str, Any], texts: Path) -> Prompt:
    turns, name = row["turns"], row.get("text")
    if not (isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)):
        raise ValueError("turns are not texts")
    if name is not None:
        turns = [f"{(texts / Path(name).name).read_text('utf-8')}\n\n{turns[0]}", *turns[1:]]
    return Prompt(int(row["question_id"]), str(row["category"]), tuple(turns))


def first_of_each(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first ``count`` prompts of every category."""
    return _of_each(prompts, slice(count))


def half_of_each(prompts: Sequence[Prompt], second: bool) -> list[Prompt]:
    """Every other prompt of each category, beginning with its first or its second."""
    return _of_each(prompts, slice(int(second), None, 2))


def taking_turns(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first prompt of every category, then the second of each: a run that is stopped has some of all."""
    return [p for each in zip_longest(*_by_category(prompts)) for p in each if p is not None]


def _of_each(prompts: Sequence[Prompt], part: slice) -> list[Prompt]:
    return [p for alike in _by_category(prompts) for p in alike[part]]


def _by_category(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    categories = dict.fromkeys(prompt.category for prompt in prompts)
    return [[p for p in prompts if p.category == category] for category in categories]


def rewriting_prompt() -> Prompt:
    """To give 60 lines of Python their type hints."""
    code = (PROMPTS / "untyped.py.txt").read_text("utf-8")
    text = (
        "Rewrite this file with type hints on every function and method. Change nothing else and "
        f"answer with the whole file in one code block.\n\n```python\n{code}```"
    )
    return Prompt(0, "rewriting code", (text,))


def own_text() -> str:
    """Text to evaluate that needs no download: the prompts here, then the engine's source."""
    sources = sorted(Path(edgespec.__file__).parent.glob("*.py"))
    parts = [prompt.text for prompt in [*read_prompts(), rewriting_prompt()]]
    return "\n\n".join([*parts, *(source.read_text("utf-8") for source in sources)])


def in_child(function: Callable[..., T], *arguments: Any) -> T:
    """Call ``function`` in a fresh process, whose threads and memory are its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def note(line: str) -> None:
    """Say on stderr what is being done."""
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


def version_of(name: str) -> str | None:
    """Of a package; ``None`` where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


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


def program(command: Callable[..., None]) -> click.Command:
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
