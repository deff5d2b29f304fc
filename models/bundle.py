"""Bundles: a folder that holds a target, its drafts, their tokenizer and the hashes of all files.

``bundle.json`` lists what is in it; ``bundle.schema.json``, beside this file, is its JSON Schema, and
``docs/reference/bundles.md`` describes the format for readers in other languages. A bundle may come from
anywhere: everything in it is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edgespec.errors import UserError
from edgespec.models.store import sha256_of
from edgespec.progress import Progress, silent

MANIFEST = "bundle.json"
VERSION = 1
_MAX_MANIFEST = 16 << 20
_MAX_FILES = 10_000
_LARGE = 1 << 24
"""Bytes: the hashing of larger files reports progress."""
_PATH = r"\A(?!.*(?:^|/)\.{1,2}(?:/|$))[^/\\:\x00-\x1f]+(?:/[^/\\:\x00-\x1f]+)*\Z"
"""A relative path that stays inside the bundle on every operating system."""
RelativePath = Annotated[str, msgspec.Meta(pattern=_PATH)]


class _File(msgspec.Struct):
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class _Model(msgspec.Struct):
    name: str
    format: Literal["onnx", "gguf"]
    path: RelativePath


class _Sampling(msgspec.Struct, omit_defaults=True):
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class _Manifest(msgspec.Struct):
    """The keys of ``bundle.json`` that are read; ``bundle.schema.json`` describes all keys."""

    name: str
    target: _Model | None
    drafts: list[_Model]
    tokenizer: RelativePath
    sampling: _Sampling
    files: Annotated[dict[RelativePath, _File], msgspec.Meta(max_length=_MAX_FILES)]


SAMPLING = _Sampling.__struct_fields__


@dataclass(frozen=True)
class BundledModel:
    """A model of a bundle. ``path`` is a built folder (``onnx``) or a file (``gguf``)."""

    name: str
    format: str
    path: Path
    entry: Mapping[str, Any]
    """Its whole entry in ``bundle.json``."""


@dataclass(frozen=True)
class Bundle:
    """A bundle with all its files present and unchanged."""

    folder: Path
    name: str
    target: BundledModel | None
    drafts: tuple[BundledModel, ...]
    tokenizer: Path
    """A folder in Hugging Face's format."""
    sampling: Mapping[str, float]
    """Fields of ``Sampling`` that the model's authors recommend."""
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
    raw = _read(folder)
    try:
        manifest = msgspec.convert(raw, _Manifest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _unusable(folder, f"an entry is missing or malformed ({error})") from error
    files = {name: (file.bytes, file.sha256) for name, file in manifest.files.items()}
    bundle = Bundle(
        folder,
        manifest.name,
        None if manifest.target is None else _model(folder, manifest.target, raw["target"]),
        tuple(map(_model, repeat(folder), manifest.drafts, raw["drafts"])),
        folder / manifest.tokenizer,
        msgspec.to_builtins(manifest.sampling),
        files,
    )
    for part in (*bundle.drafts, *filter(None, [bundle.target])):
        relative = part.path.relative_to(folder).as_posix()
        if not any(name == relative or name.startswith(relative + "/") for name in files):
            raise _unusable(folder, f"{relative} is none of its files")
    for name, (size, sha256) in files.items():
        _verify(folder, name, size, sha256, progress)
    return bundle


def _read(folder: Path) -> dict[str, Any]:
    """The object in ``bundle.json``, of this version."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError(f"it is larger than {_MAX_MANIFEST >> 20} MiB")
        manifest = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(folder, str(error)) from error
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{folder} is a bundle of version {str(manifest.get('version'))[:20]}, and this edgespec "
            f"reads version {VERSION}; upgrade edgespec or export it again"
        )
    return manifest


def _model(folder: Path, model: _Model, entry: Mapping[str, Any]) -> BundledModel:
    return BundledModel(model.name, model.format, folder / model.path, entry)


def _verify(folder: Path, name: str, size: int, sha256: str, progress: Progress) -> None:
    path = folder / name
    if not path.is_file():
        raise UserError(f"the bundle {folder} lacks {name}; copy it again or export it again")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise _unusable(folder, f"{name} lies outside of it")
    report = progress if size > _LARGE else silent
    if path.stat().st_size != size or sha256_of(path, report) != sha256:
        raise UserError(
            f"{name} in the bundle {folder} is not what was exported; copy it again or export it again"
        )


def _unusable(folder: Path, why: str) -> UserError:
    return UserError(f"{folder / MANIFEST} is not usable: {why[:200]}; export the bundle again")
