"""The configuration that the engine, the planner, `tune` and the bench share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class EngineConfig:
    """How to open a model. Everything but ``model`` may stay open."""

    model: str
    """A name in the catalogue (pulled if absent), a ``.gguf`` file, or a folder with a bundle, with
    safetensors or with what Optimum exported."""
    runtime: str = "auto"
    """auto (the fastest one by the profiles) or a runtime's name; see ``edgespec.runtimes``."""
    device: str = "auto"
    """auto, cpu, gpu[:N] or npu."""
    provider: str | None = None
    """An execution provider of ONNX Runtime, in place of the best one for ``device``."""
    draft: str = "auto"
    """auto (hierarchy, and the draft model of a bundle), one of ``MODEL_FREE``, or a smaller model, named as
    ``model`` is, that drafts beside hierarchy. It runs where the target does, where that can run it."""
    exact: bool | None = None
    """Make greedy tokens independent, bit for bit, of what was drafted. ``None``: where the runtime
    can, and the runtime is chosen by speed alone; ``True``: on no other runtime."""
    context: int | None = None
    """The most tokens of prompt and answer; ``None``: the model's, at most 4096."""
    threads: int | None = None
    """``None``: the count of the fastest profile, else one per physical core."""
    memory_budget: int | None = None
    """The most bytes of resident memory: runtime (where it is auto), context, cache, draft model and
    pass sizes are chosen to fit. ``None``: no limit."""
    remember: bool = True
    """Read the n-gram cache of earlier answers, and add this engine's answers to it."""


class Options(TypedDict, total=False):
    """The fields of ``EngineConfig`` but ``model``, as keyword arguments."""

    runtime: str
    device: str
    provider: str | None
    draft: str
    exact: bool | None
    context: int | None
    threads: int | None
    memory_budget: int | None
    remember: bool


def configure(model: str | Path | EngineConfig, **options: Unpack[Options]) -> EngineConfig:
    """``model`` with ``options``; a configuration is taken as it is.

    Raises ``TypeError`` for an option that there is not, and for options beside a configuration.
    """
    if isinstance(model, EngineConfig):
        if options:
            raise TypeError(f"{', '.join(options)}: put the options into the EngineConfig")
        return model
    if unknown := set(options) - {field.name for field in fields(EngineConfig)}:
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}")
    return EngineConfig(str(model), **options)
