"""The most memory that a process needs to use a model with its context full."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import click

from edgespec.bench.common import (
    RUNTIMES,
    in_child,
    machine,
    note,
    own_text,
    program,
    report,
    table,
)
from edgespec.decoding import decode, prefill
from edgespec.drafting.ngram import NgramDrafter
from edgespec.engine import Engine
from edgespec.models import store
from edgespec.models.gguf import GGUFFile
from edgespec.statistics import peak_memory_bytes

_CACHE_ITEM_BYTES = {"onnx": 4, "llama-cpp": 2}
"""Of a number in the cache: float32 and float16."""
_GENERATED = 32


@dataclass(frozen=True)
class Peaks:
    """The largest resident memory up to the end of each stage, in bytes."""

    imported: int
    opened: int
    filled: int
    generated: int
    weights_read: int
    """By one pass, of the model as the runtime has it."""


def fill(model: str, runtime: str, context: int, exact: bool) -> Peaks:
    """Open a model, fill its context with text and let it go on to the context's end."""
    imported = peak_memory_bytes()
    with Engine.open(model, runtime=runtime, context=context, exact=exact) as engine:
        opened = peak_memory_bytes()
        parts = engine.loaded
        text = islice(cycle(parts.tokenizer.encode(own_text())), max(1, context - _GENERATED))
        tokens = list(text)
        prefill(parts.target, tokens)
        filled = peak_memory_bytes()
        for _ in decode(
            parts.target, NgramDrafter(), tokens, max_tokens=_GENERATED, costs=parts.costs
        ):
            pass
        return Peaks(imported, opened, filled, peak_memory_bytes(), engine.info.weight_bytes)


def cache_bytes(file: GGUFFile, context: int, runtime: str) -> int:
    """The key-value cache of ``context`` tokens."""

    def value(key: str, default: int) -> int:
        return int(file.metadata.get(f"{file.architecture}.{key}", default))

    heads = value("attention.head_count", 1)
    width = value("embedding_length", 0) // heads
    key, val = value("attention.key_length", width), value("attention.value_length", width)
    rows = value("block_count", 0) * value("attention.head_count_kv", heads)
    return rows * (key + val) * context * _CACHE_ITEM_BYTES[runtime]


@program
@click.option("--runtime", type=click.Choice(RUNTIMES), default="onnx", show_default=True)
@click.option("--context", default=4096, show_default=True)
@click.option("--exact/--no-exact", default=True, show_default=True)
def main(model: str, runtime: str, context: int, exact: bool, json_path: Path | None) -> None:
    """Peak resident memory against the weight file and the key-value cache."""
    path = store.resolve(model)
    note("preparing")  # built and probed once: neither belongs to the memory of use
    in_child(fill, model, runtime, 64, exact)
    note(f"filling a context of {context} tokens")
    peaks = in_child(fill, model, runtime, context, exact)
    weights, cache = path.stat().st_size, cache_bytes(GGUFFile(path), context, runtime)
    ratio = peaks.generated / (weights + cache)
    rows = [
        ("weight file", weights),
        (f"key-value cache, {context} tokens", cache),
        ("weights that a pass reads", peaks.weights_read),
        ("peak: imported", peaks.imported),
        ("peak: opened", peaks.opened),
        ("peak: context filled", peaks.filled),
        ("peak: generated", peaks.generated),
    ]
    cells = [[name, f"{count / 1e6:.1f}"] for name, count in rows]
    cells.append(["**peak / (weight file + cache)**", f"**{ratio:.3f}**"])
    figures = {"weights": weights, "cache": cache, "ratio": ratio, **asdict(peaks)}
    title = f"Memory: {runtime}{'' if exact else ', --no-exact'}"
    report(title, machine(model), [table(["", "MB"], cells)], json_path, figures)


if __name__ == "__main__":
    main()
