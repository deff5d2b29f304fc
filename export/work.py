"""An export at work: the source changed, trimmed, given its weights, written, and opened to be measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgespec.core.runtime import Runtime
from edgespec.core.runtime_spec import Form, LoadOptions
from edgespec.errors import UserError
from edgespec.export.calibration_data import calibration_windows
from edgespec.export.pruning import choose_layers
from edgespec.export.recipe import Recipe
from edgespec.export.source import Source
from edgespec.export.sources.pruned import KeptLayers
from edgespec.export.sources.trimmed import TrimmedHead, head_rows, write_trimmed_gguf
from edgespec.export.to_gguf import with_tokenizer, write_gguf
from edgespec.export.to_onnx import write_onnx
from edgespec.export.vocabulary import (
    Answer,
    Counts,
    Frequencies,
    acceptance,
    best_size,
    choose_tokens,
    count_tokens,
    expected_frequencies,
    held_out_answers,
    linear_cost,
    other_answers,
    pass_seconds,
    sampled_tokens,
)
from edgespec.export.weights import with_weights
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from edgespec.models.trimmed import TOKEN_IDS
from edgespec.progress import Progress
from edgespec.runtimes import for_form

_QUANTIZATIONS = {"int8": "Q8_0", "int4": "Q4_K_M"}
"""The type of llama.cpp's quantizer for each ``--weights`` in a GGUF file."""
_MEASURED_CONTEXT = 1024
_LAYER_WINDOWS = 4
"""Windows of the calibration text on which layers are chosen."""
_MEASURED_HEADS = (4, 2)
"""Parts of the vocabulary (a quarter, half) in the heads that are timed to know what a row costs."""


@dataclass
class Work:
    """One export: what it works on, and what it opened on the way."""

    source: Source
    tokenizer: Tokenizer
    recipe: Recipe
    scratch: Path
    opened: ExitStack
    progress: Progress
    referee: str | None = None
    """The runtime that the quality is measured against."""
    _whole: Runtime | None = None

    @property
    def context(self) -> int:
        """Tokens that what is measured has room for."""
        metadata = self.source.metadata
        longest = int(metadata[f"{metadata['general.architecture']}.context_length"])
        return min(_MEASURED_CONTEXT, longest)

    def changed(self) -> Source:
        """The source with the layers that are asked for, and the weights where llama.cpp makes them."""
        made, recipe = self.source, self.recipe
        if recipe.keep_layers is not None:
            layers = recipe.keep_layers
            if isinstance(layers, int):
                text = calibration_windows(self.tokenizer)[:_LAYER_WINDOWS]
                layers = choose_layers(made, layers, text, self.progress)
            made = KeptLayers(made, layers)
        if self._quantizer is not None:
            path = self.scratch / "quantized.gguf"
            write_gguf(made, path, self.progress, quantize=self._quantizer)
            return GGUFFile(path)
        return made

    def weighted(self, made: Source) -> Source:
        """``made``, trimmed already where it is to be, with the weights that are asked for."""
        if self._quantizer is not None:
            return made
        calibrated = self.recipe.weights == "int4" and not self.recipe.makes_a_draft
        windows = calibration_windows(self.tokenizer) if calibrated else None
        return with_weights(made, self.recipe.weights, windows, self.progress)

    @property
    def _quantizer(self) -> str | None:
        """The type for llama.cpp's quantizer, where it converts the weights."""
        return _QUANTIZATIONS.get(self.recipe.weights) if self.recipe.format == "gguf" else None

    def samples(self, answers: Sequence[Answer]) -> tuple[list[Counts], Counts]:
        """How often each token occurs in the answers, the prompts and the corpus, and in what is held
        out: of the answers, where there are any."""
        size, found, held_out_counts = self.tokenizer.vocab_size, [], np.zeros(0, np.int64)
        if self.recipe.corpus:
            counts, held_out_counts = count_tokens(
                self.tokenizer, self.recipe.corpus, self.progress
            )
            found.append(counts)
        if answers:
            found.append(sampled_tokens((prompt for prompt, _ in answers), size)[0])
            counts, held_out_counts = sampled_tokens((output for _, output in answers), size)
            found.append(counts)
        return found, held_out_counts

    def trimmed(
        self,
        made: Source,
        samples: Sequence[Counts],
        held_out_counts: Counts,
        answers: Sequence[Answer],
        target: Runtime | None,
    ) -> Source:
        """``made`` with the head that is asked for."""
        rows = head_rows(made)[: self.tokenizer.vocab_size]
        sampled = other_answers(answers)
        frequencies = expected_frequencies(samples, sampled, rows, self.whole())
        del rows
        if self.recipe.format == "gguf":
            made = with_tokenizer(made)  # it is written with the whole vocabulary
        size = self.recipe.trim_vocab
        if size == "auto":
            assert target is not None
            size = self._best_size(made, frequencies, held_out_counts, answers, target)
        assert isinstance(size, int)
        return TrimmedHead(made, choose_tokens(frequencies, size, self.tokenizer))

    def _best_size(
        self,
        made: Source,
        frequencies: Frequencies,
        held_out_counts: Counts,
        answers: Sequence[Answer],
        target: Runtime,
    ) -> int:
        measured = []
        for part in _MEASURED_HEADS:
            path = self.scratch / (f"head-{part}" + ".gguf" * (self.recipe.format == "gguf"))
            rows = self.tokenizer.vocab_size // part
            trimmed = TrimmedHead(made, choose_tokens(frequencies, rows, self.tokenizer))
            self.write(self.weighted(trimmed), path)
            measured.append((rows, pass_seconds(self.open(path))))
        alpha = acceptance(held_out_answers(answers), self.whole())
        seconds = {n: pass_seconds(target, n) for n in (1, 2, 4, 8, 16)}
        return best_size(
            frequencies,
            held_out_counts,
            self.tokenizer,
            alpha,
            linear_cost(*measured),
            lambda n: float(np.interp(n, list(seconds), list(seconds.values()))),
        ).tokens

    def write(self, made: Source, path: Path) -> None:
        """Write a source in the recipe's format."""
        if self.recipe.format != "gguf":
            path.mkdir()
            write_onnx(made, path, self.progress, packed=self.recipe.format == "packed")
        elif TOKEN_IDS in made.metadata:
            write_trimmed_gguf(made, path, self.progress)
        else:
            write_gguf(made, path, self.progress)

    def open(self, path: Path) -> Runtime:
        """The exported model, loaded to measure it."""
        form: Form = "built" if path.is_dir() else "gguf"
        spec = for_form(form)
        if spec is None:
            raise UserError("no runtime is installed that can measure what was exported")
        options = LoadOptions(context=self.context, progress=self.progress)
        runtime = spec.load(path, form, options)
        self.opened.callback(runtime.close)
        return runtime

    def reference(self, runtime: Runtime) -> Runtime:
        """The reference of ``runtime``: the source as it was, where weights did not change on
        llama.cpp, if it is there; else ``runtime`` itself, and then only its perplexity is known.
        """
        recipe, path = self.recipe, self.source.path
        if recipe.weights != "exact" or recipe.makes_a_draft:
            found = self.whole()
        elif recipe.format != "gguf" and path.is_file() and (spec := for_form("gguf")):
            # two pools of threads would fight
            found = spec.load(path, "gguf", LoadOptions(context=self.context, threads=1))
            self.opened.callback(found.close)
        else:
            return runtime
        self.referee = found.info.runtime
        return found

    def whole(self) -> Runtime:
        """The source itself, unchanged, in the recipe's format."""
        if self._whole is None:
            path = self.source.path
            if self.recipe.format != "gguf":
                path = self.scratch / "whole"
                self.write(self.source, path)
            elif path.is_dir():
                path = self.scratch / "whole.gguf"
                self.write(self.source, path)
            self._whole = self.open(path)
        return self._whole
