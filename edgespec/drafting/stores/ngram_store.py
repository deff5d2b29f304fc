"""The n-gram caches on disk: one file a model, and whether caches are enabled. See ``docs/reference/cache.md``.

A file is a header and the table as it is in memory: reading it is one read and a checksum. It is replaced by a
rename, under a lock that the system releases when its holder dies. So a killed process or a full disk leaves the file
as it was.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.files import replacing
from edgespec.models import store

WAYS = 8
"""Slots of a bucket: the places for an n-gram."""
SUCCESSORS = 4
"""Tokens stored of those that followed an n-gram."""
SLOT = np.dtype(
    [("key", "u8"), ("used", "u4"), ("counts", "u1", SUCCESSORS), ("tokens", "u4", SUCCESSORS)]
)
"""An n-gram: a hash of its tokens (0: the slot is free), the clock of its last occurrence, and the counts and tokens of
what followed, the most frequent first (count 0: no token)."""
Slots = npt.NDArray[np.void]
"""``SLOT``s, ``[buckets, WAYS]``, a power of two of buckets."""
BUCKET_BYTES = WAYS * SLOT.itemsize
MAX_BUCKETS = 1 << 19
"""128 MiB: a file with more buckets is not read."""

_MAGIC, _VERSION = b"edgengrm", 1
# magic, version, vocabulary, buckets, entries, clock, serial, payload's CRC, key, name; its own CRC.
# In the machine's byte order, as the table is: from another order the magic comes out right and the
# version wrong.
_HEADER = struct.Struct("=8sIIIIIQI32s128s")
_CRC = struct.Struct("=I")
_START = _HEADER.size + _CRC.size
_MAX_LISTED = 1000
_LOCK_S = 10.0
"""Seconds to wait for the lock: a save or a load of another process takes a second at most."""


@dataclass(frozen=True)
class Header:
    """The header of a file."""

    vocab_size: int
    buckets: int
    entries: int
    clock: int
    """Tokens learnt, at most 2³² - 1."""
    serial: int
    """A random number, new each time that the file is written."""
    checksum: int
    key: str
    name: str
    """The model's, for people."""


@dataclass(frozen=True)
class CacheFile:
    """A file in the folder, for ``edgespec cache show``."""

    path: Path
    size: int
    modified: float
    """Seconds since the epoch."""
    header: Header | None
    """``None`` if it is not a valid cache."""


def directory() -> Path:
    """The folder of the caches: ``$EDGESPEC_HOME/ngrams``, else in the user's data folder."""
    return store.data_dir("ngrams")


def path_of(key: str) -> Path:
    """The file of the cache of ``key``."""
    return directory() / f"{key}.ngrams"


def key_of(*identity: str | int) -> str:
    """A key of everything that token ids depend on: the model, its vocabulary."""
    return sha256("\n".join(map(str, identity)).encode()).hexdigest()[:32]


def enabled() -> bool:
    """Whether caches are read and written; true until ``switch(False)``."""
    return not _off().exists()


def switch(on: bool) -> None:
    """Enable or disable caches from now on. Those on disk stay."""
    try:
        if on:
            _off().unlink(missing_ok=True)
        else:
            _off().parent.mkdir(parents=True, exist_ok=True)
            _off().touch()
    except OSError as error:
        raise UserError(f"cannot change {_off()}: {store.reason(error)}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock ``folder``, which is created if needed; other processes wait. Raises ``OSError``, also if the lock cannot be
    acquired."""
    from filelock import FileLock, Timeout

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=_LOCK_S):
            yield
    except Timeout as error:
        raise OSError(0, "another process holds its lock") from error
    except NotImplementedError as error:
        raise OSError(0, "its file system has no locks") from error


def serial_of(path: Path) -> int | None:
    """The serial of the file; ``None``: there is no valid file."""
    with contextlib.suppress(FileNotFoundError, ValueError), path.open("rb") as file:
        return _header(file.read(_START)).serial
    return None


def read(path: Path, key: str, vocab_size: int) -> tuple[Header, Slots]:
    """Read the cache of ``key``. Raises ``ValueError`` for anything else, and ``OSError``."""
    with path.open("rb") as file:
        header = _header(file.read(_START))
        if header.key != key or header.vocab_size != vocab_size:
            raise ValueError("it is of another model")
        if os.fstat(file.fileno()).st_size != _START + header.buckets * BUCKET_BYTES:
            raise ValueError("it is incomplete")
        slots = np.zeros((header.buckets, WAYS), SLOT)
        if file.readinto(slots.view(np.uint8).data) != slots.nbytes:
            raise ValueError("it is incomplete")
    if zlib.crc32(slots.view(np.uint8).data) != header.checksum:
        raise ValueError("its checksum is wrong")
    # A file with a valid checksum may still be crafted: no guess may be beyond the vocabulary.
    if slots["tokens"].max() >= vocab_size or not slots["counts"][slots["key"] != 0, 0].all():
        raise ValueError("it has values out of bounds")
    np.minimum(slots["used"], header.clock, out=slots["used"])
    return header, slots


def write(path: Path, key: str, name: str, vocab_size: int, clock: int, slots: Slots) -> int:
    """Replace the file in a ``locked`` folder; returns its serial. After an ``OSError`` the file is as it was."""
    payload = slots.view(np.uint8).data
    serial = secrets.randbits(63) + 1
    shown = "".join(filter(str.isprintable, name)).encode()[:128].decode(errors="ignore")
    header = _HEADER.pack(
        *(_MAGIC, _VERSION, vocab_size, len(slots), int(np.count_nonzero(slots["key"])), clock),
        *(serial, zlib.crc32(payload), key.encode(), shown.encode()),
    )
    part = path.with_suffix(".part")  # one a model: the lock is held
    with replacing(path, partial=part, private=True) as partial, partial.open("wb") as file:
        file.write(header + _CRC.pack(zlib.crc32(header)))
        file.write(payload)
    return serial


def cache_files() -> list[CacheFile]:
    """The caches on disk, the most recently used first."""
    found = []
    for path in sorted(directory().glob("*.ngrams"))[:_MAX_LISTED]:
        with contextlib.suppress(OSError):  # deleted meanwhile, or not ours to read
            stat, header = path.stat(), None
            with contextlib.suppress(ValueError), path.open("rb") as file:
                header = _header(file.read(_START))
            found.append(CacheFile(path, stat.st_size, stat.st_mtime, header))
    return sorted(found, key=lambda cache: -cache.modified)


def clear(name: str | None = None) -> int:
    """Delete the caches of the model ``name``, or all; returns how many. Raises ``UserError``."""
    if not directory().is_dir():
        found = []
    else:
        found = [c for c in cache_files() if name is None or (c.header and c.header.name == name)]
    if name is not None and not found:
        raise UserError(f"there is no cache of {name!r}; `edgespec cache show` lists them")
    try:
        if directory().is_dir():
            with locked(directory()):
                for cache in found:
                    cache.path.unlink(missing_ok=True)
                    cache.path.with_suffix(".part").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot clear {directory()}: {store.reason(error)}") from error
    return len(found)


def _off() -> Path:
    return store.config_dir() / "cache-off"


def _header(found: bytes) -> Header:
    """Parse a header. Raises ``ValueError`` if it is of another version or damaged."""
    if len(found) < _START or not found.startswith(_MAGIC):
        raise ValueError("it is no n-gram cache")
    _, version, vocab_size, buckets, entries, clock, serial, checksum, key, name = (
        _HEADER.unpack_from(found)
    )
    if version != _VERSION:
        raise ValueError(f"it has version {version} of the format, not {_VERSION}")
    if zlib.crc32(found[: _HEADER.size]) != _CRC.unpack_from(found, _HEADER.size)[0]:
        raise ValueError("its checksum is wrong")
    if not 0 < buckets <= MAX_BUCKETS or buckets & (buckets - 1):
        raise ValueError("it has values out of bounds")
    text = [part.rstrip(b"\0").decode() for part in (key, name)]  # UnicodeDecodeError is one
    if not all(map(str.isprintable, text)):
        raise ValueError("it has values out of bounds")
    return Header(vocab_size, buckets, entries, clock, serial, checksum, text[0], text[1])
