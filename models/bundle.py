"""Bundles: a folder that holds a target, its drafts, their tokenizer and proof that they are whole.

``bundle.json`` says what is in it; ``bundle.schema.json``, beside this file, is its JSON Schema, and
``docs/reference/bundles.md`` describes the format for readers in other languages. A bundle may come from
anywhere: nothing in it is believed before it was checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgespec.errors import UserError
from edgespec.models.store import sha256_of
from edgespec.progress import Progress, silent

MANIFEST = "bundle.json"
VERSION = 1
_MAX_MANIFEST = 16 << 20
_MAX_FILES = 10_000
_LARGE = 1 << 24
"""Bytes of a file whose hashing is worth a word."""
_PATH = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[^/\\:\x00-\x1f]+(?:/[^/\\:\x00-\x1f]+)*")
SAMPLING: dict[str, Callable[[Any], float]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
}


@dataclass(frozen=True)
class BundledModel:
    """A model of a bundle. ``path`` is a built folder (``onnx``) or a file (``gguf``)."""

    name: str
    format: str
    path: Path
    entry: Mapping[str, Any]
    """All that ``bundle.json`` says of it."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are all there and unchanged."""

    folder: Path
    name: str
    target: BundledModel | None
    drafts: tuple[BundledModel, ...]
    tokenizer: Path
    """A folder in Hugging Face's format."""
    sampling: Mapping[str, float]
    """Fields of ``Sampling`` that the model's makers recommend."""
    files: Mapping[str, tuple[int, str]]
    """Bytes and SHA-256 of every file, by its path."""


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def read_bundle(folder: Path, progress: Progress = silent) -> Bundle:
    """Read and verify a bundle.

    Every file is compared with its size and SHA-256 (remembered until a file's size or time
    changes). Raises ``UserError`` naming the first file that is missing, changed or not listed in
    a way that can be followed.
    """
    manifest = _manifest(folder)
    try:
        entry, sampling = manifest["target"], manifest["sampling"]
        files = {
            _path(name): (int(stated["bytes"]), str(stated["sha256"]))
            for name, stated in manifest["files"].items()
        }
        bundle = Bundle(
            folder,
            str(manifest["name"]),
            None if entry is None else _model(folder, entry),
            tuple(_model(folder, draft) for draft in manifest["drafts"]),
            folder / _path(manifest["tokenizer"]),
            {key: kind(sampling[key]) for key, kind in SAMPLING.items() if key in sampling},
            files,
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _unusable(folder, f"an entry is missing or malformed ({error})") from error
    if len(files) > _MAX_FILES:
        raise _unusable(folder, f"it lists {len(files)} files")
    for part in (*bundle.drafts, *filter(None, [bundle.target])):
        relative = part.path.relative_to(folder).as_posix()
        if not any(name == relative or name.startswith(relative + "/") for name in files):
            raise _unusable(folder, f"{relative} is none of its files")
    for name, (size, sha256) in files.items():
        _verify(folder, name, size, sha256, progress)
    return bundle


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError(f"it is larger than {_MAX_MANIFEST >> 20} MiB")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(folder, str(error)) from error
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{folder} is a bundle of version {str(manifest.get('version'))[:20]}, and this edgespec "
            f"reads version {VERSION}; upgrade edgespec or export it again"
        )
    return manifest


def _model(folder: Path, entry: Mapping[str, Any]) -> BundledModel:
    if entry["format"] not in ("onnx", "gguf"):
        raise ValueError(f"format {str(entry['format'])[:20]!r}")
    return BundledModel(str(entry["name"]), entry["format"], folder / _path(entry["path"]), entry)


def _path(name: Any) -> str:
    """A relative path that stays inside the bundle on every operating system."""
    if not isinstance(name, str) or not _PATH.fullmatch(name):
        raise ValueError(f"path {str(name)[:64]!r}")
    return name


def _verify(folder: Path, name: str, size: int, sha256: str, progress: Progress) -> None:
    path = folder / name
    if not path.is_file():
        raise UserError(f"the bundle {folder} lacks {name}; copy it again or export it again")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise _unusable(folder, f"{name} lies outside of it")
    heard = progress if size > _LARGE else silent
    if path.stat().st_size != size or sha256_of(path, heard) != sha256:
        raise UserError(
            f"{name} in the bundle {folder} is not what was exported; copy it again or export it again"
        )


def _unusable(folder: Path, why: str) -> UserError:
    return UserError(f"{folder / MANIFEST} is not usable: {why[:200]}; export the bundle again")
