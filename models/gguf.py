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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES

from edgespec.errors import UserError
from edgespec.models.gguf_kinds import shards, why_no_magic, why_no_version

# The value types of metadata, by number, as struct codes; 8 is a string and 9 an array.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

BLOCK_FORMATS = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
"""Block formats of tensors: type number → (name, weights per block, bytes per block)."""
_OTHER_FORMATS = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
"""Formats that this version of ``gguf`` does not know: old ones that no library reads, and new ones."""
DROPPED_FORMATS = frozenset(name for number, name in _OTHER_FORMATS.items() if number < 40)

_MOST_OF_LLAMA_CPP, _OF_IK_LLAMA_CPP = 64, range(97, 400)
"""Numbers of formats, of the one below and of the other in these: newer ones are left to the runtime."""

MAX_METADATA = 100_000
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 4
MAX_NESTING = 4


@dataclass(frozen=True)
class TensorInfo:
    """The place of a tensor in its file. ``shape`` is in row-major order: rows first, then the row's length.

    ``type`` is ``type N`` for a format that only a runtime knows; ``row_bytes`` is then an estimate.
    """

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

    Of a split model, the first file stands for all: they have its tensors together. Strings of ``metadata``
    are ``str`` (UTF-8, bytes that are not UTF-8 kept as surrogates).
    Raises ``UserError`` where the file is missing, truncated or malformed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        first = _File(self.path)
        files = [first, *map(_File, shards(self.path, first.metadata))]
        self.metadata: dict[str, Any] = first.metadata
        self.tensors: dict[str, TensorInfo] = {}
        self._data: dict[str, mmap.mmap] = {}
        for file in files:
            if twice := self.tensors.keys() & file.tensors.keys():
                raise file.failure(f"tensor {min(twice)[:64]!r} is in two files")
            self.tensors |= file.tensors
            self._data |= dict.fromkeys(file.tensors, file.data)

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor, ``[rows, bytes of a row]``, mapped and read-only."""
        if name not in self.tensors:
            raise UserError(f"{self.path} has no tensor {name}; is it a complete language model?")
        info = self.tensors[name]
        flat = np.frombuffer(self._data[name], np.uint8, info.nbytes, info.offset)
        return flat.reshape(info.rows, info.row_bytes)


class _File:
    """One file, mapped; see ``GGUFFile``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with open(path, "rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise UserError(
                f"cannot read {path}: the file is empty; download or copy it again"
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {path}: {error}") from error
        self._position = 0
        self._read()

    def failure(self, what: str) -> UserError:
        return UserError(f"{self.path} is not a usable GGUF file: {what}; download it again")

    def _take(self, size: int) -> int:
        """Move past ``size`` bytes and return where they start."""
        start = self._position
        if size > len(self.data) - start:
            raise self.failure(f"it ends early, at byte {len(self.data)}")
        self._position = start + size
        return start

    def _scalar(self, code: str) -> Any:
        start = self._take(struct.calcsize("<" + code))
        (value,) = struct.unpack_from("<" + code, self.data, start)
        return value

    def _string(self) -> str:
        size = self._scalar("Q")
        start = self._take(size)
        return self.data[start : start + size].decode("utf-8", "surrogateescape")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY or depth == MAX_NESTING:
            raise self.failure(f"it has metadata of unknown type {kind}")
        item, count = self._scalar("I"), self._scalar("Q")
        if item in _SCALARS:
            dtype = np.dtype("<" + np.dtype(_SCALARS[item]).str[1:])
            start = self._take(count * dtype.itemsize)
            return np.frombuffer(self.data, dtype, count, start).tolist()
        if count > len(self.data) - self._position:  # each item takes at least a byte
            raise self.failure(f"it claims an array of {count} items")
        return [self._value(item, depth + 1) for _ in range(count)]

    def _read(self) -> None:
        if (start := self.data[:32])[:4] != b"GGUF":
            raise UserError(
                f"{self.path} is not a usable GGUF file: it does not begin with GGUF; {why_no_magic(start)}"
            )
        self._take(4)
        version = self._scalar("I")
        if version not in (2, 3):
            raise UserError(f"{self.path} {why_no_version(version)}")
        tensor_count, metadata_count = self._scalar("Q"), self._scalar("Q")
        if tensor_count > MAX_TENSORS or metadata_count > MAX_METADATA:
            raise self.failure(f"it claims {tensor_count} tensors and {metadata_count} metadata")
        for _ in range(metadata_count):
            if (key := self._string()) in self.metadata:
                raise self.failure(f"it has the key {key[:64]!r} twice")
            self.metadata[key] = self._value(self._scalar("I"))
        infos = [self._tensor_info() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.failure(f"alignment {alignment!r} is not a power of two")
        data_start = -(-self._position // alignment) * alignment
        places = sorted({offset for *_, offset in infos})
        ends = dict(pairwise([*places, max(0, len(self.data) - data_start)]))
        for name, kind, shape, offset in infos:
            self._add_tensor(name, kind, shape, data_start + offset, ends[offset] - offset)

    def _tensor_info(self) -> tuple[str, int, tuple[int, ...], int]:
        name, dimensions = self._string(), self._scalar("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.failure(f"tensor {name[:64]!r} has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        return name, self._scalar("I"), shape, self._scalar("Q")

    def _add_tensor(
        self, name: str, kind: int, shape: tuple[int, ...], offset: int, room: int
    ) -> None:
        """``room``: the bytes up to the next tensor."""
        if kind in BLOCK_FORMATS:
            type_name, block, block_bytes = BLOCK_FORMATS[kind]
        elif kind < _MOST_OF_LLAMA_CPP or kind in _OF_IK_LLAMA_CPP:
            type_name, block = _OTHER_FORMATS.get(kind, f"type {kind}"), shape[-1]
            block_bytes = max(0, room) // max(1, math.prod(shape[:-1]))
        else:
            raise self.failure(f"tensor {name[:64]!r} has the unknown type {kind}")
        if 0 in shape or shape[-1] % block:
            raise self.failure(f"tensor {name[:64]!r} of type {type_name} has the shape {shape}")
        info = TensorInfo(name, type_name, shape, offset, shape[-1] // block * block_bytes)
        if offset + info.nbytes > len(self.data):
            raise self.failure(
                f"it is truncated: tensor {name[:64]!r} ends past the end of the file"
            )
        if name in self.tensors:
            raise self.failure(f"tensor {name[:64]!r} is there twice")
        self.tensors[name] = info
