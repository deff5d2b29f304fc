"""Converts model files to the formats that runtimes load. Does not depend on the engine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edgespec.errors import UserError
from edgespec.export.source import name_of
from edgespec.models.onnx_folder import BUILDER_VERSION
from edgespec.models.store import locked, reason
from edgespec.progress import Progress, silent


def onnx_folder(source: Path, sha256: str, parent: Path) -> Path:
    """The folder of the ONNX model built from ``source``, named by the file's hash and the builder's version."""
    return parent / f"{name_of(source)[:48]}-{sha256[:16]}-onnx{BUILDER_VERSION}"


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


def _build(path: Path, folder: Path, progress: Progress) -> None:
    from edgespec.export.sources import open_source
    from edgespec.export.to_onnx import write_onnx

    source = open_source(path)
    partial = folder.with_name(f".{folder.name}.partial")  # the lock's holder is the only one here
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write_onnx(source, partial, progress)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
