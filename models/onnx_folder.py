"""The folder that ``edgespec.export`` builds and the onnx runtime loads: what both must agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgespec.errors import UserError

BUILDER_VERSION = 6
"""Part of the key of every built model: raise it when what is built changes."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """``edgespec.json`` of a built model. Raises ``UserError`` where the model is not whole."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "edgespec.json").read_text("utf-8"))
        for name in ("model.onnx", "model.onnx.data"):
            if (folder / name).stat().st_size != manifest["files"][name]:
                raise ValueError(f"{name} does not have {manifest['files'][name]} bytes")
        for key in ("vocab_size", "layers", "context", "weight_bytes"):
            if not isinstance(manifest[key], int) or manifest[key] < 1:
                raise ValueError(f"its {key} is {manifest[key]!r}")
        for key in ("name", "architecture", "window", "constants", "token_ids"):
            manifest[key]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{folder} is not a complete model ({error}); delete it and it will be built again"
        ) from error
    return manifest
