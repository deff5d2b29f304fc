"""Latency of passes over n tokens and of prompts on every runtime, in alternated processes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter

import click

from edgespec.bench.child import in_child
from edgespec.bench.experiments.common import (
    experiment,
    machine,
    note,
    report,
    table,
    threads_option,
)
from edgespec.bench.workloads import own_text
from edgespec.core.decoding import prefill
from edgespec.device.machine import physical_cores
from edgespec.device.measuring import memory_bandwidth
from edgespec.engine import Engine
from edgespec.loading import candidates
from edgespec.local_model import find
from edgespec.progress import silent

SIZES = (1, 2, 4, 8, 16)
_CONTEXT = 128
"""Tokens in the cache when passes are timed."""
_DECODED = 32
"""Tokens of plain decoding that are timed one after the other."""


@dataclass
class Passes:
    """Seconds of every pass and prompt timed, by its tokens; plain decoding's are under 0."""

    seconds: dict[int, list[float]]
    weight_bytes: int

    def median(self, size: int) -> float:
        """Of the passes over ``size`` tokens."""
        return statistics.median(self.seconds[size])

    def cell(self, size: int) -> str:
        """Milliseconds: the median and the range."""
        times = [1e3 * s for s in self.seconds[size]]
        return f"{statistics.median(times):.1f} [{min(times):.1f}–{max(times):.1f}]"


def time_sizes(engine: Engine, repeats: int) -> dict[int, list[float]]:
    """Seconds of passes over the sizes, in turn; the first of each is not counted. Leaves ``_CONTEXT`` tokens."""
    target = engine.target
    tokens = engine.tokenizer.encode(own_text())
    target.truncate(0)
    target.forward(tokens[:_CONTEXT], logits="none")
    target.keep(range(_CONTEXT))
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    for repeat in range(repeats + 1):
        for size in SIZES:
            started = perf_counter()
            target.forward(tokens[_CONTEXT : _CONTEXT + size])
            if repeat:
                seconds[size].append(perf_counter() - started)
    return seconds


def time_passes(
    model: str, runtime: str, threads: int | None, repeats: int, prompts: Sequence[int]
) -> Passes:
    """Time passes over the sizes, in turn, then plain decoding, then a prompt of each length."""
    context = max([1024, *(length + 1 for length in prompts)])
    with Engine.open(
        model, runtime=runtime, draft="none", exact=False, context=context, threads=threads
    ) as engine:
        seconds = {0: list[float](), **time_sizes(engine, repeats)}
        target, token = engine.target, 0
        for step in range(_DECODED + 2):  # nor are the first two
            started = perf_counter()
            token = int(target.forward([token])[0].argmax())
            target.keep([0])
            if step > 1:
                seconds[0].append(perf_counter() - started)
        text = engine.tokenizer.encode(own_text())
        for length in prompts:
            tokens = list(islice(cycle(text), length + 1))
            target.truncate(0)
            started = perf_counter()
            prefill(target, tokens)
            seconds[length] = [perf_counter() - started]
        return Passes(seconds, engine.info.weight_bytes)


def merged(parts: Sequence[Passes]) -> Passes:
    """The samples of several processes as one."""
    seconds = {size: [s for part in parts for s in part.seconds[size]] for size in parts[0].seconds}
    return Passes(seconds, parts[0].weight_bytes)


@experiment
@click.option("--repeats", default=7, show_default=True, help="Passes of a size in a process.")
@click.option("--rounds", default=1, show_default=True, help="Times that A B B A is repeated.")
@click.option(
    "--prompt", "prompts", type=int, multiple=True, help="Also time prompts of so many tokens."
)
@threads_option
def main(
    model: str,
    repeats: int,
    rounds: int,
    prompts: tuple[int, ...],
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Latency of a pass over n tokens on every runtime here, in alternated processes (A B B A)."""
    runtimes = [spec.name for spec in candidates(find(model, silent))]
    note("opening once, so that nothing is built while we measure")
    in_child(time_passes, model, runtimes[0], threads, 1, ())
    found: dict[str, list[Passes]] = {runtime: [] for runtime in runtimes}
    for runtime in [*runtimes, *runtimes[::-1]] * rounds:
        note(f"timing {runtime}")
        found[runtime].append(in_child(time_passes, model, runtime, threads, repeats, prompts))
    passes = {runtime: merged(parts) for runtime, parts in found.items()}
    first, *others = passes.values()

    def row(size: int) -> list[str]:
        name = (
            "n=1, decoding" if not size else f"n={size}" if size in SIZES else f"prompt of {size}"
        )
        cells = [f"{p.cell(size)} ({p.median(size) / p.median(1):.2f})" for p in passes.values()]
        return [name, *cells, *(f"{first.median(size) / p.median(size):.2f}" for p in others)]

    ratios = [f"{runtimes[0]} / {runtime}" for runtime in runtimes[1:]]
    headers = [f"after {_CONTEXT} tokens, ms (R)", *runtimes, *ratios]
    speed = memory_bandwidth(threads or physical_cores())
    gained = [
        [name, f"{p.weight_bytes / 1e6:.0f}", f"{(rate := p.weight_bytes / p.median(1)) / 1e9:.1f}",
         f"{rate / speed:.0%}"]
        for name, p in passes.items()
    ]  # fmt: skip
    tables = [
        table(headers, [row(size) for size in (0, *SIZES, *prompts)]),
        table(["runtime", "MB read a pass", "GB/s at n=1", "of reading alone"], gained),
        f"Reading alone gets {speed / 1e9:.1f} GB/s here.",
    ]
    figures = {"bandwidth": speed, **{name: asdict(p) for name, p in passes.items()}}
    report("Passes: medians [min–max]", machine(model), tables, json_path, figures)
