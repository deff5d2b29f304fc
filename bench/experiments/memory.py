"""The most memory that a process needs to use a model with its context full, and what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import click

from edgespec.bench.child import in_child
from edgespec.bench.experiments.common import (
    experiment,
    machine,
    note,
    report,
    runtime_option,
    table,
    threads_option,
)
from edgespec.bench.workloads import own_text
from edgespec.core.decoding import prefill
from edgespec.core.runtime_spec import CACHE_BYTES
from edgespec.device.machine import peak_memory_bytes
from edgespec.device.planning import Plan
from edgespec.engine import Engine
from edgespec.export.dimensions import dimensions_of
from edgespec.export.source import name_of
from edgespec.models import store
from edgespec.models.gguf import GGUFFile
from edgespec.runtimes import get

_GENERATED = 32


@dataclass(frozen=True)
class Case:
    """How a model is used."""

    model: str
    runtime: str
    context: int
    draft: str
    exact: bool
    threads: int | None

    def plan(self) -> Plan:
        return Engine.plan(self.model, runtime=self.runtime, draft=self.draft, context=self.context)


@dataclass(frozen=True)
class Peaks:
    """The largest resident memory up to the end of each stage, in bytes."""

    imported: int
    opened: int
    generated: int
    """With the context full, and the draft model's, if there is one."""
    weights_read: int
    """By one pass, of the model as the runtime has it."""


def fill(case: Case) -> Peaks:
    """Open a model, fill its context with text and let it go on to the context's end."""
    imported = peak_memory_bytes()
    with Engine.open(
        case.model,
        runtime=case.runtime,
        draft=case.draft,
        context=case.context,
        exact=None if case.exact else False,
        threads=case.threads,
    ) as engine:
        opened = peak_memory_bytes()
        tokenizer, draft = engine.tokenizer, engine.draft_model
        tokens = list(islice(cycle(tokenizer.encode(own_text())), case.context - _GENERATED))
        if draft is not None:  # it may find out soon that it does not pay
            prefill(draft, tokens[: draft.info.context])
            draft.truncate(0)
        words = tokenizer.stream()
        prompt = words.push(tokens) + words.flush()
        for _ in engine.session(ignore_stop=True).complete(prompt):
            pass
        return Peaks(imported, opened, peak_memory_bytes(), engine.info.weight_bytes)


def cache_bytes(file: GGUFFile, context: int, runtime: str) -> int:
    """The key-value cache of ``context`` tokens, in the type that ``runtime`` usually has."""
    numbers = dimensions_of(file, vocab_size=0).cache_numbers * context
    return int(numbers * CACHE_BYTES[get(runtime).cache_types[0]])


def _columns(case: Case, weights: int) -> tuple[dict[str, int], dict[str, float]]:
    """Figures of one case: bytes and ratios, by what they are."""
    note(f"filling a context of {case.context} tokens")
    plan, peaks = case.plan(), in_child(fill, case)
    path = store.resolve(case.model)
    cache = cache_bytes(GGUFFile(path), case.context, case.runtime)
    sizes = {"weights": weights, "cache": cache, **asdict(peaks), "predicted": plan.memory.total}
    ratios = {
        "ratio": peaks.generated / (weights + cache),
        "predicted_ratio": plan.memory.total / peaks.generated,
    }
    return sizes, ratios


_ROWS = {
    "weights": "weight file",
    "cache": "key-value cache",
    "weights_read": "weights that a pass reads",
    "imported": "peak: imported",
    "opened": "peak: opened",
    "generated": "peak: context full",
    "predicted": "predicted peak",
    "predicted_ratio": "**predicted / measured**",
    "ratio": "peak / (weight file + cache)",
}


@experiment
@runtime_option
@click.option(
    "--context",
    "contexts",
    type=click.IntRange(min=_GENERATED + 1),
    multiple=True,
    default=(4096,),
    show_default=True,
    help="May be given several times.",
)
@click.option("--draft", default="hierarchy", show_default=True)
@click.option("--exact/--no-exact", default=True, show_default=True)
@threads_option
def main(
    model: str,
    runtime: str,
    contexts: Sequence[int],
    draft: str,
    exact: bool,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Peak resident memory against the prediction, and against the weight file and the cache."""
    weights = store.resolve(model).stat().st_size
    note("preparing")  # built and probed once: neither belongs to the memory of use
    in_child(fill, Case(model, runtime, 64, draft, exact, threads))
    cases = [Case(model, runtime, context, draft, exact, threads) for context in contexts]
    columns = [_columns(case, weights) for case in cases]
    cells = [
        [
            name,
            *(
                f"{sizes[key] / 1e6:.1f} MB" if key in sizes else f"{ratios[key]:.3f}"
                for sizes, ratios in columns
            ),
        ]
        for key, name in _ROWS.items()
    ]
    figures = [
        {"context": case.context, **sizes, **ratios}
        for case, (sizes, ratios) in zip(cases, columns, strict=True)
    ]
    title = f"Memory: {runtime}{'' if exact else ', --no-exact'}, draft: {name_of(Path(draft))}"
    headers = ["", *(f"{context} tokens" for context in contexts)]
    report(title, machine(model), [table(headers, cells)], json_path, figures)
