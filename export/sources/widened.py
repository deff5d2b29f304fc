"""A source's norms and biases as float32: some converters write them in 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.export.quants import dequantize
from edgespec.export.source import Source
from edgespec.models.gguf import TensorInfo

_NARROW = ("F16", "BF16")


def widened(source: Source) -> Source:
    """``source`` itself where it has no vector in 16 bits, else with all of them as float32, exactly."""
    return WidenedVectors(source) if any(map(_is_narrow, source.tensors.values())) else source


class WidenedVectors:
    """See ``widened``."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.path: Path = source.path
        self.metadata: Mapping[str, Any] = source.metadata
        self.tensors: Mapping[str, TensorInfo] = {
            name: replace(info, type="F32", row_bytes=4 * info.shape[-1])
            if _is_narrow(info)
            else info
            for name, info in source.tensors.items()
        }

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        raw, info = self._source.tensor(name), self._source.tensors[name]
        return dequantize(raw, info.type).view(np.uint8) if _is_narrow(info) else raw


def _is_narrow(info: TensorInfo) -> bool:
    return len(info.shape) == 1 and info.type in _NARROW
