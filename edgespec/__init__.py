"""edgespec: large language models on laptops and phones, faster by speculative decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgespec.config import EngineConfig
    from edgespec.core.sampling import Sampling
    from edgespec.engine import Completion, Engine
    from edgespec.errors import EngineBusy, EngineClosed, UserError
    from edgespec.loading import open_runtime
    from edgespec.session import Session

_PUBLIC = {
    "Completion": "edgespec.engine",
    "Engine": "edgespec.engine",
    "EngineBusy": "edgespec.errors",
    "EngineClosed": "edgespec.errors",
    "EngineConfig": "edgespec.config",
    "Sampling": "edgespec.core.sampling",
    "Session": "edgespec.session",
    "UserError": "edgespec.errors",
    "open_runtime": "edgespec.loading",
}

__all__ = [
    "Completion",
    "Engine",
    "EngineBusy",
    "EngineClosed",
    "EngineConfig",
    "Sampling",
    "Session",
    "UserError",
    "open_runtime",
]


def __getattr__(name: str) -> Any:  # names are imported when used, so that importing stays quick
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
