"""The sizes of a model that its memory follows from, read from its metadata alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from edgespec import kernels
from edgespec.core.runtime_spec import ModelDimensions
from edgespec.device.machine import cpu_features
from edgespec.errors import UserError
from edgespec.export.quants import FORMATS, SUM_BLOCK
from edgespec.export.source import Source
from edgespec.models.onnx_folder import MODEL_FILE, PACKED_FILE, Manifest, read_manifest
from edgespec.models.trimmed import TOKEN_IDS

_X86_REPACKED = ("Q4_0", "Q4_K", "IQ4_NL", "MXFP4")
_ARM_REPACKED = (*_X86_REPACKED, "Q5_K", "Q6_K", "Q8_0")
_REPACKED = {
    "avx2": dict.fromkeys(_X86_REPACKED, 0.0),
    "avx512f": {"Q2_K": 0.0},
    **dict.fromkeys(("asimddp", "dotprod"), dict.fromkeys(_ARM_REPACKED, 0.0)),
    "amx_int8": {
        "Q4_0": 0.0, "Q4_1": 0.0, "Q6_K": 0.0,
        "Q8_0": 4 / 32, "Q4_K": 4 / 256, "Q5_K": 4 / 256, "IQ4_XS": 2 / 256,
    },
}  # fmt: skip
"""What llama.cpp lays out anew for a processor's kernels, and the bytes that this adds to a weight
(``ggml-cpu/repack.cpp``, ``amx/mmq.cpp``). A build that does not use the feature takes less."""
_MOST = 1 << 40
"""No size in a file's metadata may be larger."""


def dimensions_of(source: Source, vocab_size: int) -> ModelDimensions:
    """The dimensions of a model file (or folder) with a tokenizer of ``vocab_size`` tokens.

    Reads metadata alone. Raises ``UserError`` where it makes no sense.
    """
    metadata, prefix = source.metadata, str(source.metadata.get("general.architecture", ""))

    def sizes(key: str, default: Any) -> list[int]:
        value = metadata.get(f"{prefix}.{key}", default)
        values = value.tolist() if hasattr(value, "tolist") else value
        values = values if isinstance(values, list) else [values]
        if not values or not all(isinstance(v, int) and 0 < v < _MOST for v in values):
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
        llama_bytes=_llama_bytes(source, head),
        packed_bytes=packed,
        largest_bytes=largest,
        kernel_bytes=_kernel_bytes(source),
    )


def _kernel_bytes(source: Source) -> int:
    """As the kernels pack all matrices; 0 where they are not here or do not multiply one of them."""
    matrices = [tensor for tensor in source.tensors.values() if len(tensor.shape) == 2]
    if kernels.library() is None or not all(map(kernels.packable, matrices)):
        return 0
    return sum(kernels.Shape.of(tensor).packed_bytes for tensor in matrices)


def _llama_bytes(source: Source, head: str) -> int:
    """As llama.cpp keeps the weights: an embedding as it is stored, and again where it is also the
    head and the kernels have a layout of their own for it."""
    added: dict[str, float] = {}
    for feature in cpu_features():
        added |= _REPACKED.get(feature, {})
    kept = 0
    for name, tensor in source.tensors.items():
        kept += tensor.nbytes
        if tensor.type not in added or name == "token_embd.weight" != head:
            continue
        kept += int(added[tensor.type] * math.prod(tensor.shape))
        if name == "token_embd.weight":
            kept += tensor.nbytes
    return kept


def _packed(type: str, shape: tuple[int, ...]) -> int:
    """A matrix as ONNX Runtime packs it: the codes; a scale and a sum for each block, float32; zero points."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    if type not in FORMATS:
        return 4 * rows * columns
    format = FORMATS[type]
    if format.has_minimums:
        columns += columns // SUM_BLOCK
    blocks = -(-columns // format.block)
    points = -(-blocks * format.bits // 8) if format.has_zero_points else 0
    return rows * (blocks * (format.block * format.bits // 8 + 8) + points)


def built_dimensions(folder: Path, vocab_size: int) -> ModelDimensions:
    """The dimensions of a folder that was built, whose tokenizer has ``vocab_size`` tokens."""
    import onnx

    manifest = read_manifest(folder)
    graph = onnx.load(str(folder / MODEL_FILE), load_external_data=False).graph
    known = {
        "vocab_size": vocab_size,
        "columns": int(manifest["vocab_size"]),
        "context": int(manifest["context"]),
        "stored_bytes": (stored := sum(manifest["files"].values())),
        "llama_bytes": stored,
    }
    if "packed" in manifest:
        return ModelDimensions(
            **known, **_kernel_dimensions(graph), kernel_bytes=manifest["files"][PACKED_FILE]
        )
    return ModelDimensions(**known, **_nbits_dimensions(graph, manifest))


def _attribute(node: Any, name: str) -> int:
    return int(next(item.i for item in node.attribute if item.name == name))


def _kernel_dimensions(graph: Any) -> dict[str, int]:
    attention = next(node for node in graph.node if node.op_type == "Attention")
    products = [node for node in graph.node if node.op_type == "GgufMatMul"]
    features = next(node for node in graph.output if node.name == "features")
    head_dim, kv_heads = _attribute(attention, "head_dim"), _attribute(attention, "kv_heads")
    layers = sum(node.op_type == "Attention" for node in graph.node)
    return {
        "cache_numbers": 2 * layers * kv_heads * head_dim,
        "heads": _attribute(attention, "heads"),
        "head_dim": head_dim,
        "hidden": features.type.tensor_type.shape.dim[2].dim_value,
        "feed_forward": max(_attribute(node, "columns") for node in products),
        "matrices": len(products),
        "packed_bytes": 0,
        "largest_bytes": 0,
    }


def _nbits_dimensions(graph: Any, manifest: Manifest) -> dict[str, int]:
    names = {name for name, *_ in manifest["constants"]}
    packed, matrices, largest = 0, 0, 0
    for name, dtype, shape, _ in manifest["constants"]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if f"{name}.scales" in names:
            matrices += 1
            largest = max(largest, size)
        elif name in ("cos", "sin", "local_cos", "local_sin", "embedding"):
            continue
        packed += 2 * size if name.endswith(".scales") else size
    caches = {
        node.name: [dim.dim_value for dim in node.type.tensor_type.shape.dim]
        for node in graph.input
        if node.name.startswith("past_")
    }
    attention = next(node for node in graph.node if node.op_type == "GroupQueryAttention")
    hidden = next(shape for name, _, shape, _ in manifest["constants"] if name == "embedding")[-1]
    return {
        "cache_numbers": sum(shape[1] * shape[3] for shape in caches.values()),
        "heads": _attribute(attention, "num_heads"),
        "head_dim": max(shape[3] for shape in caches.values()),
        "hidden": hidden,
        "feed_forward": max(
            (shape[0] for name, _, shape, _ in manifest["constants"] if "ffn_" in name and shape),
            default=4 * hidden,
        ),
        "matrices": matrices,
        "packed_bytes": packed,
        "largest_bytes": largest,
    }
