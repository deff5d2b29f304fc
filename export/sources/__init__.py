"""Where a model's weights come from. Whatever the format, a source looks like a GGUF file:
GGUF's names of tensors and metadata, and its block formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile, TensorInfo
from edgespec.models.trimmed import TOKEN_IDS

KEPT_LAYERS = "edgespec.kept_layers"
"""Metadata of a source that lost layers: the layer that each of its layers was, ascending."""


class Source(Protocol):
    """A model: metadata under GGUF's keys, tensors under GGUF's names.

    ``tensor`` gives a tensor's stored bytes, uint8 ``[rows, bytes of a row]``, best mapped and not
    read. Types are GGUF's (``F32``, ``BF16``, ``Q4_K`` …) and those that only
    ``edgespec.export.quants.FORMATS`` has.
    """

    @property
    def path(self) -> Path: ...

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def tensor(self, name: str) -> npt.NDArray[np.uint8]: ...


def open_source(path: Path) -> Source:
    """A GGUF file or a safetensors folder. Raises ``UserError`` where it cannot be read."""
    if not path.is_dir():
        from edgespec.export.sources.trimmed import TrimmedGGUF

        file = GGUFFile(path)
        return TrimmedGGUF(file) if TOKEN_IDS in file.metadata else file
    if not (path / "config.json").exists():
        raise UserError(f"{path} has no config.json; name a .gguf file or a safetensors folder")
    from edgespec.export.sources.safetensors import SafetensorsSource

    return SafetensorsSource(path)


def name_of(path: Path) -> str:
    """What to call a model: its file's name without .gguf, or its folder's."""
    return path.stem if path.suffix == ".gguf" else path.resolve().name
