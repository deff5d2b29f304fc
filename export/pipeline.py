"""What ``edgespec export`` does: a model, through what is asked of it, into a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.errors import UserError
from edgespec.export.bundle import (
    add_model,
    new_folder,
    sampling_defaults,
    scratch_folder,
    write_manifest,
)
from edgespec.export.calibration import calibration_windows
from edgespec.export.quality import Quality, check, held_out, measure
from edgespec.export.sources import KEPT_LAYERS, TOKEN_IDS, Source, open_source
from edgespec.export.vocabulary import (
    Answer,
    Counts,
    DraftReport,
    Frequencies,
    acceptance,
    best_size,
    choose_tokens,
    count_tokens,
    draft_report,
    expected_frequencies,
    held_out_answers,
    linear_cost,
    other_answers,
    pass_seconds,
    sampled_tokens,
)
from edgespec.export.weights import bits_per_weight, with_weights
from edgespec.models.bundle import is_bundle, read_bundle
from edgespec.models.gguf import GGUFFile
from edgespec.models.safetensors import checkpoint_files
from edgespec.models.store import sha256_of
from edgespec.models.tokenizer import Tokenizer
from edgespec.progress import Progress, silent
from edgespec.runtimes import Runtime

_QUANTIZATIONS = {"int8": "Q8_0", "int4": "Q4_K_M"}
"""What llama.cpp's quantizer makes of ``--weights`` in a GGUF file."""
_MEASURED_CONTEXT = 1024
_LAYER_WINDOWS = 4
"""Windows of the calibration text that layers are chosen by."""
_MEASURED_HEADS = (4, 2)
"""Parts of the vocabulary (a quarter, half) in the heads that are timed to know what a row costs."""


@dataclass(frozen=True)
class Recipe:
    """What to make of a model; the options of ``edgespec export``."""

    format: str = "onnx"
    weights: str = "exact"
    keep_layers: int | Sequence[int] | None = None
    """How many layers to keep, or which."""
    trim_vocab: int | str | None = None
    """How many tokens to keep in the head, or "auto"."""
    corpus: Sequence[Path] = ()
    """Files whose most frequent tokens are kept."""
    drafts: Sequence[Path] = ()
    """Bundles whose drafts (or whose target, as one) are packed along."""
    allow_loss: bool = False

    @property
    def makes_a_draft(self) -> bool:
        """Whether what comes out is no longer fit to be a target."""
        return self.keep_layers is not None or self.trim_vocab is not None

    def check(self, answers: Sequence[Answer]) -> None:
        """Raise ``UserError`` for what does not go together."""
        texts = bool(self.corpus) or bool(answers)
        if self.trim_vocab is not None and not texts:
            raise UserError(
                "--trim-vocab needs to know which tokens are frequent: give --corpus FILE, "
                "--sampled-from TARGET with --prompts FILE, or both"
            )
        if self.trim_vocab is None and texts:
            raise UserError("--corpus and --sampled-from go with --trim-vocab")
        if self.trim_vocab == "auto" and not answers:
            raise UserError(
                "--trim-vocab auto weighs the draft's time against the target's; "
                "give --sampled-from TARGET with --prompts FILE"
            )


@dataclass(frozen=True)
class Exported:
    """What came out of an export, for people; the bundle holds what does not depend on the time."""

    folder: Path
    size: int
    quality: Quality | None
    referee: str | None
    """The runtime of the source that the quality was measured against; None: it was not."""
    draft: DraftReport | None
    whole: DraftReport | None
    """Of the model that the draft was made of."""


def export(
    path: Path,
    out: Path,
    recipe: Recipe,
    *,
    answers: Sequence[Answer] = (),
    target: Runtime | None = None,
    progress: Progress = silent,
) -> Exported:
    """Make a bundle of ``path``, a GGUF file or a safetensors folder.

    ``answers`` are what the target said (``--sampled-from``), ``target`` its runtime, which only
    ``trim_vocab="auto"`` needs. The folder ``out`` must not exist; it appears when it is whole, and
    the same input gives the same bytes. Raises ``UserError`` for what the caller can put right.
    """
    recipe.check(answers)
    source = open_source(path)
    tokenizer = _tokenizer(source)
    with new_folder(out) as folder, scratch_folder(out) as scratch, ExitStack() as opened:
        work = _Work(source, tokenizer, recipe, scratch, opened, progress)
        (folder / "tokenizer").mkdir()
        tokenizer.save(folder / "tokenizer")
        packed = [_packed_draft(folder, draft, progress) for draft in recipe.drafts]
        made = work.changed()
        held = None
        if recipe.trim_vocab is not None:
            samples, held = work.samples(answers)
            made = work.trimmed(made, samples, held, answers, target)
        provenance = _provenance(path, recipe, made, progress)
        made = work.weighted(made)  # for an hour, it may be: what can fail has been done before
        name = "model.gguf" if recipe.format == "gguf" else "model"
        work.write(made, folder / name)
        runtime = work.open(folder / name)
        quality = draft = whole = None
        windows = held_out(tokenizer)
        if recipe.makes_a_draft:
            texts = held_out_answers(answers) or [([], window) for window in windows]
            if held is None or not held.any():  # no corpus, or one too short to hold any out
                held = _counted(texts, tokenizer.vocab_size)
            whole = draft_report(work.whole(), held, texts)
            draft = draft_report(runtime, held, texts)
        if TOKEN_IDS not in made.metadata:
            reference = work.reference(runtime)
            bits = bits_per_weight(made)
            quality = measure(reference, runtime, windows, bits, progress)
            if recipe.weights != "exact" and not recipe.makes_a_draft:
                check(quality, recipe.allow_loss)
        entry: Mapping[str, Any] = {
            "name": out.name,
            "architecture": runtime.info.architecture,
            "format": recipe.format,
            "path": name,
            "weight_bytes": runtime.info.weight_bytes,
            "token_ids": made.metadata.get(TOKEN_IDS),
            "quality": _report(quality, draft, whole, work.referee),
            "provenance": provenance,
        }
        opened.close()  # before files are moved: Windows moves no open ones
        write_manifest(
            folder,
            name=out.name,
            target=None if recipe.makes_a_draft else entry,
            drafts=[entry] * recipe.makes_a_draft + packed,
            sampling=sampling_defaults(path),
            progress=progress,
        )
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Exported(out, size, quality, work.referee, draft, whole)


@dataclass
class _Work:
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
            from edgespec.export.sources.pruned import KeptLayers, choose_layers

            layers = recipe.keep_layers
            if isinstance(layers, int):
                text = calibration_windows(self.tokenizer)[:_LAYER_WINDOWS]
                layers = choose_layers(made, layers, text, self.progress)
            made = KeptLayers(made, layers)
        if self._quantizer is not None:
            from edgespec.export.to_gguf import write_gguf

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
        """What llama.cpp's quantizer makes of the weights, where it makes them."""
        return _QUANTIZATIONS.get(self.recipe.weights) if self.recipe.format == "gguf" else None

    def samples(self, answers: Sequence[Answer]) -> tuple[list[Counts], Counts]:
        """How often each token occurs in the answers, the prompts and the corpus, and in what is held
        out: of the answers, where there are any."""
        size, found, held = self.tokenizer.vocab_size, [], np.zeros(0, np.int64)
        if self.recipe.corpus:
            counts, held = count_tokens(self.tokenizer, self.recipe.corpus, self.progress)
            found.append(counts)
        if answers:
            found.append(sampled_tokens((prompt for prompt, _ in answers), size)[0])
            counts, held = sampled_tokens((said for _, said in answers), size)
            found.append(counts)
        return found, held

    def trimmed(
        self,
        made: Source,
        samples: Sequence[Counts],
        held: Counts,
        answers: Sequence[Answer],
        target: Runtime | None,
    ) -> Source:
        """``made`` with the head that is asked for."""
        from edgespec.export.sources.trimmed import TrimmedHead, head_rows

        rows = head_rows(made)[: self.tokenizer.vocab_size]
        sampled = other_answers(answers)
        frequencies = expected_frequencies(samples, sampled, rows, self.whole())
        del rows
        if self.recipe.format == "gguf":
            from edgespec.export.to_gguf import with_tokenizer

            made = with_tokenizer(made)  # whose size it must have had when it is written
        size = self.recipe.trim_vocab
        if size == "auto":
            assert target is not None
            size = self._best_size(made, frequencies, held, answers, target)
        assert isinstance(size, int)
        return TrimmedHead(made, choose_tokens(frequencies, size, self.tokenizer))

    def _best_size(
        self,
        made: Source,
        frequencies: Frequencies,
        held: Counts,
        answers: Sequence[Answer],
        target: Runtime,
    ) -> int:
        from edgespec.export.sources.trimmed import TrimmedHead

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
            held,
            self.tokenizer,
            alpha,
            linear_cost(*measured),
            lambda n: float(np.interp(n, list(seconds), list(seconds.values()))),
        ).tokens

    def write(self, made: Source, path: Path) -> None:
        """Write a source in the recipe's format."""
        if self.recipe.format == "onnx":
            from edgespec.export.to_onnx import write_onnx

            path.mkdir()
            write_onnx(made, path, self.progress)
        elif TOKEN_IDS in made.metadata:
            from edgespec.export.sources.trimmed import write_trimmed_gguf

            write_trimmed_gguf(made, path, self.progress)
        else:
            from edgespec.export.to_gguf import write_gguf

            write_gguf(made, path, self.progress)

    def open(self, path: Path) -> Runtime:
        """What was written, loaded to measure it."""
        runtime: Runtime
        if path.is_dir():
            from edgespec.runtimes.onnx import OnnxRuntime

            runtime = OnnxRuntime(path, context=self.context, exact=False, progress=self.progress)
        else:
            from edgespec.runtimes.llama_cpp import LlamaCppRuntime

            runtime = LlamaCppRuntime(path, context=self.context)
        self.opened.callback(runtime.close)
        return runtime

    def reference(self, runtime: Runtime) -> Runtime:
        """What ``runtime`` is measured against: the source as it was, where weights did not change on
        llama.cpp, if it is there; else ``runtime`` itself, and then only its perplexity is known.
        """
        recipe, path = self.recipe, self.source.path
        if recipe.weights != "exact" or recipe.makes_a_draft:
            found = self.whole()
        elif recipe.format == "onnx" and path.is_file() and find_spec("llama_cpp") is not None:
            from edgespec.runtimes.llama_cpp import LlamaCppRuntime

            # two pools of threads would fight
            found = LlamaCppRuntime(path, context=self.context, threads=1)
            self.opened.callback(found.close)
        else:
            return runtime
        self.referee = found.info.runtime
        return found

    def whole(self) -> Runtime:
        """The source itself, unchanged, in the recipe's format."""
        if self._whole is None:
            path = self.source.path
            if self.recipe.format == "onnx":
                path = self.scratch / "whole"
                self.write(self.source, path)
            elif path.is_dir():
                path = self.scratch / "whole.gguf"
                self.write(self.source, path)
            self._whole = self.open(path)
        return self._whole


def _tokenizer(source: Source) -> Tokenizer:
    path, embedding = source.path, source.tensors.get("token_embd.weight")
    found = Tokenizer.from_file(path) if path.is_dir() else Tokenizer.from_gguf(GGUFFile(path))
    if embedding is not None and found.vocab_size > embedding.rows:
        raise UserError(
            f"{path} has {found.vocab_size} tokens in its tokenizer and {embedding.rows} in its "
            "embedding; they do not belong together"
        )
    return found


def _counted(texts: Sequence[Answer], vocab_size: int) -> Counts:
    return np.bincount([id for _, said in texts for id in said], minlength=vocab_size)


def _report(
    quality: Quality | None,
    draft: DraftReport | None,
    whole: DraftReport | None,
    referee: str | None,
) -> dict[str, Any]:
    """What the bundle keeps: nothing that depends on the machine's speed."""
    found: dict[str, Any] = {}
    if quality is not None:
        found = {**quality.to_json(), "reference": referee}
        if referee is None:  # it would be compared with itself
            found |= dict.fromkeys(("reference_perplexity", "kl_divergence", "perplexity_lost"))
    if draft is not None and whole is not None:
        found |= {
            "bytes_per_token": draft.weight_bytes,
            "bytes_per_token_before": whole.weight_bytes,
            "coverage": draft.coverage,
            "acceptance": draft.acceptance,
            "acceptance_before": whole.acceptance,
        }
    return found


def _provenance(path: Path, recipe: Recipe, made: Source, progress: Progress) -> dict[str, Any]:
    files = [path] if path.is_file() else checkpoint_files(path)
    return {
        "source": {file.name: sha256_of(file, progress) for file in files},
        "edgespec": version("edgespec"),
        "options": {
            "format": recipe.format,
            "weights": recipe.weights,
            "keep_layers": made.metadata.get(KEPT_LAYERS),
            "trim_vocab": recipe.trim_vocab,
            "corpus": {file.name: sha256_of(file) for file in recipe.corpus},
        },
    }


def _packed_draft(folder: Path, path: Path, progress: Progress) -> Mapping[str, Any]:
    """Copy the draft of another bundle, if it speaks with the same tokens."""
    if not is_bundle(path):
        raise UserError(f"{path} is no bundle; make one of the draft with `edgespec export` first")
    bundle = read_bundle(path, progress)
    model = bundle.drafts[0] if bundle.drafts else bundle.target
    if model is None:
        raise UserError(f"the bundle {path} holds no model")
    same = (folder / "tokenizer" / "tokenizer.json").read_bytes()
    if (bundle.tokenizer / "tokenizer.json").read_bytes() != same:
        raise UserError(f"{path} has another tokenizer than the target; take a draft of its family")
    return add_model(folder, bundle, model, progress)
