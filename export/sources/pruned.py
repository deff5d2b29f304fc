"""Drafts that are some layers of a larger model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.export.architectures import read_config
from edgespec.export.source import KEPT_LAYERS, Source
from edgespec.models.gguf import TensorInfo

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


class KeptLayers:
    """``source`` with only the given layers, counted from 0, ascending.

    Its metadata lists their numbers in the whole model under ``KEPT_LAYERS``. Raises
    ``UserError`` where the list is empty, not ascending or names a layer that is not there.
    """

    def __init__(self, source: Source, layers: Sequence[int]) -> None:
        config = read_config(source.metadata)
        kept = list(layers)
        if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= config.layers:
            raise UserError(
                f"cannot keep the layers {str(kept)[:64]} of {source.path.name}: give some of its "
                f"{config.layers} layers, 0 to {config.layers - 1}, each once and in ascending order"
            )
        self._source = source
        self.path = source.path
        before = source.metadata.get(KEPT_LAYERS, range(config.layers))
        self.metadata: Mapping[str, Any] = {
            **source.metadata,
            f"{source.metadata['general.architecture']}.block_count": len(kept),
            KEPT_LAYERS: [before[layer] for layer in kept],
        }
        self._names: dict[str, str] = {}
        for name in source.tensors:
            if (match := _LAYER.fullmatch(name)) is None:
                self._names[name] = name
            elif (layer := int(match[1])) in kept:
                self._names[f"blk.{kept.index(layer)}.{match[2]}"] = name
        self.tensors: Mapping[str, TensorInfo] = {
            new: replace(source.tensors[old], name=new) for new, old in self._names.items()
        }

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        return self._source.tensor(self._names[name])


def parse_layers(text: str) -> int | list[int]:
    """``--keep-layers``: how many (``20``), or which (``0,1,5``). Raises ``UserError`` for others."""
    if not re.fullmatch(r"\s*\d{1,6}\s*(,\s*\d{1,6}\s*)*", text):
        raise UserError(
            f"--keep-layers {text[:64]!r} is neither a number of layers nor a list like 0,1,5"
        )
    layers = [int(part) for part in text.split(",")]
    return layers[0] if len(layers) == 1 else layers
