"""What a pass over n tokens costs on onnx and on llama.cpp, in alternated processes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from edgespec.engine import Engine

SIZES = (1, 2, 4, 8, 16)
_CONTEXT = 128
"""Tokens in the cache when passes are timed."""
_DECODED = 32
"""Tokens of plain decoding that are timed one after the other."""


@dataclass
class Passes:
    """Seconds of every pass timed, by its tokens; plain decoding's are under 0."""

    seconds: dict[int, list[float]]
    weight_bytes: int

    def median(self, size: int) -> float:
        """Of the passes over ``size`` tokens."""
        return statistics.median(self.seconds[size])


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


def time_passes(model: str, runtime: str, threads: int | None, repeats: int) -> Passes:
    """Time passes over the sizes, in turn, and then plain decoding."""
    with Engine.open(
        model, runtime=runtime, draft="none", exact=False, context=1024, threads=threads
    ) as engine:
        seconds = {0: list[float](), **time_sizes(engine, repeats)}
        target, token = engine.target, 0
        for step in range(_DECODED + 2):  # nor are the first two
            started = perf_counter()
            token = int(target.forward([token])[0].argmax())
            target.keep([0])
            if step > 1:
                seconds[0].append(perf_counter() - started)
        return Passes(seconds, engine.info.weight_bytes)


def merged(parts: Sequence[Passes]) -> Passes:
    """The samples of several processes as one."""
    seconds = {size: [s for part in parts for s in part.seconds[size]] for size in parts[0].seconds}
    return Passes(seconds, parts[0].weight_bytes)


@experiment
@click.option("--repeats", default=7, show_default=True, help="Passes of a size in a process.")
@threads_option
def main(model: str, repeats: int, threads: int | None, json_path: Path | None) -> None:
    """Time of a pass over n tokens on onnx and on llama.cpp, in alternated processes (A B B A)."""
    note("opening once, so that nothing is built while we measure")
    in_child(time_passes, model, "onnx", threads, 1)
    found: dict[str, list[Passes]] = {"onnx": [], "llama-cpp": []}
    for runtime in ("onnx", "llama-cpp", "llama-cpp", "onnx"):
        note(f"timing {runtime}")
        found[runtime].append(in_child(time_passes, model, runtime, threads, repeats))
    onnx, llama = merged(found["onnx"]), merged(found["llama-cpp"])

    def cells(passes: Passes, size: int) -> list[str]:
        times = [1e3 * s for s in passes.seconds[size]]
        spread = f"{statistics.median(times):.1f} [{min(times):.1f}–{max(times):.1f}]"
        return [spread, f"{passes.median(size) / passes.median(1):.2f}"]

    rows = [
        [
            f"n={size}" if size else "n=1, decoding",
            *cells(onnx, size),
            *cells(llama, size),
            f"{onnx.median(size) / llama.median(size):.2f}",
        ]
        for size in (0, *SIZES)
    ]
    headers = [
        f"after {_CONTEXT} tokens",
        "onnx, ms",
        "R(n)",
        "llama.cpp, ms",
        "R(n)",
        "onnx/llama",
    ]
    gained = [
        [name, f"{p.weight_bytes / 1e6:.0f}", f"{p.weight_bytes / p.median(1) / 1e9:.1f}"]
        for name, p in (("onnx", onnx), ("llama.cpp", llama))
    ]
    tables = [
        table(headers, rows),
        table(["runtime", "MB read a pass", "GB/s at n=1"], gained),
        f"Plain decoding, onnx: {llama.median(0) / onnx.median(0):.2f}× llama.cpp's. "
        f"A pass over 4 tokens: {onnx.median(4) / llama.median(4):.2f}× llama.cpp's time.",
    ]
    figures = {"onnx": asdict(onnx), "llama_cpp": asdict(llama)}
    report("Passes: medians [min–max]", machine(model), tables, json_path, figures)
