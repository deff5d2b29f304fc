"""Folders that Optimum's exporter writes: a plain graph with a ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgespec.core.runtime import DEFAULT_CONTEXT
from edgespec.errors import UserError

_REMEDY = "export it again"
_CONFIG_BYTES = 1 << 20
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
_MAX_CONTEXT = 1 << 24


def is_optimum_folder(path: Path) -> bool:
    """Whether a folder holds what Optimum's exporter writes: a graph with a ``config.json``."""
    own = path / "edgespec.json"
    return (path / "model.onnx").is_file() and (path / "config.json").is_file() and not own.exists()


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``. Raises ``UserError``."""
    path = folder / "config.json"
    try:
        with path.open("rb") as file:
            text = file.read(_CONFIG_BYTES + 1)
        if len(text) > _CONFIG_BYTES:
            raise ValueError(f"it has more than {_CONFIG_BYTES} bytes")
        config: dict[str, Any] = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}; {_REMEDY}") from error
    return config


def model_context(folder: Path) -> int:
    """The positions that the model was made for; those without embeddings of them may not say."""
    config = read_config(folder)
    for key in _CONTEXT_KEYS:
        if key in config:
            context = config[key]
            if not isinstance(context, int) or not 0 < context <= _MAX_CONTEXT:
                raise UserError(
                    f"{folder / 'config.json'} says {key} = {str(context)[:64]!r}; {_REMEDY}"
                )
            return context
    return DEFAULT_CONTEXT
