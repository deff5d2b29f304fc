"""A bounded reader of GGUF files: a model file is hostile input.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and length is
checked against the bytes that are there before anything is allocated or read. ``gguf``'s own reader
does not do that; only its table of block formats is used.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES

from edgespec.errors import UserError

# The value types of metadata, by number, as struct codes; 8 is a string and 9 an array.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

BLOCK_FORMATS = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
"""Block formats of tensors: type number → (name, weights per block, bytes per block)."""

MAX_METADATA = 100_000
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 4
MAX_NESTING = 4


@dataclass(frozen=True)
class TensorInfo:
    """The place of a tensor in the file. ``shape`` is in row-major order: rows first, then the row's length."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    row_bytes: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


class GGUFFile:
    """A GGUF file's metadata and tensors; the file is mapped, so tensors cost nothing until read.

    Strings of ``metadata`` are ``str`` (UTF-8, bytes that are not UTF-8 kept as surrogates).
    Raises ``UserError`` where the file is missing, truncated or malformed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with open(self.path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise UserError(
                f"cannot read {self.path}: the file is empty; download or copy it again"
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error}") from error
        self._position = 0
        self._read()

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor, ``[rows, bytes of a row]``, mapped and read-only."""
        if name not in self.tensors:
            raise UserError(f"{self.path} has no tensor {name}; is it a complete language model?")
        info = self.tensors[name]
        flat = np.frombuffer(self._data, np.uint8, info.nbytes, info.offset)
        return flat.reshape(info.rows, info.row_bytes)

    def _fail(self, what: str) -> UserError:
        return UserError(f"{self.path} is not a usable GGUF file: {what}; download it again")

    def _take(self, size: int) -> int:
        """Move past ``size`` bytes and return where they start."""
        start = self._position
        if size > len(self._data) - start:
            raise self._fail(f"it ends early, at byte {len(self._data)}")
        self._position = start + size
        return start

    def _scalar(self, code: str) -> Any:
        start = self._take(struct.calcsize("<" + code))
        (value,) = struct.unpack_from("<" + code, self._data, start)
        return value

    def _string(self) -> str:
        size = self._scalar("Q")
        start = self._take(size)
        return self._data[start : start + size].decode("utf-8", "surrogateescape")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth == MAX_NESTING:
            raise self._fail(f"it has metadata of unknown type {kind}")
        item, count = self._scalar("I"), self._scalar("Q")
        if item in _SCALARS:
            dtype = np.dtype("<" + np.dtype(_SCALARS[item]).str[1:])
            start = self._take(count * dtype.itemsize)
            return np.frombuffer(self._data, dtype, count, start).tolist()
        if count > len(self._data) - self._position:  # each item takes at least a byte
            raise self._fail(f"it claims an array of {count} items")
        return [self._value(item, depth + 1) for _ in range(count)]

    def _read(self) -> None:
        if self._data[:4] != b"GGUF":
            raise self._fail("it does not begin with GGUF")
        self._take(4)
        version = self._scalar("I")
        if version not in (2, 3):
            raise self._fail(f"version {version} is not 2 or 3")
        tensor_count, metadata_count = self._scalar("Q"), self._scalar("Q")
        if tensor_count > MAX_TENSORS or metadata_count > MAX_METADATA:
            raise self._fail(f"it claims {tensor_count} tensors and {metadata_count} metadata")
        for _ in range(metadata_count):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        infos = [self._tensor_info() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._fail(f"alignment {alignment!r} is not a power of two")
        data_start = -(-self._position // alignment) * alignment
        for name, kind, shape, offset in infos:
            self._add_tensor(name, kind, shape, data_start + offset)

    def _tensor_info(self) -> tuple[str, int, tuple[int, ...], int]:
        name, dimensions = self._string(), self._scalar("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._fail(f"tensor {name[:64]!r} has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        return name, self._scalar("I"), shape, self._scalar("Q")

    def _add_tensor(self, name: str, kind: int, shape: tuple[int, ...], offset: int) -> None:
        if kind not in BLOCK_FORMATS:
            raise self._fail(f"tensor {name[:64]!r} has the unknown type {kind}")
        type_name, block, block_bytes = BLOCK_FORMATS[kind]
        if shape[-1] % block or 0 in shape:
            raise self._fail(f"tensor {name[:64]!r} of type {type_name} has the shape {shape}")
        info = TensorInfo(name, type_name, shape, offset, shape[-1] // block * block_bytes)
        if offset + info.nbytes > len(self._data):
            raise self._fail(f"it is truncated: tensor {name[:64]!r} ends past the end of the file")
        if name in self.tensors:
            raise self._fail(f"tensor {name[:64]!r} is there twice")
        self.tensors[name] = info
