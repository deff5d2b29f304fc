"""The format of an ONNX folder that ``edgespec.export`` builds and ``edgespec.runtimes.onnx`` loads.

``model.onnx`` is the graph, ``model.onnx.data`` its weights, ``edgespec.json`` the manifest: the
model's name and dimensions, the size of both files, and ``constants``: name, dtype, shape and offset
of every tensor in the weights file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgespec.errors import UserError

MODEL_FILE, WEIGHTS_FILE, MANIFEST_FILE = "model.onnx", "model.onnx.data", "edgespec.json"
BUILDER_VERSION = 6
"""Part of the name of every built folder: raise it when what is built changes."""


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest`` with the sizes of the model's files, which are already in ``folder``."""
    sizes = {name: (folder / name).stat().st_size for name in (MODEL_FILE, WEIGHTS_FILE)}
    text = json.dumps({**manifest, "files": sizes})
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a built model. Raises ``UserError`` where the model is not complete."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text("utf-8"))
        for name in (MODEL_FILE, WEIGHTS_FILE):
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
