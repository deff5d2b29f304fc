"""Finds the model that a user names, and what can run it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edgespec.core.runtime import DEFAULT_CONTEXT, MAX_ROWS, RUNTIMES, Runtime, capacity
from edgespec.device.memory import ModelDimensions, repacked_types
from edgespec.device.placement import Placement, fastest_first
from edgespec.device.planning import Asked, Plan, plan
from edgespec.errors import UserError
from edgespec.export import build_onnx, onnx_folder
from edgespec.export.architectures import ARCHITECTURES
from edgespec.export.dimensions import dimensions_of, dimensions_of_built
from edgespec.export.source import Source
from edgespec.models import store
from edgespec.models.bundle import BundledModel, is_bundle, read_bundle
from edgespec.models.gguf import GGUFFile
from edgespec.models.safetensors import checkpoint_files
from edgespec.models.tokenizer import Tokenizer
from edgespec.progress import Progress, silent
from edgespec.runtimes.llama_sequences import why_not_on_ik


@dataclass(frozen=True)
class Model:
    """A model on this machine, not loaded yet.

    ``path`` is a ``.gguf`` file, a ``checkpoint`` (a safetensors folder), a folder that was ``built``
    for the onnx runtime, or a ``plain`` graph that Optimum wrote.
    """

    path: Path
    form: Literal["gguf", "checkpoint", "built", "plain"]
    architecture: str
    context: int
    """The most tokens that it takes."""
    tokenizer: Tokenizer
    sampling: Mapping[str, float] = field(default_factory=dict)
    """Fields of ``Sampling`` that its makers recommend."""
    drafts: tuple[Model, ...] = ()
    """What its bundle has to draft for it, the preferred one first."""
    shape: ModelDimensions | None = None
    """What its memory follows from; ``None`` where that takes reading a graph, or nothing tells."""
    on_ik: bool = False
    """Whether ik_llama.cpp computes it rightly."""


def find(name: str, progress: Progress) -> Model:
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


def find_draft(name: str, progress: Progress) -> Model:
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
) -> tuple[Model | None, tuple[Model, ...], Mapping[str, float]]:
    """A bundle's target, its drafts and its sampling."""
    bundle = read_bundle(folder, progress)
    tokenizer = Tokenizer.from_file(bundle.tokenizer)
    target = _bundled(bundle.target, tokenizer) if bundle.target else None
    return target, tuple(_bundled(draft, tokenizer) for draft in bundle.drafts), bundle.sampling


def choose_runtime(runtime: str, model: Model) -> str:
    """``auto`` is onnx wherever it has the architecture, else llama-cpp.

    Raises ``UserError`` where ``runtime`` cannot run what the model is.
    """
    if runtime not in ("auto", *RUNTIMES):
        raise UserError(f"there is no runtime {runtime!r}; take auto, {' or '.join(RUNTIMES)}")
    if model.form != "gguf":
        if runtime.endswith("llama-cpp"):
            raise UserError(
                f"llama.cpp runs GGUF files; make one with `edgespec export {model.path} OUT --format gguf`"
                if model.form == "checkpoint"
                else f"{model.path} was made for ONNX Runtime; export the model with --format gguf"
            )
        return "onnx"
    if runtime == "auto":
        known = model.architecture in ARCHITECTURES
        return "onnx" if known or find_spec("llama_cpp") is None else "llama-cpp"
    return runtime


def allowed_runtimes(place: Placement, model: Model) -> list[str]:
    """The runtimes that may run ``model`` as ``place`` asks, that of ``choose_runtime`` first.

    Raises ``UserError`` where it asks for what none of them can do.
    """
    runtimes = [choose_runtime(place.runtime, model)]
    if place.runtime == "auto" and model.form == "gguf":
        others = ["onnx"] * (model.architecture in ARCHITECTURES)
        others += ["llama-cpp"] * (find_spec("llama_cpp") is not None)
        others += ["ik-llama-cpp"] * (model.on_ik and find_spec("ik_llama_cpp") is not None)
        runtimes = list(dict.fromkeys([*runtimes, *others]))
    if place.device not in ("auto", "cpu"):
        runtimes = [runtime for runtime in runtimes if runtime != "ik-llama-cpp"]
        if not runtimes:
            raise UserError("ik-llama-cpp runs on the processor alone; use --device cpu with it")
    if place.exact:
        if "onnx" not in runtimes:
            raise UserError(
                "only the onnx runtime is exact; take --runtime onnx, or leave --exact out"
            )
        runtimes = ["onnx"]
    if place.provider is None:
        return runtimes
    if "onnx" not in runtimes:
        raise UserError("--provider chooses among ONNX Runtime's; it needs --runtime onnx")
    return ["onnx"]


def find_places(
    model: Model,
    place: Placement,
    *,
    speculates: bool,
    notice: Callable[[str], None] = lambda line: None,
) -> list[Placement]:
    """Where ``model`` may run as ``place`` asks, the fastest first, as far as profiles tell.

    Raises ``UserError`` where it cannot run so.
    """
    runtimes = allowed_runtimes(place, model)
    return fastest_first(model.path, runtimes, place, speculates=speculates, notice=notice)


def shape(model: Model) -> ModelDimensions:
    """The sizes of ``model``. Raises ``UserError`` where its memory cannot be foreseen."""
    if model.shape is not None:
        return model.shape
    if model.form != "built":
        raise UserError(
            f"what {model.path} takes of memory is not known beforehand; leave --memory-budget out"
        )
    import onnx

    from edgespec.models.onnx_folder import read_manifest

    graph = onnx.load(str(model.path / "model.onnx"), load_external_data=False).graph
    return dimensions_of_built(read_manifest(model.path), graph, model.tokenizer.vocab_size)


def draft_runtime(target: str, draft: Model) -> str:
    """What runs a draft model beside a target on the runtime ``target``: the same, where that can, so that
    no two pools of threads wait for each other's cores."""
    if draft.form != "gguf":
        return choose_runtime("auto", draft)
    if target == "ik-llama-cpp" and not draft.on_ik:
        target = "onnx"
    if target == "onnx" and draft.architecture not in ARCHITECTURES:
        target = "auto"
    return choose_runtime(target, draft)


def plan_memory(
    model: Model,
    draft: Model | None,
    places: Sequence[Placement],
    *,
    context: int | None,
    tables: bool,
    budget: int | None,
) -> Plan:
    """What is run of ``model`` and of its ``draft`` within ``budget`` bytes; ``None``: no limit.

    ``places`` are where it may run, the preferred one first.
    ``tables``: whether the context is searched for drafts. Raises ``UserError`` where nothing fits,
    and where memory cannot be foreseen.
    """
    if budget is not None and any(place.device not in ("auto", "cpu") for place in places):
        raise UserError(
            "--memory-budget plans for the processor's memory; use --device cpu with it"
        )
    allowed = [place.runtime for place in places]
    asked = Asked(
        shape(model),
        allowed,
        capacity(context, model.context),
        draft=shape(draft) if draft else None,
        draft_context=draft.context if draft else 0,
        draft_runtime=lambda target: draft_runtime(target, draft) if draft else target,
        tables=tables,
        built="onnx" not in allowed or all(is_built(m) for m in (model, draft) if m),
    )
    return plan(asked, budget)


def is_built(model: Model) -> bool:
    """Whether the onnx runtime can load ``model`` as it is, or as it was built before."""
    if model.form in ("built", "plain"):
        return True
    return built_folder(model.path, silent).is_dir()


def load(
    model: Model,
    runtime: str,
    *,
    context: int | None,
    threads: int | None,
    device: str,
    provider: str | None,
    exact: bool,
    progress: Progress,
    rows: int = MAX_ROWS,
    cache_type: str | None = None,
) -> Runtime:
    """Load ``model`` on a runtime of ``choose_runtime``; built for it first where that is needed.

    ``rows`` and ``cache_type`` are as ``edgespec.device.memory.RunConfiguration`` has them.
    """
    if runtime == "ik-llama-cpp":
        from edgespec.runtimes.ik_llama_cpp import IkLlamaCppRuntime

        return IkLlamaCppRuntime(
            model.path,
            context=context,
            threads=threads,
            cache_type=cache_type or "float16",
            rows=rows,
        )
    if runtime == "llama-cpp":
        from edgespec.runtimes.llama_cpp import LlamaCppRuntime

        return LlamaCppRuntime(
            model.path,
            context=context,
            threads=threads,
            device=device,
            cache_type=cache_type or "float16",
            rows=rows,
        )
    if model.form == "plain":
        from edgespec.runtimes.onnx_optimum import OptimumRuntime

        return OptimumRuntime(
            model.path,
            context=context,
            threads=threads,
            device=device,
            provider=provider,
            progress=progress,
        )
    from edgespec.runtimes.onnx import OnnxRuntime

    folder = model.path
    if model.form != "built":
        folder = build_onnx(folder, built_folder(folder, progress), progress)
        give_back_memory()
    return OnnxRuntime(
        folder,
        context=context,
        threads=threads,
        device=device,
        provider=provider,
        exact=exact,
        rows=rows,
        progress=progress,
    )


def _gguf(path: Path, tokenizer: Tokenizer | None = None) -> Model:
    file = GGUFFile(path)
    context = file.metadata.get(f"{file.architecture}.context_length", DEFAULT_CONTEXT)
    if not isinstance(context, int):
        context = DEFAULT_CONTEXT  # the runtime will say what is wrong
    tokenizer = tokenizer or Tokenizer.from_gguf(file)
    size = _shape(file, tokenizer)
    on_ik = why_not_on_ik(file) is None
    model = Model(path, "gguf", file.architecture, context, tokenizer, shape=size, on_ik=on_ik)
    del file
    give_back_memory()
    return model


def give_back_memory() -> None:
    """Of lists of a vocabulary's tokens that are gone: glibc keeps tens of MB of them otherwise."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # musl has no such function
            ctypes.CDLL(None).malloc_trim(0)


def _folder(path: Path) -> Model:
    """A safetensors folder, or one that Optimum wrote."""
    from edgespec.runtimes.onnx_optimum import is_optimum_folder, model_context

    if is_optimum_folder(path):
        return Model(path, "plain", "", model_context(path), Tokenizer.from_file(path))
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path} is a folder without bundle.json or config.json; "
            "give a catalogue name, a .gguf file, a bundle or a safetensors folder"
        )
    from edgespec.export.sources import open_source

    source = open_source(path)
    metadata, tokenizer = source.metadata, Tokenizer.from_file(path)
    architecture = str(metadata["general.architecture"])
    context = int(metadata[f"{architecture}.context_length"])
    size = _shape(source, tokenizer)
    return Model(path, "checkpoint", architecture, context, tokenizer, shape=size)


def _shape(source: Source, tokenizer: Tokenizer) -> ModelDimensions | None:
    """``None`` where the metadata does not tell: the runtime will say what is wrong, if anything is."""
    with contextlib.suppress(UserError):
        return dimensions_of(source, tokenizer.vocab_size, repacked_types())
    return None


def _bundled(model: BundledModel, tokenizer: Tokenizer) -> Model:
    if model.format == "gguf":
        return _gguf(model.path, tokenizer)
    from edgespec.models.onnx_folder import read_manifest

    manifest = read_manifest(model.path)
    return Model(
        model.path, "built", str(manifest["architecture"]), int(manifest["context"]), tokenizer
    )


def built_folder(path: Path, progress: Progress) -> Path:
    """Beside what the store downloaded; for the user's own files, in the cache."""
    own = path.resolve().is_relative_to(store.models_dir().resolve())
    parent = path.parent if own else store.cache_dir() / "onnx"
    if path.is_dir():
        hashes = [store.sha256_of(file, progress) for file in checkpoint_files(path)]
        return onnx_folder(path, sha256("".join(hashes).encode()).hexdigest(), parent)
    return onnx_folder(path, store.sha256_of(path, progress), parent)
