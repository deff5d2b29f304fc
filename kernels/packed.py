"""Files of packed matrices: made once, kept beside the model, mapped and never copied.

A file is a header of ``_HEADER``'s size, a table in JSON, and the matrices, each at a multiple of 4096
bytes. The header has the layout's version, the length and CRC-32 of the table, the file's size and the key: the
SHA-256 of the table, which has a checksum of each matrix.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from edgespec.errors import UserError
from edgespec.kernels.native import LAYOUT_VERSION, TYPES, Bytes, pack_matrix, packed_bytes
from edgespec.kernels.operators import Shape
from edgespec.progress import Progress, silent

if TYPE_CHECKING:
    from edgespec.models.gguf import TensorInfo

_MAGIC = b"edgepack"
_HEADER = struct.Struct("<8sIIIIQ32s")
"""Magic, layout version, the table's length, its CRC, 0, the file's size, the key."""
_ALIGNMENT = 4096
_MAX_TABLE = 1 << 26
_SAMPLE = 4096
"""Bytes of a matrix that stand for it, at its start, middle and end: all of it would take a second a GB."""
_PART = 1 << 22
"""Bytes of a matrix that are packed at a time."""


class Source(Protocol):
    """What is packed; ``edgespec.export.sources.Source`` is one."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def tensor(self, name: str) -> Bytes: ...


class PackedFileError(ValueError):
    """A packed file that is not whole, not of this model, or of another version."""


@dataclass(frozen=True)
class Matrix(Shape):
    """A packed matrix; ``data`` uint8, read-only, in the mapped file."""

    data: Bytes


@dataclass(frozen=True)
class Packed:
    """A mapped file. It stays mapped as long as one of its arrays lives."""

    path: Path
    matrices: Mapping[str, Matrix]


def packable(info: TensorInfo) -> bool:
    """Whether the kernels multiply this tensor."""
    if len(info.shape) != 2 or info.type not in TYPES:
        return False
    try:
        return packed_bytes(info.type, info.rows, info.shape[-1]) > 0
    except ValueError:
        return False


def pack(
    source: Source, path: Path, names: Iterable[str] | None = None, progress: Progress = silent
) -> str:
    """Write the packed matrices of ``source`` into the file ``path``; returns its key.

    ``names``: which; all that the kernels multiply by default. Raises ``UserError`` where memory does not
    suffice, and ``OSError`` where the disk does not; what was written is then to be removed.
    """
    chosen = [name for name, info in source.tensors.items() if packable(info)]
    try:
        return _write(source, chosen if names is None else list(names), path, progress)
    except MemoryError as error:
        raise UserError(f"out of memory while packing {path.name}; close other programs") from error


def _matrix_bytes(info: TensorInfo) -> int:
    return packed_bytes(info.type, info.rows, info.shape[-1])


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _sample_starts(size: int) -> tuple[int, int, int]:
    return 0, size // 2, max(0, size - _SAMPLE)


def _sample(data: Bytes) -> bytes:
    flat = data.reshape(-1)
    starts = _sample_starts(len(flat))
    return b"".join(flat[start : start + _SAMPLE].tobytes() for start in starts)


def _read_sample(file: BinaryIO, place: int, size: int) -> bytes:
    """``_sample`` of a matrix that was written."""
    parts = []
    for start in _sample_starts(size):
        file.seek(place + start)
        parts.append(file.read(min(_SAMPLE, size - start)))
    return b"".join(parts)


def _checksum(sample: bytes) -> str:
    return f"{zlib.crc32(sample):08x}"


def _packed_parts(info: TensorInfo, stored: Bytes) -> Iterator[Bytes]:
    """A packed matrix, some groups of 16 rows at a time: all at once would double a large head."""
    step = max(16, _PART // info.row_bytes // 16 * 16)
    for first in range(0, info.rows, step):
        rows = stored[first : first + step]
        yield pack_matrix(info.type, len(rows), info.shape[-1], rows)


def _write(source: Source, names: list[str], path: Path, progress: Progress) -> str:
    infos = {name: source.tensors[name] for name in names}
    table: dict[str, dict[str, Any]] = {}
    # The table's length does not depend on the checksums: eight digits each.
    offset = 0
    for name, info in infos.items():
        size = _matrix_bytes(info)
        table[name] = {
            "type": info.type,
            "rows": info.rows,
            "columns": info.shape[-1],
            "offset": offset,
            "bytes": size,
            "sample": "0" * 8,
        }
        offset = _aligned(offset + size)
    start, total = _aligned(_HEADER.size + len(_encoded(table))), offset
    with path.open("w+b") as file:
        for name, info in infos.items():
            place = start + table[name]["offset"]
            file.seek(place)
            for part in _packed_parts(info, source.tensor(name)):
                file.write(part.data)
                progress("packing", file.tell() - start, total)
            table[name]["sample"] = _checksum(_read_sample(file, place, table[name]["bytes"]))
        file.truncate(start + total)
        encoded = _encoded(table)
        key = hashlib.sha256(encoded)
        header = (
            _MAGIC,
            LAYOUT_VERSION,
            len(encoded),
            zlib.crc32(encoded),
            0,
            start + total,
            key.digest(),
        )
        file.seek(0)
        file.write(_HEADER.pack(*header) + encoded)
        file.flush()
        os.fsync(file.fileno())
    progress("packing", total, total)
    return key.hexdigest()


def _encoded(table: Mapping[str, Any]) -> bytes:
    return json.dumps(table, separators=(",", ":")).encode()


def open_packed(path: Path, key: str | None = None) -> Packed:
    """Map a packed file. ``key``: what ``pack`` returned for it.

    Raises ``PackedFileError`` with the reason where it cannot be used as it is.
    """
    try:
        with path.open("rb") as file:
            table, start = _read_table(file, key)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise PackedFileError(f"{path.name} cannot be read: {error}") from error
    whole = np.frombuffer(mapped, np.uint8)
    matrices = {name: _matrix(name, entry, whole[start:]) for name, entry in table.items()}
    return Packed(path, matrices)


def _read_table(file: BinaryIO, key: str | None) -> tuple[dict[str, Any], int]:
    """The table, and where the matrices start."""
    raw = file.read(_HEADER.size)
    if len(raw) < _HEADER.size or not raw.startswith(_MAGIC):
        raise PackedFileError("not a packed file")
    _, version, length, crc, _, size, found = _HEADER.unpack(raw)
    if version != LAYOUT_VERSION:
        raise PackedFileError(f"packed in layout {version}, this is {LAYOUT_VERSION}")
    if os.fstat(file.fileno()).st_size != size:
        raise PackedFileError("the file is not whole")
    if key is not None and found.hex() != key:
        raise PackedFileError("packed from another model")
    if length > _MAX_TABLE:
        raise PackedFileError("the table is damaged")
    encoded = file.read(length)
    if len(encoded) != length or zlib.crc32(encoded) != crc:
        raise PackedFileError("the table is damaged")
    try:
        table = json.loads(encoded)
    except ValueError as error:
        raise PackedFileError("the table is damaged") from error
    if not isinstance(table, dict):
        raise PackedFileError("the table is damaged")
    return table, _aligned(_HEADER.size + length)


def _matrix(name: str, entry: Any, data: Bytes) -> Matrix:
    """A matrix of the table, its bounds checked."""
    try:
        type, sample = str(entry["type"]), str(entry["sample"])
        rows, columns = int(entry["rows"]), int(entry["columns"])
        offset, size = int(entry["offset"]), int(entry["bytes"])
        right = size == packed_bytes(type, rows, columns)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PackedFileError(f"the entry of {name} is damaged") from error
    if not right or offset < 0 or offset % _ALIGNMENT or offset + size > len(data):
        raise PackedFileError(f"the entry of {name} is damaged")
    found = data[offset : offset + size]
    if _checksum(_sample(found)) != sample:
        raise PackedFileError(f"{name} is damaged")
    return Matrix(type, rows, columns, found)
