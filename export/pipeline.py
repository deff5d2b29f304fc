"""The work of ``edgespec export``: change a model as the recipe asks, and write a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.core.runtime import Runtime
from edgespec.errors import UserError
from edgespec.export.bundle import (
    add_model,
    new_folder,
    sampling_defaults,
    scratch_folder,
    write_manifest,
)
from edgespec.export.quality import Quality, check, held_out, measure
from edgespec.export.recipe import Recipe
from edgespec.export.source import KEPT_LAYERS, Source
from edgespec.export.sources import open_source
from edgespec.export.vocabulary import Answer, Counts, DraftReport, draft_report, held_out_answers
from edgespec.export.weights import bits_per_weight
from edgespec.export.work import Work
from edgespec.files import folder_bytes
from edgespec.models.bundle import is_bundle, read_bundle
from edgespec.models.gguf import GGUFFile
from edgespec.models.gguf_kinds import shard_paths
from edgespec.models.safetensors import checkpoint_files
from edgespec.models.store import sha256_of
from edgespec.models.tokenizer import Tokenizer
from edgespec.models.trimmed import TOKEN_IDS
from edgespec.progress import Progress, silent


@dataclass(frozen=True)
class Exported:
    """The result of an export, for people; the bundle records what does not depend on the time."""

    folder: Path
    size: int
    quality: Quality | None
    referee: str | None
    """The runtime of the source that the quality was measured against; None: it was not."""
    draft: DraftReport | None
    whole: DraftReport | None
    """Of the source, before the export."""


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

    ``answers`` are the target's output tokens (``--sampled-from``), ``target`` its runtime, which only
    ``trim_vocab="auto"`` needs. The folder ``out`` must not exist; it appears when it is whole, and
    the same input gives the same bytes. Raises ``UserError`` for what the caller can put right.
    """
    recipe.check(answers)
    source = open_source(path)
    tokenizer = _tokenizer(source)
    with new_folder(out) as folder, scratch_folder(out) as scratch, ExitStack() as opened:
        work = Work(source, tokenizer, recipe, scratch, opened, progress)
        (folder / "tokenizer").mkdir()
        tokenizer.save(folder / "tokenizer")
        packed = [_packed_draft(folder, draft, progress) for draft in recipe.drafts]
        made = work.changed()
        held_out_counts = None
        if recipe.trim_vocab is not None:
            samples, held_out_counts = work.samples(answers)
            made = work.trimmed(made, samples, held_out_counts, answers, target)
        provenance = _provenance(path, recipe, made, progress)
        made = work.weighted(made)  # for an hour, it may be: what can fail has been done before
        name = "model.gguf" if recipe.format == "gguf" else "model"
        work.write(made, folder / name)
        runtime = work.open(folder / name)
        quality = draft = whole = None
        windows = held_out(tokenizer)
        if recipe.makes_a_draft:
            texts = held_out_answers(answers) or [([], window) for window in windows]
            if (
                held_out_counts is None or not held_out_counts.any()
            ):  # no corpus, or one too short to hold any out
                held_out_counts = _counted(texts, tokenizer.vocab_size)
            whole = draft_report(work.whole(), held_out_counts, texts)
            draft = draft_report(runtime, held_out_counts, texts)
        if TOKEN_IDS not in made.metadata:
            reference = work.reference(runtime)
            bits = bits_per_weight(made)
            quality = measure(reference, runtime, windows, bits, progress)
            if recipe.weights != "exact" and not recipe.makes_a_draft:
                check(quality, recipe.allow_loss)
        entry: Mapping[str, Any] = {
            "name": out.name,
            "architecture": runtime.info.architecture,
            "format": "gguf" if recipe.format == "gguf" else "onnx",
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
        size = folder_bytes(folder)
    return Exported(out, size, quality, work.referee, draft, whole)


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
    return np.bincount([id for _, output in texts for id in output], minlength=vocab_size)


def _report(
    quality: Quality | None,
    draft: DraftReport | None,
    whole: DraftReport | None,
    referee: str | None,
) -> dict[str, Any]:
    """The part that the bundle records: nothing that depends on the machine's speed."""
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
    files = shard_paths(path) if path.is_file() else checkpoint_files(path)
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
    """Copy the draft of another bundle, if it has the same vocabulary."""
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
