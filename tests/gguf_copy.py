"""A GGUF file with something changed, written anew by the ``gguf`` package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

Array = npt.NDArray[Any]
Typed = tuple[Any, str]
"""A value and the name of its type; of a list, that of its items."""


def changed_copy(
    source: Path,
    path: Path,
    *,
    keys: Mapping[str, Typed] | None = None,
    without: tuple[str, ...] = (),
    tensors: Callable[[str, Array], Array | None] = lambda name, data: data,
    more: Mapping[str, Array] | None = None,
    shards: int = 0,
) -> Path:
    """Copy ``source`` to ``path`` (to ``shards`` files with so many tensors each) and return ``path``.

    ``keys`` are added or replaced, those in ``without`` left out. ``tensors`` returns another array of float32
    or float16 for a tensor, or ``None`` to leave it out; ``more`` are added.
    """
    reader = GGUFReader(source)
    added = dict(keys or {})
    [architecture] = (added.pop("general.architecture", None) or _value(reader))[:1]
    writer = GGUFWriter(path, architecture, split_max_tensors=shards)
    for key, field in reader.fields.items():
        skipped = key.startswith("GGUF.") or key == "general.architecture"
        if not skipped and key not in added and key not in without:
            kind = field.types[0]
            items = field.types[1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub_type=items)
    for key, (value, kind_name) in added.items():
        kind, items = GGUFValueType[kind_name], None
        if isinstance(value, list):
            kind, items = GGUFValueType.ARRAY, kind
        writer.add_key_value(key, value, kind, sub_type=items)
    for tensor in reader.tensors:
        data = tensors(tensor.name, tensor.data)
        if data is tensor.data:
            writer.add_tensor(tensor.name, np.array(data), raw_dtype=tensor.tensor_type)
        elif data is not None:
            writer.add_tensor(tensor.name, data)
    for name, data in (more or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _value(reader: GGUFReader) -> tuple[str]:
    return (str(reader.fields["general.architecture"].contents()),)


def header_only(path: Path, architecture: str, kind: str | None = None) -> Path:
    """A file with one small tensor that is no model: ``kind`` is its ``general.type``."""
    writer = GGUFWriter(path, architecture)
    if kind:
        writer.add_type(kind)
    writer.add_tensor("first", np.zeros((8, 32), np.float32), raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ALL_KEYS = sorted(
    {
        value.removeprefix("{arch}.")
        for group in vars(gguf.Keys).values()
        if isinstance(group, type)
        for value in vars(group).values()
        if isinstance(value, str) and value.startswith("{arch}.")
    }
)
"""Every key that llama.cpp's converters write under an architecture's name."""
ALL_TENSORS = sorted(set(gguf.TENSOR_NAMES.values()))
"""Every tensor's name, with ``{bid}`` for the layer."""
