"""What OpenVINO GenAI's reader of GGUF files makes of a file, and a file that it can read."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path

import gguf

EXACT = {"F32", "F16", "Q4_0", "Q8_0", "Q6_K"}
"""Kinds of tensors that it keeps as they are."""
ROUNDED = {"Q4_1", "Q4_K"}
"""Blocks with a minimum. The reader makes a whole zero point of it, in 4 bits."""


def describe(kinds: set[str], kept: set[str]) -> str:
    """What becomes of tensors of these kinds, if those ``kept`` are given to the reader as they are."""
    rounded, widened = kinds & kept & ROUNDED, kinds - kept
    parts = [
        f"minima of {', '.join(sorted(rounded))} rounded to whole zero points" if rounded else "",
        f"{', '.join(sorted(widened))} in 8 bits (Q8_0)" if widened else "",
    ]
    return "; ".join(filter(None, parts)) or "as in the file"


def readable(source: str, target: Path, kept: set[str]) -> tuple[set[str], int]:
    """Copy a GGUF file; a matrix of a kind that is not ``kept`` becomes Q8_0, a vector F32.

    Returns the kinds of ``source``, and how many numbers its tensors hold.
    """
    reader = gguf.GGUFReader(source)
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    parameters = sum(prod(map(int, tensor.shape)) for tensor in reader.tensors)
    if not kinds - kept:
        shutil.copyfile(source, target)
        return kinds, parameters
    kind_of = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            item = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], item)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind.name not in kept:
            data, kind = (
                gguf.dequantize(data, kind),
                kind_of.Q8_0 if len(tensor.shape) > 1 else kind_of.F32,
            )
            data = gguf.quantize(data, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kinds, parameters
