"""The store of models: where they are kept, and how they are downloaded.

A model is installed when `models_dir()/NAME/FILE` exists: it is downloaded to a staging folder
beside it, checked, and renamed into place as the last step, so whatever has that name is whole. The
staging folder (`.NAME.partial`) outlives an interrupted pull for the next one to go on from; a lock
file (`.NAME.lock`) lets one process at a time work on a model.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from edgespec.errors import UserError
from edgespec.files import move_into_place
from edgespec.models.catalogue import CatalogueEntry, load_catalogue
from edgespec.progress import Progress, silent

if TYPE_CHECKING:
    from edgespec.models.fetch import Fetched, Report

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Installed:
    """A model of the catalogue that is on this machine."""

    entry: CatalogueEntry
    path: Path


def models_dir() -> Path:
    """The folder of downloaded models: `$EDGESPEC_HOME/models`, else in the user's data folder."""
    return data_dir("models")


def profiles_dir() -> Path:
    """The folder of latency profiles: `$EDGESPEC_HOME/profiles`, else in the user's data folder."""
    return data_dir("profiles")


def data_dir(name: str) -> Path:
    """The folder `name` of what is kept for the user: in `$EDGESPEC_HOME`, else in the data folder."""
    return _home(name) or platformdirs.user_data_path("edgespec", False) / name


def config_dir() -> Path:
    """The folder of settings: `$EDGESPEC_HOME/config`, else the user's configuration folder."""
    return _home("config") or platformdirs.user_config_path("edgespec", False)


def cache_dir() -> Path:
    """The folder of what can be made again: `$EDGESPEC_HOME/cache`, else the user's cache."""
    return _home("cache") or platformdirs.user_cache_path("edgespec", False)


def installed(directory: Path | None = None) -> list[Installed]:
    """The catalogue's models that are in `directory` (default: `models_dir()`)."""
    directory = directory or models_dir()
    found = (Installed(e, directory / e.name / e.file) for e in load_catalogue().values())
    return [model for model in found if model.path.is_file()]


def resolve(model: str, progress: Progress = silent) -> Path:
    """The file of a model given by its name in the catalogue, pulled if absent, or by its own path.

    Raises UserError if it is neither, naming the nearest names.
    """
    entry = load_catalogue().get(model.lower())
    if entry:
        return pull(entry, progress)
    path = Path(os.path.expanduser(model))  # unlike Path's, leaves an unknown ~user as it is
    if path.is_file():
        return path
    if model and path.is_dir():
        raise UserError(f"{model} is a folder; give a catalogue name or a .gguf file")
    if model.endswith(".gguf") or path.name != model:
        raise UserError(f"there is no file {model}")
    raise unknown_model(model)


class UnknownModel(UserError):
    """A name that is neither in the catalogue nor a file's."""


def unknown_model(name: str) -> UnknownModel:
    """The error for a name that is not in the catalogue, with the names nearest to it."""
    names, asked = list(load_catalogue()), name.lower()
    alike = difflib.get_close_matches(asked, names, 3, 0.6)
    near = [known for known in names if asked and asked in known][:3] or alike
    hint = f"did you mean {' or '.join(near)}?" if near else "`edgespec models list` shows all"
    return UnknownModel(f"no model is named {name!r}; {hint}")


def pull(entry: CatalogueEntry, progress: Progress = silent, directory: Path | None = None) -> Path:
    """Download a model into `directory` (default: `models_dir()`) unless it is there.

    Returns its file, which is in place only when its size and SHA-256 are right: those of the
    catalogue, or those that the hub states. The sources are tried in order. Safe to interrupt, and
    to run twice at once: the second reports that to `progress` and waits.
    Raises UserError, naming each source's failure, or if the folder cannot take the file.
    """
    directory = directory or models_dir()
    final = directory / entry.name / entry.file
    if final.is_file():
        return final
    staging = directory / f".{entry.name}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _lock(directory, entry, progress):
            if final.is_file():  # by another process, while this one waited
                return final
            fetched, digest = _fetch(entry, staging, progress)
            final.parent.mkdir(exist_ok=True)
            move_into_place(fetched, final)
            shutil.rmtree(staging)
            _remember(final, _stamp(final), digest)
    except OSError as error:
        raise UserError(f"cannot store {entry.name} in {directory}: {reason(error)}") from error
    return final


def remove(name: str, directory: Path | None = None) -> None:
    """Delete a model of the catalogue and what an unfinished pull of it has left.

    Raises UserError if there is neither, or if it cannot be deleted.
    """
    directory = directory or models_dir()
    entry = load_catalogue().get(name.lower())
    if not entry:
        raise unknown_model(name)
    folders = [directory / entry.name, directory / f".{entry.name}.partial"]
    if not any(folder.exists() for folder in folders):
        raise UserError(f"{entry.name} is not installed; `edgespec models list` shows what is")
    try:
        with _lock(directory, entry, silent):
            for folder in filter(Path.exists, folders):
                shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"cannot remove {entry.name}: {reason(error)}") from error


def sha256_of(path: Path, progress: Progress = silent) -> str:
    """The SHA-256 of a file, in hex; remembered until the file's size, time or inode changes.

    Raises UserError if the file cannot be read.
    """
    try:
        with contextlib.suppress(OSError, ValueError):
            known, digest = _memo(path).read_text(encoding="ascii").split("\n")
            if known == _stamp(path) and re.fullmatch("[0-9a-f]{64}", digest):
                return digest
        stamp, size = _stamp(path), path.stat().st_size  # as before the reading
        digest = _hash(path, lambda done: progress(f"hashing {path.name}", done, size))
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    _remember(path, stamp, digest)
    return digest


def _fetch(entry: CatalogueEntry, staging: Path, progress: Progress) -> tuple[Path, str]:
    """The verified file in the staging folder, and its digest, from the first source that works."""
    from edgespec.models.fetch import fetch  # not needed to run a model that is here

    def downloading(done: int) -> None:
        progress(f"downloading {entry.name}", min(done, entry.size), entry.size)

    def verifying(done: int) -> None:
        progress(f"verifying {entry.name}", min(done, entry.size), entry.size)

    causes = []
    for source in entry.sources:
        # a folder for each source: the rest of one must not be taken for another's
        folder = staging / hashlib.sha256(source.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            fetched = fetch(entry, source, folder, downloading)
            return fetched.path, _verified(fetched, folder, verifying)
        except UserError as error:
            causes.append(f"{source.partition('/')[0]}: {error}")
        finally:
            for left in (folder, staging):
                with contextlib.suppress(OSError):  # not empty: it holds the file or a start of it
                    left.rmdir()
    raise UserError(f"cannot pull {entry.name}: {'; '.join(causes)}")


def _verified(fetched: Fetched, folder: Path, report: Report) -> str:
    """The digest of a fetched file; a wrong one is deleted."""
    size = fetched.path.stat().st_size
    digest = _hash(fetched.path, report)
    if size == fetched.size and digest == fetched.sha256:
        return digest
    shutil.rmtree(folder)
    if size != fetched.size:
        raise UserError(f"the file has {size} bytes instead of {fetched.size}")
    if not fetched.sha256:
        raise UserError("nothing says what its SHA-256 should be")
    raise UserError(f"the file's SHA-256 is {digest[:12]}… instead of {fetched.sha256[:12]}…")


def _lock(
    directory: Path, entry: CatalogueEntry, progress: Progress
) -> contextlib.AbstractContextManager[None]:
    return locked(directory / f".{entry.name}.lock", f"pull {entry.name}", progress)


def _home(name: str) -> Path | None:
    home = os.environ.get("EDGESPEC_HOME")
    return Path(home).expanduser().absolute() / name if home else None


@contextlib.contextmanager
def locked(path: Path, what: str, progress: Progress) -> Iterator[None]:
    """Hold the lock file ``path``; report to ``progress`` before waiting for another process."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for another process to {what}", 0, 1)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def reason(error: OSError) -> str:
    """An OSError in the user's words, with what to do about a full disk."""
    why = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{why}; free some space or set EDGESPEC_HOME to a folder on another disk"
    return f"{why}; check the folder or set EDGESPEC_HOME to another"


def _hash(path: Path, report: Report) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(done)
    return digest.hexdigest()


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


def _memo(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return cache_dir() / "sha256" / name


def _remember(path: Path, stamp: str, digest: str) -> None:
    """Keep a digest for `sha256_of`; a cache that cannot be written costs time and nothing else."""
    memo = _memo(path)
    with contextlib.suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        memo.write_text(f"{stamp}\n{digest}", encoding="ascii")
