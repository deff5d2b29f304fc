"""Decides where a model runs, plans its memory and loads it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgespec.config import EngineConfig
from edgespec.core.runtime import Runtime, capacity
from edgespec.core.runtime_spec import LoadOptions, ModelDimensions, RuntimeSpec
from edgespec.device.placement import Placement, fastest_first
from edgespec.device.planning import Asked, Plan, plan
from edgespec.errors import UserError
from edgespec.export import build_onnx, built_folders, onnx_folder
from edgespec.export.architectures import ARCHITECTURES
from edgespec.export.dimensions import built_dimensions
from edgespec.forking import check_not_forked
from edgespec.local_model import LocalModel, find, give_back_memory
from edgespec.models import store
from edgespec.models.gguf_kinds import shard_paths
from edgespec.models.safetensors import checkpoint_files
from edgespec.progress import Progress, silent
from edgespec.runtimes import get, specs


def takes(spec: RuntimeSpec, model: LocalModel) -> bool:
    """Whether ``spec`` takes the model's form, as it is or once it was built."""
    return model.form in spec.forms or (
        "built" in spec.forms and model.form in ("gguf", "checkpoint")
    )


def runs(spec: RuntimeSpec, model: LocalModel) -> bool:
    """Whether ``spec`` is installed and can be expected to run ``model``."""
    known = model.form in spec.forms or model.architecture in ARCHITECTURES
    return takes(spec, model) and known and not _refused(spec, model) and not spec.why_not_here()


def _refused(spec: RuntimeSpec, model: LocalModel) -> str | None:
    return model.refusals.get(spec.name)


def candidates(model: LocalModel) -> list[RuntimeSpec]:
    """The runtimes that ``auto`` may take for ``model``, the preferred one first.

    Where none runs it, one that takes its form: it will say what is missing. Raises ``UserError``
    where there is no such runtime either.
    """
    found = [spec for spec in specs().values() if runs(spec, model)]
    found = found or [spec for spec in specs().values() if takes(spec, model)][:1]
    if not found:
        raise UserError(f"no runtime here runs {model.path}; export the model with --format gguf")
    return found


def choose_runtime(runtime: str, model: LocalModel) -> RuntimeSpec:
    """The runtime of this name, for ``auto`` the preferred one.

    Raises ``UserError`` where it does not exist or does not take what the model is.
    """
    if runtime == "auto":
        return candidates(model)[0]
    spec = get(runtime)
    if takes(spec, model):
        return spec
    if model.form == "checkpoint":
        raise UserError(
            f"{spec.title} runs GGUF files; make one with `edgespec export {model.path} OUT --format gguf`"
        )
    raise UserError(f"{model.path} is not for {spec.title}; export the model with --format gguf")


def allowed_places(config: EngineConfig, model: LocalModel) -> list[Placement]:
    """Where ``model`` may run as ``config`` asks, a place for each runtime, the preferred one first.

    Raises ``UserError`` where it asks for what none of them can do.
    """
    found = (
        candidates(model) if config.runtime == "auto" else [choose_runtime(config.runtime, model)]
    )
    kind = config.device.partition(":")[0]
    if kind not in ("auto", "cpu"):
        driving = [spec for spec in found if kind in spec.devices]
        if kind not in ("gpu", "npu"):
            raise UserError(
                f"there is no device {config.device!r}; take auto, cpu, gpu, gpu:N or npu"
            )
        if not driving:
            raise UserError(
                f"{found[0].name} runs on {' and '.join(found[0].devices)} alone; "
                f"use --device {found[0].devices[0]} with it"
            )
        found = driving
    if config.exact:
        found = _those(found, "exact", "is exact", "leave --exact out")
    if config.provider is not None:
        found = _those(
            found, "providers", "chooses among ONNX Runtime's providers", "leave --provider out"
        )
    return [
        Placement(spec, config.device, config.provider, config.exact, config.threads)
        for spec in found
    ]


def _those(found: list[RuntimeSpec], trait: str, words: str, remedy: str) -> list[RuntimeSpec]:
    """Those of ``found`` with ``trait``. Raises ``UserError`` where there is none."""
    able = [spec for spec in found if getattr(spec, trait)]
    if not able:
        names = [spec.name for spec in specs().values() if getattr(spec, trait)]
        raise UserError(
            f"only the {' and '.join(names)} runtime {words}; "
            f"use --runtime {' or '.join(names)}, or {remedy}"
        )
    return able


def find_places(
    config: EngineConfig, model: LocalModel, *, notice: Callable[[str], None] = lambda line: None
) -> list[Placement]:
    """Where ``model`` may run as ``config`` asks, the fastest first, by the profiles.

    Raises ``UserError`` where it cannot run so.
    """
    places = allowed_places(config, model)
    return fastest_first(model.path, places, speculates=config.draft != "none", notice=notice)


def dimensions(model: LocalModel) -> ModelDimensions:
    """The sizes of ``model``. Raises ``UserError`` where its memory cannot be predicted."""
    if model.dimensions is not None:
        return model.dimensions
    if model.unpredictable:
        raise UserError(model.unpredictable)
    if model.form != "built":
        raise UserError(
            f"the memory that {model.path} takes cannot be predicted; leave --memory-budget out"
        )
    return built_dimensions(model.path, model.tokenizer.vocab_size)


def draft_runtime(target: RuntimeSpec, draft: LocalModel) -> RuntimeSpec:
    """What runs a draft model beside a target on ``target``: the same runtime where that can, so that no
    two pools of threads wait for each other's cores."""
    return target if runs(target, draft) else choose_runtime("auto", draft)


def plan_memory(
    model: LocalModel,
    draft: LocalModel | None,
    places: Sequence[Placement],
    *,
    context: int | None,
    tables: bool,
    budget: int | None,
) -> Plan:
    """What is run of ``model`` and of its ``draft`` within ``budget`` bytes; ``None``: no limit.

    ``places`` are where it may run, the preferred one first.
    ``tables``: whether the context is searched for drafts. Raises ``UserError`` where nothing fits,
    and where memory cannot be predicted.
    """
    if budget is not None and any(place.device not in ("auto", "cpu") for place in places):
        raise UserError(
            "--memory-budget plans for the processor's memory; use --device cpu with it"
        )
    asked = Asked(
        dimensions(model),
        [place.runtime for place in places],
        capacity(context, model.context),
        draft=dimensions(draft) if draft else None,
        draft_context=draft.context if draft else 0,
        draft_runtime=lambda target: draft_runtime(target, draft) if draft else target,
        tables=tables,
        built=all(
            is_built(m, place)
            for place in places
            if "built" in place.runtime.forms
            for m in (model, draft)
            if m
        ),
    )
    return plan(asked, budget)


def is_built(model: LocalModel, place: Placement) -> bool:
    """Whether a runtime that takes built models can load ``model`` there as it is, or as it was built before."""
    packed = place.runtime.packs(place.device, place.provider)
    return (
        model.form in ("built", "plain") or built_folder(model.path, silent, packed=packed).is_dir()
    )


def load(model: LocalModel, spec: RuntimeSpec, options: LoadOptions) -> Runtime:
    """Load ``model`` on ``spec``; it is built for it first where that is needed.

    Raises ``UserError``, and ``EngineClosed`` in a process that was forked after another model was loaded.
    """
    check_not_forked()
    if reason := _refused(spec, model):
        others = [other.name for other in specs().values() if runs(other, model)]
        raise UserError(f"{model.path} {reason}; use --runtime {' or '.join(others) or 'auto'}")
    if model.form in spec.forms:
        return spec.load(model.path, model.form, options)
    packed = spec.packs(options.device, options.provider)
    folder = built_folder(model.path, options.progress, packed=packed)
    build_onnx(model.path, folder, options.progress, packed=packed)
    give_back_memory()
    return spec.load(folder, "built", options)


def open_runtime(
    model: str | Path, runtime: str = "auto", *, progress: Progress = silent, **options: Any
) -> Runtime:
    """Load one model on one runtime, without an engine: for tests and tools.

    ``model`` is named as for ``Engine.open``; ``options`` are the fields of ``LoadOptions``.
    Raises ``UserError`` where it cannot be loaded; close the runtime when done.
    """
    found = find(str(model), progress)
    spec = choose_runtime(runtime, found)
    return load(found, spec, LoadOptions(progress=progress, **options))


def built_folder(path: Path, progress: Progress, *, packed: bool) -> Path:
    """Beside what the store downloaded; for the user's own files, in the cache. ``packed``: for the kernels."""
    return onnx_folder(path, *_built_from(path, progress), packed=packed)


def copies(path: Path, progress: Progress = silent) -> list[Path]:
    """The folders that were built from the model ``path``, by this and by other versions."""
    return built_folders(path, *_built_from(path, progress))


def _built_from(path: Path, progress: Progress) -> tuple[str, Path]:
    """The SHA-256 of a model's files, and the folder of what is built from them."""
    own = path.resolve().is_relative_to(store.models_dir().resolve())
    parent = path.parent if own else store.cache_dir() / "onnx"
    files = checkpoint_files(path) if path.is_dir() else shard_paths(path)
    hashes = [store.sha256_of(file, progress) for file in files]
    if path.is_file() and len(hashes) == 1:
        return hashes[0], parent
    return hashlib.sha256("".join(hashes).encode()).hexdigest(), parent
