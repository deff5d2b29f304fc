"""Checks that nothing in a GGUF file changes a model's results without the graph computing it.

llama.cpp is the reference: a key that it ignores for an architecture is ignored here too where files in use
have it; a tensor that it does not read stops its load. Everything else is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from edgespec import kernels
from edgespec.export.architectures import ARCHITECTURES
from edgespec.export.quants import FORMATS
from edgespec.export.source import Source
from edgespec.models.trimmed import TOKEN_IDS

_READ = {
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "block_count", "context_length", "embedding_length",
    "feed_forward_length", "rope.dimension_count", "rope.freq_base", "rope.scale_linear",
    "rope.scaling.attn_factor", "rope.scaling.factor", "rope.scaling.type",
}  # fmt: skip
"""Keys of every architecture that ``common`` or this module reads."""
_HARMLESS = {
    "attention.layer_norm_epsilon", "attention.sliding_window", "classifier.output_labels", "pooling_type",
    "rope.scaling.alpha", "rope.scaling.finetuned", "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout", "vocab_size",
}  # fmt: skip
"""Keys that change no logits of these architectures in llama.cpp, without YaRN."""
_NEUTRAL = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (0.0, -1.0),
}
"""Values of other keys with which they change nothing; of all others 0, false and an empty one."""
_PER_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
_PARTLY_ROTATED = ("gemma3", "phi3")
_SCALINGS = {"phi3": ("none", "linear", "longrope")}
_VECTOR_TYPES = ("F32", "F16", "BF16")
_TYPES = {*_VECTOR_TYPES, *FORMATS, *kernels.TYPES}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")


def unsupported(source: Source) -> str | None:
    """What in a GGUF file of a known architecture no graph computes, to follow the file's name; ``None``
    where there is nothing. Damage is not looked for: building reports it."""
    if source.metadata.get("general.architecture") not in ARCHITECTURES:
        return None
    return next(chain(_features(source), _keys(source), _tensors(source)), None)


def unsupported_feature(source: Source) -> str | None:
    """As ``unsupported``, of what is known by name and would look like damage."""
    return next(_features(source), None)


def missing_tensor(source: Source) -> str | None:
    """The first tensor that the architecture needs and the file lacks."""
    architecture = ARCHITECTURES[source.metadata["general.architecture"]]
    needed = ["token_embd.weight", "output_norm.weight"]
    for layer in range(_layers(source)):
        block = f"blk.{layer}."
        fused = f"{block}attn_qkv.weight" in source.tensors
        biases = architecture.biases
        if fused and f"{block}attn_qkv.bias" in source.tensors:
            biases = ("attn_qkv",)
        names = [n for n in architecture.layer_tensors if not (fused and n in _QKV)]
        needed += [f"{block}{name}.weight" for name in names]
        needed += [f"{block}{name}.bias" for name in biases]
    return next((name for name in needed if name not in source.tensors), None)


_QKV = ("attn_q", "attn_k", "attn_v")


def _features(source: Source) -> Iterator[str]:
    metadata = source.metadata
    name = str(metadata["general.architecture"])
    if metadata.get(f"{name}.expert_count"):
        yield f"is a mixture of experts ({name}.expert_count), which the onnx runtime does not run"
    scaling = metadata.get(f"{name}.rope.scaling.type", "linear")
    if scaling not in _SCALINGS.get(name, ("none", "linear")):
        yield (
            f"has the rotary scaling {str(scaling)[:64]!r} ({name}.rope.scaling.type), which the onnx "
            "runtime does not compute"
        )
    if name not in _PARTLY_ROTATED and (reason := _partly_rotated(source, name)):
        yield reason
    for key in _PER_LAYER:
        value = metadata.get(f"{name}.{key}")
        if isinstance(value, list) and len(set(map(str, value))) > 1:
            yield f"has {name}.{key} per layer, which the onnx runtime does not compute"


def _partly_rotated(source: Source, name: str) -> str | None:
    metadata = source.metadata
    rotated = metadata.get(f"{name}.rope.dimension_count")
    hidden, heads = (
        metadata.get(f"{name}.{key}") for key in ("embedding_length", "attention.head_count")
    )
    heads = heads[0] if isinstance(heads, list) and heads else heads
    if not (isinstance(hidden, int) and isinstance(heads, int) and heads > 0):
        return None
    width = metadata.get(f"{name}.attention.key_length", hidden // heads)
    odd = not isinstance(rotated, int) or rotated % 2 or rotated > width
    if rotated in (None, width) or odd:  # what cannot be is reported as that
        return None
    return f"rotates {rotated} of {width} dimensions ({name}.rope.dimension_count), which {name} models do not"


def _keys(source: Source) -> Iterator[str]:
    name = str(source.metadata["general.architecture"])
    read = _READ | _HARMLESS | set(ARCHITECTURES[name].keys)
    for full, value in source.metadata.items():
        key = full.removeprefix(f"{name}.")
        if key == full or key in read:
            continue
        neutral: tuple[Any, ...] = _NEUTRAL.get(key, (0, 0.0, False, "", "none", [], None))
        if not any(value == each for each in neutral):
            yield (
                f"sets {full[:96]} = {str(value)[:32]}, which the onnx runtime does not take into account"
            )


def _tensors(source: Source) -> Iterator[str]:
    name, layers = str(source.metadata["general.architecture"]), _layers(source)
    architecture = ARCHITECTURES[name]
    weights = {*architecture.layer_tensors, *_QKV, "attn_qkv"}
    models = {"token_embd.weight", "output_norm.weight", "output.weight", *architecture.tensors}
    for full, info in source.tensors.items():
        match = _LAYER.fullmatch(full)
        known = full in models
        if match and int(match[1]) < layers:
            known = match[2] in (weights if match[3] == "weight" else architecture.optional_biases)
        if not known:
            yield f"has the tensor {full[:96]}, which the onnx runtime does not know in {name} models"
        elif len(info.shape) == 1 and info.type not in _VECTOR_TYPES:
            yield f"has the tensor {full} in {info.type}, which the onnx runtime takes only in {' and '.join(_VECTOR_TYPES)}"
        elif len(info.shape) > 1 and info.type not in _TYPES:
            yield f"has the tensor {full} in {info.type}, which the onnx runtime does not multiply"
    for layer in range(layers):
        block = f"blk.{layer}."
        if f"{block}attn_qkv.weight" not in source.tensors:
            continue
        biases = [f"{block}{n}.bias" for n in _QKV if f"{block}{n}.bias" in source.tensors]
        separate = [f"{block}{n}.weight" for n in _QKV if f"{block}{n}.weight" in source.tensors]
        if f"{block}attn_qkv.bias" in source.tensors or len(biases) < 3:
            separate += biases  # llama.cpp reads them only where all are there and no other
        if separate:
            yield f"has the tensor {separate[0]} beside {block}attn_qkv.weight, which does not go together"
    yield from _sizes(source, name)


def _sizes(source: Source, name: str) -> Iterator[str]:
    """Sizes that llama.cpp compares, and a graph would take from the tensors alone."""
    metadata, tensors = source.metadata, source.tensors
    width = metadata.get(f"{name}.feed_forward_length")
    width = width[0] if isinstance(width, list) and width else width
    for layer in range(_layers(source)):
        up = tensors.get(f"blk.{layer}.ffn_up.weight")
        if up is not None and up.rows != (2 * width if name == "phi3" and width else width):
            yield f"has {up.rows} rows in {up.name}, which {name}.feed_forward_length = {width} does not allow"
    tokens, embedding = metadata.get("tokenizer.ggml.tokens"), tensors.get("token_embd.weight")
    if tokens and embedding and TOKEN_IDS not in metadata and embedding.rows != len(tokens):
        yield f"has {embedding.rows} rows in token_embd.weight and {len(tokens)} in tokenizer.ggml.tokens"


def _layers(source: Source) -> int:
    """Layers that the metadata claims; 0 where it claims more than the file has tensors."""
    count = source.metadata.get(f"{source.metadata['general.architecture']}.block_count")
    return count if isinstance(count, int) and 0 < count <= len(source.tensors) else 0
