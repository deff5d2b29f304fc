"""``edgespec bench``: measures edgespec and its peers, and writes a report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from edgespec.cli.options import RUNTIMES, model_argument, runtime_name
from edgespec.cli.progress import ProgressBar
from edgespec.errors import UserError


class _Measuring(click.Group):
    """``bench MODEL`` is ``bench run MODEL``; ``bench compare`` is a command of its own."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or run

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["run", *args])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, args if args and args[0] in names else ["run", *args])


@click.group(cls=_Measuring)
def bench() -> None:
    """Measure edgespec and other systems on this machine, in turn within one run.

    \b
    Measure the default model with two prompts per category:
      edgespec bench --limit 2
    Compare with llama.cpp and OpenVINO GenAI:
      edgespec bench --setup-peer openvino-genai
      edgespec bench MODEL --peer llama-cpp-python --peer openvino-genai
    Compare two runs:
      edgespec bench compare before/results.json after/results.json
    Show all options:
      edgespec bench run --help
    """


@bench.command()
@model_argument
@click.option(
    "--prompts",
    "paths",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Prompts in Spec-Bench's format; may be repeated. Default: edgespec's prompts.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="Use only the first N prompts of each category.",
)
@click.option("--max-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option(
    "--draft",
    "drafts",
    multiple=True,
    default=("auto",),
    show_default=True,
    metavar="NAME|MODEL",
    help="The drafter, as for `edgespec generate`; may be repeated. Plain decoding is always measured. "
    "Peers use a GGUF draft model, too.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME[:MODE][?SETTING=VALUE][=PATH]",
    help="Another system, in one mode or in all; may be repeated. docs/reference/peers.md lists them.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("bench-results"),
    show_default=True,
    help="The folder for results.json, report.md, report.html and rates.svg.",
)
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--resume", is_flag=True, help="Resume the stopped run in --output.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    callback=runtime_name,
    metavar=RUNTIMES,
    default=("auto",),
    show_default=True,
    help="The runtime of edgespec; may be repeated.",
)
@click.option(
    "--context",
    type=click.IntRange(1),
    metavar="N",
    help="The context in tokens. Default: as long as the prompts need.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    metavar="N",
    help="The number of CPU threads. Default: one per physical core.",
)
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=0, metavar="K")
@click.option("--top-p", type=click.FloatRange(0, 1), default=1.0, metavar="P")
@click.option("--seed", type=int, default=0, metavar="N")
@click.option(
    "--stop/--ignore-stop",
    default=True,
    show_default=True,
    help="End answers at the model's stop token.",
)
@click.option(
    "--profile", is_flag=True, help="Also report the time per operator of a pass, on onnx."
)
@click.option(
    "--meter",
    metavar="NAME",
    help="The energy meter: rapl, apple, android, battery or nvml. Default: the first that works, "
    "except nvml.",
)
@click.option(
    "--setup-peer", metavar="NAME", help="Only install this peer, in its own environment."
)
def run(model: str, output: Path, setup_peer: str | None, **options: Any) -> None:
    """Answer prompts with every system in turn, and report the speed of each.

    Every system runs in its own processes, which are closed when memory is short. The n-gram cache of
    earlier answers is neither read nor written. Ctrl-C stops the run and reports the results so far;
    --resume continues it. Do not use the machine meanwhile.

    \b
    Measure two model-free drafters with your own prompts:
      edgespec bench run MODEL --prompts questions.jsonl --draft suffix --draft hierarchy
    Resume a stopped run:
      edgespec bench run MODEL --output bench-results --resume
    """
    progress = ProgressBar()

    def notify(line: str) -> None:
        progress.stop()
        click.echo(line, err=True)

    with _extra_installed():
        import matplotlib  # noqa: F401 (fails before a run of hours, not after it)

        from edgespec.bench.peers import setup_named
        from edgespec.bench.running import benchmark
    try:
        if setup_peer is not None:
            click.echo(f"{setup_peer} is ready: {setup_named(setup_peer, progress)}")
            return
        command = shlex.join(["edgespec", *sys.argv[1:]])
        benchmark.run_benchmark(
            model, output, command=command, notify=notify, progress=progress, **options
        )
    except KeyboardInterrupt:
        notify(f"stopped; the results so far are in {output}; --resume continues")
        raise
    finally:
        progress.stop()
    click.echo(", ".join(str(output / name) for name in benchmark.WRITTEN))


@bench.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
def compare(before: Path, after: Path) -> None:
    """Show the changes between two runs, and whether they exceed the noise.

    \b
    Compare two output folders, or their results.json:
      edgespec bench compare before after
    """
    with _extra_installed():
        from edgespec.bench.records.files import load_results
        from edgespec.bench.report.comparison import compare as difference
        from edgespec.bench.report.comparison import render
    click.echo(render(difference(load_results(before), load_results(after))))


@contextmanager
def _extra_installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f'the bench needs {error.name}; install it with `pip install "edgespec[bench]"`'
        ) from error
