"""The compiled library: where it is, why it is not there, and its functions."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError

Bytes = npt.NDArray[np.uint8]

_FOLDER = Path(__file__).parent
_SUFFIX = {"Windows": ".dll", "Darwin": ".dylib"}.get(platform.system(), ".so")
FILE = _FOLDER / f"libedgespec_kernels{_SUFFIX}"

TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ4_NL": 20,
    "IQ4_XS": 23,
    "BF16": 30,
    "MXFP4": 39,
    "U4_32": 1000,
    "U4_64": 1001,
    "U4_128": 1002,
    "I8_64": 1003,
}
"""The types that the kernels multiply, and the numbers that the operators' attributes take."""

LAYOUT_VERSION = 1
"""Raised when packed matrices change. Files of another version are packed again."""


@lru_cache(1)
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none. ``EDGESPEC_KERNELS=0`` goes without."""
    if os.environ.get("EDGESPEC_KERNELS") == "0":
        return "EDGESPEC_KERNELS=0"
    if not FILE.is_file():
        note = _FOLDER / "not_built.txt"
        reason = note.read_text(encoding="utf-8").strip() if note.is_file() else "it was not built"
        return f"{FILE.name} is missing: {reason}"
    try:
        found = ctypes.CDLL(str(FILE))
        _declare(found)
    except (OSError, AttributeError) as error:
        return f"{FILE.name} does not load: {error}"
    if found.ek_layout() != LAYOUT_VERSION:
        return f"{FILE.name} is of another version; install the package again"
    if (name := os.environ.get("EDGESPEC_ISA")) and not found.ek_set_isa(name.encode()):
        return f"EDGESPEC_ISA={name}: this machine has {', '.join(_isas(found))}"
    return found


def _declare(found: ctypes.CDLL) -> None:
    number, size, pointer = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
    long = ctypes.c_int64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ek_layout": (number, []),
        "ek_packed_bytes": (size, [number, long, long]),
        "ek_stored_bytes": (size, [number, long, long]),
        "ek_pack": (None, [number, number, number, pointer, pointer]),
        "ek_set_threads": (None, [number]),
        "ek_set_isa": (number, [ctypes.c_char_p]),
        "ek_isa_name": (ctypes.c_char_p, []),
        "ek_isa_at": (ctypes.c_char_p, [number]),
        "ek_multiply": (number, [number, number, number, pointer, number, pointer, pointer]),
        "ek_rows": (number, [number, number, number, pointer, number, pointer, pointer]),
    }
    for name, (result, parameters) in signatures.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, parameters


def _isas(found: ctypes.CDLL) -> list[str]:
    names: list[str] = []
    while name := found.ek_isa_at(len(names)):
        names.append(name.decode())
    return names


def _library() -> ctypes.CDLL:
    found = _load()
    if isinstance(found, str):
        raise UserError(f"no kernels: {found}")
    return found


def library() -> Path | None:
    """The library's path; ``None`` where it was not built or does not load (``why_not``)."""
    return None if isinstance(_load(), str) else FILE


def why_not() -> str | None:
    """Why there is no library, in one line; ``None`` if there is one."""
    found = _load()
    return found if isinstance(found, str) else None


def set_threads(count: int) -> None:
    """How many threads ONNX Runtime has: attention is cut into pieces for them."""
    _library().ek_set_threads(count)


def isas() -> list[str]:
    """The instruction sets that were compiled and that this machine has, the best first."""
    return _isas(_library())


def isa() -> str:
    """The instruction set in use. All give the same bits. Raises ``UserError`` without a library."""
    return str(_library().ek_isa_name().decode())


def set_isa(name: str | None = None) -> None:
    """Use one of ``isas()`` in this process, or the best; so does ``EDGESPEC_ISA`` from the start.

    Raises ``ValueError`` for one that is not there.
    """
    if not _library().ek_set_isa(None if name is None else name.encode()):
        raise ValueError(f"no kernels for {name!r} here; there are {', '.join(isas())}")


def packed_bytes(type: str, rows: int, columns: int) -> int:
    """Bytes of a packed matrix. Raises ``ValueError`` for what the kernels do not multiply."""
    return _bytes(_library().ek_packed_bytes, type, rows, columns)


def _bytes(function: Any, type: str, rows: int, columns: int) -> int:
    if type not in TYPES:
        raise ValueError(f"the kernels do not multiply {type}; they know {', '.join(TYPES)}")
    size = int(function(TYPES[type], rows, columns))
    if not size:
        raise ValueError(
            f"{rows} × {columns} in {type}: the columns must be whole blocks, both at most 2^24"
        )
    return size


def pack_matrix(type: str, rows: int, columns: int, stored: Bytes) -> Bytes:
    """A matrix as its file stores it, uint8 ``[rows, bytes of a row]``, as the kernels read it."""
    wanted = _bytes(_library().ek_stored_bytes, type, rows, columns)
    stored = np.ascontiguousarray(stored)
    if stored.nbytes != wanted:
        raise ValueError(f"{rows} × {columns} in {type} takes {wanted} bytes, not {stored.nbytes}")
    packed = np.empty(packed_bytes(type, rows, columns), np.uint8)
    _library().ek_pack(TYPES[type], rows, columns, stored.ctypes.data, packed.ctypes.data)
    return packed


def multiply(type: str, rows: int, columns: int, packed: Bytes, x: FloatArray) -> FloatArray:
    """``x [n, columns]`` · Wᵀ, float32 ``[n, rows]``, on one thread: for tests and measurements."""
    _check(type, rows, columns, packed)
    x = np.ascontiguousarray(x, np.float32)
    if x.ndim != 2 or x.shape[1] != columns:
        raise ValueError(f"x has the shape {x.shape}, not [n, {columns}]")
    y = np.empty((len(x), rows), np.float32)
    if _library().ek_multiply(
        TYPES[type], rows, columns, packed.ctypes.data, len(x), x.ctypes.data, y.ctypes.data
    ):
        raise MemoryError
    return y


def get_rows(
    type: str, rows: int, columns: int, packed: Bytes, ids: npt.NDArray[np.int32]
) -> FloatArray:
    """Rows of a packed matrix, float32 ``[ids, columns]``. Raises ``IndexError`` for other rows."""
    _check(type, rows, columns, packed)
    ids = np.ascontiguousarray(ids, np.int32)
    y = np.empty((len(ids), columns), np.float32)
    if _library().ek_rows(
        TYPES[type], rows, columns, packed.ctypes.data, len(ids), ids.ctypes.data, y.ctypes.data
    ):
        raise IndexError(f"rows outside of 0–{rows - 1}")
    return y


def _check(type: str, rows: int, columns: int, packed: Bytes) -> None:
    if packed.nbytes != packed_bytes(type, rows, columns) or not packed.flags.c_contiguous:
        raise ValueError("the packed matrix has another size")
