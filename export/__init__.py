"""Turns model files into what a runtime loads. Knows nothing of the engine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.models.store import locked, reason
from edgespec.progress import Progress, silent

BUILDER_VERSION = 3
"""Part of the key of every built model: raise it when what is built changes."""
_DISK_MARGIN = 64 << 20


def onnx_folder(source: Path, sha256: str, parent: Path) -> Path:
    """Where the ONNX model built from ``source`` is kept: named by the file's hash and the builder."""
    return parent / f"{source.stem[:48]}-{sha256[:16]}-onnx{BUILDER_VERSION}"


def build_onnx(source: Path, folder: Path, progress: Progress = silent) -> Path:
    """Build ``folder`` from a GGUF file, unless it is there.

    It is built under a temporary name beside it and renamed when whole; a second process waits for
    the first. Raises ``UserError`` where the file cannot be built or does not fit on the disk.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock"), f"build {folder.name}", progress):
            if not folder.is_dir():  # by another process, while this one waited
                _build(source, folder, progress)
    except OSError as error:
        raise UserError(f"cannot build {folder}: {reason(error)}") from error
    return folder


def _build(source: Path, folder: Path, progress: Progress) -> None:
    from edgespec.export.architectures import read_config
    from edgespec.export.decoder import Decoder
    from edgespec.export.graph import MODEL_FILE, WEIGHTS_FILE, Graph

    gguf = GGUFFile(source)
    config = read_config(gguf.metadata)
    partial = folder.with_name(f".{folder.name}.partial")  # the lock's holder is the only one here
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with Graph(partial) as graph:
            decoder = Decoder(gguf, config, graph, progress)
            need, free = decoder.estimated_bytes() + _DISK_MARGIN, shutil.disk_usage(partial).free
            if need > free:
                raise UserError(
                    f"building {source.name} needs {need >> 20} MiB in {folder.parent} and "
                    f"{free >> 20} MiB are free; make room or move it with EDGESPEC_HOME"
                )
            decoder.build()
            graph.save(config.architecture)
        manifest = {
            "name": source.stem,
            "architecture": config.architecture,
            "vocab_size": decoder.vocab_size,
            "layers": config.layers,
            "context": config.context,
            "window": config.window,
            "weight_bytes": decoder.weight_bytes,
            "files": {n: (partial / n).stat().st_size for n in (MODEL_FILE, WEIGHTS_FILE)},
            "constants": graph.external,
        }
        (partial / "edgespec.json").write_text(json.dumps(manifest), encoding="utf-8")
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
