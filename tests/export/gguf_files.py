"""Small changes to GGUF files, for the tests of what a damaged or hostile one does."""

from __future__ import annotations

import struct
from pathlib import Path

SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
CODES = {4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 12: "d"}


def set_value(path: Path, key: str, value: float, kind: int | None = None) -> Path:
    """Overwrite a number in the metadata; ``kind`` must have the same size as the one there."""
    data, name = bytearray(path.read_bytes()), key.encode()
    start = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
    [old] = struct.unpack_from("<I", data, start)
    kind = old if kind is None else kind
    assert SCALAR_SIZES[kind] == SCALAR_SIZES[old]
    struct.pack_into("<I" + CODES[kind], data, start, kind, value)
    path.write_bytes(data)
    return path


def replace_bytes(path: Path, old: str, new: str) -> Path:
    """Rename a key or tensor to one of the same length."""
    data = path.read_bytes()
    assert len(old) == len(new)
    assert old.encode() in data
    path.write_bytes(data.replace(old.encode(), new.encode()))
    return path
