"""The format of an ONNX folder that ``edgespec.export`` builds and ``edgespec.runtimes.onnx`` loads.

``model.onnx`` is the graph, ``model.onnx.data`` its constants, ``model.packed`` its matrices where it has
the kernels' operators, ``edgespec.json`` the manifest: the
model's name and dimensions, the size of both files, and where each tensor lies in the weights file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec

from edgespec.errors import UserError

MODEL_FILE, WEIGHTS_FILE, MANIFEST_FILE = "model.onnx", "model.onnx.data", "edgespec.json"
PACKED_FILE = "model.packed"
"""Matrices as ``edgespec.kernels`` multiplies them: only in folders whose manifest has a ``packed`` key."""
BUILDER_VERSION = 7
KERNELS_VERSION = 2
"""Part of the name of every built folder, without and with the kernels: raise it when what is built changes."""


_MAX_MANIFEST = 16 << 20
"""Bytes: a manifest may come from anywhere. ``token_ids`` of 262,144 tokens takes 2 MiB."""

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Required(TypedDict):
    name: str
    architecture: str
    vocab_size: Positive
    """Columns of the logits: fewer than the vocabulary's tokens where the head was trimmed."""
    token_ids: list[Count] | None
    """The token of each column, ascending; ``None``: every token, in order."""
    layers: Positive
    context: Positive
    window: Count
    """Tokens that local layers attend to; 0 where every layer is global."""
    weight_bytes: Positive
    files: dict[str, Count]
    constants: list[tuple[str, str, list[Count], Count]]
    """Name, dtype, shape and offset of every tensor in the weights file."""


class Manifest(_Required, total=False):
    """``edgespec.json``. Sizes are in bytes."""

    packed: str
    """The key of the file of packed matrices, in hexadecimal digits; absent where there is none."""


def _files(packed: bool) -> list[str]:
    return [MODEL_FILE, WEIGHTS_FILE] + [PACKED_FILE] * packed


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest`` with the sizes of the model's files, which are already in ``folder``."""
    names = _files("packed" in manifest)
    sizes = {name: (folder / name).stat().st_size for name in names}
    text = json.dumps({**manifest, "files": sizes})
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a built model. Raises ``UserError`` where the model is not complete."""
    path = folder / MANIFEST_FILE
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError(f"{MANIFEST_FILE} is larger than {_MAX_MANIFEST >> 20} MiB")
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        for name in _files("packed" in manifest):
            if (folder / name).stat().st_size != manifest["files"].get(name):
                raise ValueError(f"{name} does not have {manifest['files'].get(name)} bytes")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder} is not a complete model ({error}); delete it and it will be built again"
        ) from error
    return manifest
