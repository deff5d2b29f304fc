"""The sources of a model's weights: files, and other sources with something changed."""

from __future__ import annotations

from pathlib import Path

from edgespec.errors import UserError
from edgespec.export.source import Source
from edgespec.export.sources.safetensors import SafetensorsSource
from edgespec.export.sources.trimmed import TrimmedGGUF
from edgespec.export.sources.widened import widened
from edgespec.models.gguf import GGUFFile
from edgespec.models.gguf_kinds import refuse_no_model
from edgespec.models.trimmed import TOKEN_IDS


def open_source(path: Path) -> Source:
    """A GGUF file or a safetensors folder. Raises ``UserError`` where it cannot be read."""
    if not path.is_dir():
        file = GGUFFile(path)
        refuse_no_model(path, file.metadata, len(file.tensors))
        return widened(TrimmedGGUF(file) if TOKEN_IDS in file.metadata else file)
    if not (path / "config.json").exists():
        raise UserError(f"{path} has no config.json; name a .gguf file or a safetensors folder")
    return SafetensorsSource(path)
