"""A model as the exporter reads it. Whatever its format, a source looks like a GGUF file: GGUF's names of
tensors and metadata, and its block formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.models.gguf import TensorInfo

KEPT_LAYERS = "edgespec.kept_layers"
"""Metadata of a source that lost layers: the layer that each of its layers was, ascending."""
WINDOW = "edgespec.sliding_window"
"""Metadata of a source where every layer has this sliding window (Mistral, Phi-3)."""


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


def name_of(path: Path) -> str:
    """The name of a model: its file's name without .gguf, or its folder's."""
    name = path.stem if path.suffix == ".gguf" else path.resolve().name
    # Not every path is UTF-8.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
