"""Writes bundles; ``edgespec.models.bundle`` reads them and describes them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgespec.errors import UserError
from edgespec.models.bundle import MANIFEST, SAMPLING, VERSION, Bundle, BundledModel
from edgespec.models.gguf import GGUFFile
from edgespec.models.store import sha256_of
from edgespec.progress import Progress, silent


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` when all went well and is gone otherwise.

    Raises ``UserError`` where ``out`` exists, before anything is done, or cannot be written.
    """
    try:
        if os.path.lexists(out):
            raise UserError(f"{out} exists; name another folder or remove it first")
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(out) as partial:
            yield partial
            os.rename(partial, out)
    except OSError as error:
        why = f"{error.strerror or error}; free some space there, or name another folder"
        raise UserError(f"cannot write {error.filename or out}: {why}") from error


@contextlib.contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that is gone in the end, unless it was moved.

    Its name is chosen before it is created (``tempfile`` returns it afterwards), so that a Ctrl-C in
    between leaves nothing.
    """
    folder = out.parent / f".{out.name}.{secrets.token_hex(8)}"
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def add_model(
    folder: Path, bundle: Bundle, model: BundledModel, progress: Progress = silent
) -> dict[str, Any]:
    """Copy ``model``'s files from another bundle into ``folder``; returns its entry."""
    path = Path("drafts") / model.name
    if (folder / path).exists():
        raise UserError(f"two drafts are named {model.name}; export one under another name")
    relative = model.path.relative_to(bundle.folder).as_posix()
    names = [n for n in bundle.files if n == relative or n.startswith(relative + "/")]
    total = sum(bundle.files[name][0] for name in names)
    done = 0
    for name in names:
        progress(f"copying {model.name}", done, total)
        target = folder / path / name[len(relative) + 1 :] if name != relative else folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.folder / name, target)
        done += bundle.files[name][0]
    progress(f"copying {model.name}", total, max(total, 1))
    return {**model.entry, "path": path.as_posix()}


def write_manifest(
    folder: Path,
    *,
    name: str,
    target: Mapping[str, Any] | None,
    drafts: Sequence[Mapping[str, Any]],
    sampling: Mapping[str, float],
    progress: Progress = silent,
) -> None:
    """Hash every file of ``folder`` and write ``bundle.json``; the same files give the same bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "version": VERSION,
        "name": name,
        "target": target,
        "drafts": list(drafts),
        "tokenizer": "tokenizer",
        "sampling": dict(sampling),
        "files": {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": sha256_of(path, progress),
            }
            for path in paths
        },
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")


def sampling_defaults(path: Path) -> dict[str, float]:
    """The sampling options that a model's authors recommend: ``generation_config.json``, or a GGUF's ``general.sampling``."""
    if path.is_dir():
        file = path / "generation_config.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file} ({error}); mend or remove it") from error
        if not isinstance(found, dict) or not found.get("do_sample"):
            return {}
    else:
        metadata = GGUFFile(path).metadata
        gguf_names = {"temperature": "temp", "repetition_penalty": "penalty_repeat"}
        keys = {name: f"general.sampling.{gguf_names.get(name, name)}" for name in SAMPLING}
        found = {name: metadata[key] for name, key in keys.items() if key in metadata}
    return {
        name: found[name]
        for name in SAMPLING
        if isinstance(found.get(name), (int, float)) and found[name] > 0
    }
