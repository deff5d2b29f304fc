"""Converts model files to the formats that runtimes load. Does not depend on the engine."""

from __future__ import annotations

import glob
import os
import re
import shutil
from pathlib import Path

from edgespec.errors import UserError
from edgespec.export.source import name_of
from edgespec.kernels import LAYOUT_VERSION, PackedFileError, open_packed
from edgespec.models.onnx_folder import (
    BUILDER_VERSION,
    KERNELS_VERSION,
    PACKED_FILE,
    read_manifest,
)
from edgespec.models.store import locked, reason
from edgespec.progress import Progress, silent


def onnx_folder(source: Path, sha256: str, parent: Path, *, packed: bool) -> Path:
    """The folder of the ONNX model built from ``source``, named by the file's hash and the version of its form."""
    form = f"kernels{KERNELS_VERSION}.{LAYOUT_VERSION}" if packed else f"onnx{BUILDER_VERSION}"
    return parent / f"{name_of(source)[:48]}-{sha256[:16]}-{form}"


def built_folders(source: Path, sha256: str, parent: Path) -> list[Path]:
    """All that was built from ``source`` in ``parent``, by this and by other versions."""
    found = parent.glob(f"{glob.escape(name_of(source)[:48])}-{sha256[:16]}-*")
    return sorted(path for path in found if path.is_dir())


def build_onnx(
    source: Path, folder: Path, progress: Progress = silent, *, packed: bool = False
) -> Path:
    """Build ``folder`` from a GGUF file or a safetensors folder, unless it is there and whole.

    ``packed``: see ``write_onnx``. What an earlier version built in its place is deleted. It is built under a temporary name beside it and renamed when whole; a
    second process waits for the first. Raises ``UserError`` where the file cannot be built or does not fit
    on the disk.
    """
    if is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock"), f"build {folder.name}", progress):
            if not is_whole(folder):  # by another process, while this one waited
                shutil.rmtree(folder, ignore_errors=True)
                for old in _earlier(folder):
                    shutil.rmtree(old, ignore_errors=True)
                _build(source, folder, progress, packed)
    except OSError as error:
        raise UserError(f"cannot build {folder}: {reason(error)}") from error
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a model was built in ``folder``, and its files are what they were then."""
    if not folder.is_dir():
        return False
    try:
        manifest = read_manifest(folder)
        if (key := manifest.get("packed")) is not None:
            open_packed(folder / PACKED_FILE, key)
    except (UserError, PackedFileError):
        return False
    return True


def _earlier(folder: Path) -> list[Path]:
    """The same model in the same form, built by other versions."""
    if not (name := re.fullmatch(r"(.+-[0-9a-f]{16}-[a-z]+)[0-9.]+", folder.name)):
        return []
    found = folder.parent.glob(f"{glob.escape(name[1])}[0-9]*")
    return [path for path in found if path.is_dir() and path != folder]


def _build(path: Path, folder: Path, progress: Progress, packed: bool) -> None:
    from edgespec.export.sources import open_source
    from edgespec.export.to_onnx import write_onnx

    source = open_source(path)
    partial = folder.with_name(f".{folder.name}.partial")  # the lock's holder is the only one here
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        write_onnx(source, partial, progress, packed=packed)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
