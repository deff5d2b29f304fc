"""The dimensions of a model, which determine its memory: from a source, or from a built ONNX folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgespec.device.memory import ModelDimensions
from edgespec.errors import UserError
from edgespec.export.quants import FORMATS, SUM_BLOCK
from edgespec.export.source import Source
from edgespec.models.trimmed import TOKEN_IDS

_MAX_SIZE = 1 << 40
"""No size in a file's metadata may be larger."""


def dimensions_of(
    source: Source, vocab_size: int, repacked: Mapping[str, float]
) -> ModelDimensions:
    """The dimensions of a model file or folder whose tokenizer has ``vocab_size`` tokens.

    ``repacked`` names the types of weights that llama.cpp repacks on the processor, with the bytes
    that this adds to a weight. Reads metadata only. Raises ``UserError`` where it makes no sense.
    """
    metadata, prefix = source.metadata, str(source.metadata.get("general.architecture", ""))

    def sizes(key: str, default: Any) -> list[int]:
        value = metadata.get(f"{prefix}.{key}", default)
        values = value.tolist() if hasattr(value, "tolist") else value
        values = values if isinstance(values, list) else [values]
        if not values or not all(isinstance(v, int) and 0 < v < _MAX_SIZE for v in values):
            raise UserError(f"{source.path} says {prefix}.{key} = {str(value)[:64]}; get it again")
        return values

    layers, hidden = sizes("block_count", None)[0], sizes("embedding_length", None)[0]
    heads = sizes("attention.head_count", None)
    shared = sizes("attention.head_count_kv", heads)
    width = [max(1, hidden // heads[0])]
    key, value = sizes("attention.key_length", width)[0], sizes("attention.value_length", width)[0]
    kv_heads = sum(shared) if len(shared) == layers else layers * shared[0]
    packed, matrices, largest = 0, 0, 0
    tied = "output.weight" not in source.tensors
    for name, tensor in source.tensors.items():
        if len(tensor.shape) < 2 or (name == "token_embd.weight" and not tied):
            continue
        matrix = _packed(tensor.type, tensor.shape)
        packed, matrices, largest = packed + matrix, matrices + 1, max(largest, matrix)
    kept, head = metadata.get(TOKEN_IDS), "token_embd.weight" if tied else "output.weight"
    if head not in source.tensors:
        raise UserError(f"{source.path} has no tensor {head}; is it a complete language model?")
    return ModelDimensions(
        vocab_size=vocab_size,
        columns=source.tensors[head].rows if kept is None else len(kept),
        context=sizes("context_length", 1 << 20)[0],
        cache_numbers=kv_heads * (key + value),
        heads=max(heads),
        head_dim=math.gcd(key, value),
        hidden=hidden,
        feed_forward=max(sizes("feed_forward_length", 4 * hidden)),
        matrices=matrices,
        stored_bytes=sum(tensor.nbytes for tensor in source.tensors.values()),
        llama_bytes=_llama_bytes(source, head, repacked),
        packed_bytes=packed,
        largest_bytes=largest,
    )


def _llama_bytes(source: Source, head: str, repacked: Mapping[str, float]) -> int:
    """The weights in llama.cpp's memory: an embedding as it is stored, and a repacked copy of it where
    it is also the head."""
    total = 0
    for name, tensor in source.tensors.items():
        total += tensor.nbytes
        if tensor.type not in repacked or name == "token_embd.weight" != head:
            continue
        total += int(repacked[tensor.type] * math.prod(tensor.shape))
        if name == "token_embd.weight":
            total += tensor.nbytes
    return total


def _packed(type: str, shape: tuple[int, ...]) -> int:
    """Bytes of a matrix as ONNX Runtime packs it: codes, a float32 scale and sum per block, zero points."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    if type not in FORMATS:
        return 4 * rows * columns
    format = FORMATS[type]
    if format.has_minimums:
        columns += columns // SUM_BLOCK
    blocks = -(-columns // format.block)
    points = -(-blocks * format.bits // 8) if format.has_zero_points else 0
    return rows * (blocks * (format.block * format.bits // 8 + 8) + points)


def dimensions_of_built(
    manifest: Mapping[str, Any], graph: Any, vocab_size: int
) -> ModelDimensions:
    """The dimensions of a built ONNX folder: its manifest, and its graph without weights."""
    names = {str(name) for name, *_ in manifest["constants"]}
    packed, matrices, largest, stored = 0, 0, 0, 0
    for name, dtype, shape, _ in manifest["constants"]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        stored += size
        if f"{name}.scales" in names:
            matrices += 1
            largest = max(largest, size)
        elif name in ("cos", "sin", "local_cos", "local_sin", "embedding"):
            continue
        packed += 2 * size if str(name).endswith(".scales") else size
    caches = {
        node.name: [dim.dim_value for dim in node.type.tensor_type.shape.dim]
        for node in graph.input
        if node.name.startswith("past_")
    }
    attention = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
    heads = next(item.i for item in attention.attribute if item.name == "num_heads")
    head_dim = max(shape[3] for shape in caches.values())
    hidden = next(shape for name, _, shape, _ in manifest["constants"] if name == "embedding")[-1]
    return ModelDimensions(
        vocab_size=vocab_size,
        columns=int(manifest["vocab_size"]),
        context=int(manifest["context"]),
        cache_numbers=sum(shape[1] * shape[3] for shape in caches.values()),
        heads=heads,
        head_dim=head_dim,
        hidden=hidden,
        feed_forward=max(
            (shape[0] for name, _, shape, _ in manifest["constants"] if "ffn_" in name and shape),
            default=4 * hidden,
        ),
        matrices=matrices,
        stored_bytes=stored,
        llama_bytes=stored,
        packed_bytes=packed,
        largest_bytes=largest,
    )
