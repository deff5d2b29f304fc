"""Is the model that the onnx runtime runs the model in the file? llama.cpp is the reference.

Both read the same text in windows of 512 tokens, each from an empty cache, and every token but a
window's first is scored.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from edgespec.bench.experiments.common import (
    experiment,
    machine,
    note,
    report,
    table,
    threads_option,
)
from edgespec.bench.workloads import WINDOW, own_text, windows
from edgespec.core.runtime import Runtime
from edgespec.core.runtime_spec import LoadOptions
from edgespec.errors import UserError
from edgespec.export import build_onnx
from edgespec.export.quality import log_softmax
from edgespec.models import store
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from edgespec.runtimes import get

_CHUNK = 128  # tokens in a pass


@dataclass
class Comparison:
    """Sums over the tokens scored. Logarithms are natural."""

    tokens: int = 0
    reference_loss: float = 0.0
    loss: float = 0.0
    divergence: float = 0.0
    """Of the runtime's distribution from the reference's: Σ p log(p / q)."""
    agreed: int = 0
    """Tokens for which both have the same first choice."""

    def add(self, reference: npt.NDArray[Any], other: npt.NDArray[Any], next_: list[int]) -> None:
        """Count rows of logits, ``[len(next_), vocab_size]``, and the tokens that came next."""
        p, q, rows = log_softmax(reference), log_softmax(other), np.arange(len(next_))
        self.tokens += len(next_)
        self.reference_loss -= float(p[rows, next_].sum())
        self.loss -= float(q[rows, next_].sum())
        self.divergence += float((np.exp(p) * (p - q)).sum())
        self.agreed += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())

    def figures(self) -> dict[str, float]:
        """Both perplexities, their ratio, top-1 agreement and mean divergence."""
        return {
            "tokens": self.tokens,
            "llama_cpp": math.exp(self.reference_loss / self.tokens),
            "onnx": math.exp(self.loss / self.tokens),
            "ratio": math.exp((self.loss - self.reference_loss) / self.tokens),
            "top1_agreement": self.agreed / self.tokens,
            "mean_kl": self.divergence / self.tokens,
        }


def compare(reference: Runtime, other: Runtime, window: list[int], sums: Comparison) -> None:
    """Run one window through both."""
    for runtime in (reference, other):
        runtime.truncate(0)
    for start in range(0, len(window) - 1, _CHUNK):
        chunk = window[start : start + _CHUNK]
        next_ = window[start + 1 : start + 1 + _CHUNK]
        p, q = reference.forward(chunk), other.forward(chunk)
        sums.add(p[: len(next_)], q[: len(next_)], next_)
        for runtime in (reference, other):
            runtime.keep(range(len(chunk)))


def requantize(source: Path, folder: Path, kind: str) -> Path:
    """A copy of ``source`` in ``folder``, with its matrices quantized to ``kind`` by llama.cpp."""
    import llama_cpp

    kinds = {name.removeprefix("LLAMA_FTYPE_MOSTLY_"): name for name in dir(llama_cpp)}
    if kind not in kinds or kind == kinds[kind]:
        raise UserError(f"llama.cpp has no file type {kind}; take Q4_0, Q6_K, Q8_0, Q4_K_M, …")
    path = folder / f"{source.stem}-{kind}.gguf"
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, kinds[kind])
    options.allow_requantize = True
    note(f"quantizing to {kind}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), options):
        raise UserError(f"llama.cpp cannot turn {source} into {kind}")
    return path


@experiment
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tokens", default=4096, show_default=True, help="How many to read, at least.")
@click.option("--requantize", "kind", help="Turn the model into Q4_0, Q6_K, Q4_K_M, … first.")
@threads_option
def main(
    model: str,
    text: Path | None,
    tokens: int,
    kind: str | None,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Compare the onnx runtime's perplexity with llama.cpp's on the same GGUF file."""
    path = store.resolve(model)
    words = text.read_text("utf-8") if text else own_text()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind:
            path = requantize(path, folder, kind)
        pieces = list(windows(Tokenizer.from_gguf(GGUFFile(path)), words, tokens))
        facts = machine(path)
        note("building the ONNX model")
        onnx, llama = get("onnx"), get("llama-cpp")
        built = build_onnx(path, folder / "onnx", packed=onnx.packs("cpu", None))
        options = LoadOptions(context=WINDOW, threads=threads, device="cpu")
        other, reference = onnx.load(built, "built", options), llama.load(path, "gguf", options)
        sums = Comparison()
        for number, window in enumerate(pieces, 1):
            compare(reference, other, window, sums)
            note(f"window {number}/{len(pieces)}: {asdict(sums)}")
        reference.close()
        other.close()
    found = sums.figures()
    row = [
        path.stem,
        str(sums.tokens),
        f"{found['llama_cpp']:.4f}",
        f"{found['onnx']:.4f}",
        f"{found['ratio']:.4f}",
        f"{found['top1_agreement']:.2%}",
        f"{found['mean_kl']:.5f}",
    ]
    headers = ["model", "tokens", "llama.cpp", "onnx", "ratio", "top-1 agreement", "mean KL"]
    report("Perplexity: onnx vs llama.cpp", facts, [table(headers, [row])], json_path, found)
