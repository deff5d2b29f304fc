"""Finds the model that a user names, on this machine or in the catalogue."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgespec.core.runtime import DEFAULT_CONTEXT
from edgespec.core.runtime_spec import Form, ModelDimensions
from edgespec.errors import UserError
from edgespec.export.accounting import unsupported
from edgespec.export.dimensions import dimensions_of
from edgespec.export.source import Source
from edgespec.export.sources import open_source
from edgespec.models import store
from edgespec.models.bundle import BundledModel, is_bundle, read_bundle
from edgespec.models.gguf import GGUFFile
from edgespec.models.gguf_kinds import refuse_no_model
from edgespec.models.onnx_folder import read_manifest
from edgespec.models.optimum_folder import is_optimum_folder, model_context
from edgespec.models.tokenizer import Tokenizer
from edgespec.progress import Progress
from edgespec.runtimes import specs


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine, not loaded yet.

    ``path`` is a ``.gguf`` file, a ``checkpoint`` (a safetensors folder), a folder that was ``built``
    for the onnx runtime, or a ``plain`` graph that Optimum wrote.
    """

    path: Path
    form: Form
    architecture: str
    context: int
    """The most tokens that it takes."""
    tokenizer: Tokenizer
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Fields of ``Sampling`` that its makers recommend."""
    drafts: tuple[LocalModel, ...] = ()
    """What its bundle has to draft for it, the preferred one first."""
    dimensions: ModelDimensions | None = None
    """The dimensions that determine its memory; ``None`` if the metadata does not have them."""
    unpredictable: str | None = None
    """Why its metadata does not give its dimensions."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Runtimes that must not run it, and why."""


def find(name: str, progress: Progress) -> LocalModel:
    """A name in the catalogue (pulled if absent), a GGUF file, a safetensors folder or a bundle.

    Raises ``UserError`` where there is no such model, or only a draft.
    """
    folder = Path(os.path.expanduser(name))
    if not name or not folder.is_dir():
        return _gguf(store.resolve(name, progress))
    if not is_bundle(folder):
        return _folder(folder)
    target, drafts, sampling = _read(folder, progress)
    if target is None:
        raise UserError(f"{name} holds only a draft; chat with its target and --draft {name}")
    return replace(target, sampling=sampling, drafts=drafts)


def find_draft(name: str, progress: Progress) -> LocalModel:
    """A model to draft for another: as ``find``, or a bundle that holds only a draft.

    Raises ``UserError`` where there is none.
    """
    folder = Path(os.path.expanduser(name))
    if not is_bundle(folder):
        return find(name, progress)
    own, drafts, _ = _read(folder, progress)
    return (*drafts, *filter(None, [own]))[0]


def _read(
    folder: Path, progress: Progress
) -> tuple[LocalModel | None, tuple[LocalModel, ...], Mapping[str, float]]:
    """A bundle's target, its drafts and its sampling."""
    bundle = read_bundle(folder, progress)
    tokenizer = Tokenizer.from_file(bundle.tokenizer)
    target = _bundled(bundle.target, tokenizer) if bundle.target else None
    return target, tuple(_bundled(draft, tokenizer) for draft in bundle.drafts), bundle.sampling


def _gguf(path: Path, tokenizer: Tokenizer | None = None) -> LocalModel:
    file = GGUFFile(path)
    refuse_no_model(path, file.metadata, len(file.tensors))
    context = file.metadata.get(f"{file.architecture}.context_length", DEFAULT_CONTEXT)
    if not isinstance(context, int):
        context = DEFAULT_CONTEXT  # the runtime reports the error
    tokenizer = tokenizer or Tokenizer.from_gguf(file)
    size, unpredictable = _dimensions(file, tokenizer)
    unbuildable = unsupported(file)
    reasons = {
        name: spec.refuses(file) or (unbuildable if "built" in spec.forms else None)
        for name, spec in specs().items()
    }
    model = LocalModel(
        path,
        "gguf",
        file.architecture,
        context,
        tokenizer,
        dimensions=size,
        unpredictable=unpredictable,
        refusals={name: reason for name, reason in reasons.items() if reason},
    )
    del file
    give_back_memory()
    return model


def give_back_memory() -> None:
    """Of lists of a vocabulary's tokens that are gone: glibc keeps tens of MB of them otherwise."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # musl has no such function
            ctypes.CDLL(None).malloc_trim(0)


def _folder(path: Path) -> LocalModel:
    """A safetensors folder, or one that Optimum wrote."""
    if is_optimum_folder(path):
        return LocalModel(path, "plain", "", model_context(path), Tokenizer.from_file(path))
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path} is a folder without bundle.json or config.json; "
            "give a catalogue name, a .gguf file, a bundle or a safetensors folder"
        )
    source = open_source(path)
    metadata, tokenizer = source.metadata, Tokenizer.from_file(path)
    architecture = str(metadata["general.architecture"])
    context = int(metadata[f"{architecture}.context_length"])
    size, unpredictable = _dimensions(source, tokenizer)
    return LocalModel(
        path,
        "checkpoint",
        architecture,
        context,
        tokenizer,
        dimensions=size,
        unpredictable=unpredictable,
    )


def _dimensions(source: Source, tokenizer: Tokenizer) -> tuple[ModelDimensions | None, str | None]:
    """The dimensions, or why the metadata does not give them: the runtime may load the model yet."""
    try:
        return dimensions_of(source, tokenizer.vocab_size), None
    except UserError as error:
        return None, str(error)


def _bundled(model: BundledModel, tokenizer: Tokenizer) -> LocalModel:
    if model.format == "gguf":
        return _gguf(model.path, tokenizer)
    manifest = read_manifest(model.path)
    return LocalModel(
        model.path, "built", str(manifest["architecture"]), int(manifest["context"]), tokenizer
    )
