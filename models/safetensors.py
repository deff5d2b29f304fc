"""A bounded reader of safetensors checkpoints: a model file is hostile input.

The format is https://github.com/huggingface/safetensors#format: eight bytes with the length of a JSON
header, the header, the data. Everything is checked against the bytes that are there before anything
is allocated; the files are mapped, so tensors cost nothing until they are read.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip

MAX_HEADER = 100_000_000  # as in the reference implementation
MAX_JSON = 64 << 20
MAX_TENSORS = 100_000
MAX_SHARDS = 999
MAX_DIMENSIONS = 8
MAX_LENGTH = 1 << 48


@dataclass(frozen=True)
class StoredTensor:
    """The place of a tensor in the file. ``dtype`` is safetensors' name, ``offset`` counts from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[-1:]) * ITEM_BYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


class Checkpoint:
    """A folder of ``config.json`` and safetensors files: one, or shards with or without an index.

    Raises ``UserError`` where something is missing, truncated or malformed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        self.config = read_json(self.path / "config.json")
        self.tensors: dict[str, StoredTensor] = {}
        self._data: dict[Path, mmap.mmap] = {}
        files, index = _files(self.path)
        for file in files:
            self._read(file)
        for name, shard in index.items():
            if name not in self.tensors or self.tensors[name].file.name != shard:
                raise _broken(self.path / shard, f"it lacks the tensor {name[:64]!r} of the index")

    def bytes(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of a tensor, ``[rows, bytes of a row]``, mapped and read-only."""
        tensor = self.tensors[name]
        flat = np.frombuffer(self._data[tensor.file], np.uint8, tensor.nbytes, tensor.offset)
        return flat.reshape(tensor.rows, tensor.row_bytes)

    def _read(self, path: Path) -> None:
        try:
            with open(path, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise UserError(f"cannot read {path}: {error}") from error
        self._data[path] = data
        if len(data) < 8:
            raise _broken(path, f"it ends early, at byte {len(data)}")
        (length,) = struct.unpack_from("<Q", data)
        if length > min(MAX_HEADER, len(data) - 8):
            raise _broken(path, f"it claims a header of {length} bytes and has {len(data)}")
        header = _parse(path, data[8 : 8 + length])
        header.pop("__metadata__", None)
        if len(header) + len(self.tensors) > MAX_TENSORS:
            raise _broken(path, f"it has {len(header)} tensors")
        found = [_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
        end, last = 8 + length, ""
        for tensor in sorted(found, key=lambda tensor: (tensor.offset, tensor.nbytes)):
            if tensor.offset < end:
                raise _broken(path, f"tensors {last[:64]!r} and {tensor.name[:64]!r} overlap")
            end, last = tensor.offset + tensor.nbytes, tensor.name
            if end > len(data):
                raise _broken(path, f"it is truncated: tensor {last[:64]!r} ends past its end")
            if last in self.tensors:
                raise _broken(path, f"tensor {last[:64]!r} is also in {self.tensors[last].file}")
            self.tensors[last] = tensor


def checkpoint_files(folder: Path) -> list[Path]:
    """The files that identify a checkpoint: its configuration and all of its weights."""
    return [folder / "config.json", *sorted(folder.glob("*.safetensors"))]


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file that holds an object. Raises ``UserError`` where it does not."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_JSON + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if len(data) > MAX_JSON:
        raise _broken(path, f"it has more than {MAX_JSON >> 20} MiB")
    return _parse(path, data)


def _broken(path: Path, what: str) -> UserError:
    return UserError(f"{path} is not usable: {what}; download it again")


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its JSON does not parse ({error})") from error
    if not isinstance(value, dict):
        raise _broken(path, "its JSON is not an object")
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_LENGTH


def _tensor(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    what = f"tensor {name[:64]!r}"
    if not isinstance(entry, dict):
        raise _broken(path, f"{what} is {str(entry)[:64]}")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _broken(path, f"{what} has the unknown type {str(dtype)[:64]}")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(map(_is_count, shape))
        or not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(map(_is_count, offsets))
        or offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]
    ):
        where = f"the shape {str(shape)[:64]} in bytes {str(offsets)[:64]}"
        raise _broken(path, f"{what} of type {dtype} has {where}")
    return StoredTensor(name, dtype, tuple(shape), path, start + offsets[0])


def _files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a checkpoint, and its index: the shard that each tensor is in."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"], {}
    index: dict[str, str] = {}
    if (path := folder / "model.safetensors.index.json").exists():
        index = read_json(path).get("weight_map", {})
        if not isinstance(index, dict) or not index:
            raise _broken(path, "it has no weight_map")
        for shard in index.values():
            # Nothing but a name: a path could lead out of the folder.
            if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
                raise _broken(path, f"it names the file {str(shard)[:64]!r}")
        names = sorted(set(index.values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        shards = [re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.safetensors", name) for name in names]
        if any(shards):
            stem, total = next(match.groups() for match in shards if match)
            if int(total) > MAX_SHARDS:
                raise UserError(f"{folder} claims {total} shards; {MAX_SHARDS} are supported")
            names = [f"{stem}-{i:05}-of-{total}.safetensors" for i in range(1, int(total) + 1)]
        elif len(names) != 1:
            raise UserError(
                f"{folder} has no model.safetensors and no shards of one; "
                "save the model with safe_serialization or download it again"
            )
    if len(names) > MAX_SHARDS:
        raise UserError(f"{folder} has {len(names)} shards; {MAX_SHARDS} are supported")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(names)} shards, such as {missing[0]}; "
            "download it again"
        )
    return [folder / name for name in names], index
