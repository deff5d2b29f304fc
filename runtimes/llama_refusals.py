"""GGUF files with which llama.cpp would end the process, and what its builds do not read."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.core.runtime_spec import ModelHeader
from edgespec.models.gguf import DROPPED_FORMATS

_MAX_LAYERS, _MAX_EXPERTS = 512, 1024
"""LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS."""
_SCALINGS = ("none", "linear", "yarn", "longrope")
_WHOLLY_ROTATED = (
    "apertus", "arcee", "baichuan", "dream", "ernie4_5", "exaone", "exaone4", "granite",
    "internlm2", "llada", "llama", "mistral3", "nemotron", "olmo", "olmo2", "olmoe", "orion", "qwen2",
    "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "seed_oss", "smollm3", "starcoder2", "xverse",
)  # fmt: skip
"""Architectures with ``GGML_ASSERT(n_embd_head == n_rot)``, and for keys and values of one length."""
_ONE_LENGTH = (*_WHOLLY_ROTATED, "gemma", "gemma2", "gemma3", "phi2", "phi3", "stablelm")
_EPSILON = "attention.layer_norm_rms_epsilon"


def damage(file: ModelHeader) -> str | None:
    """Figures that llama.cpp aborts on and no model has; ``None`` where there are none."""
    layers, epsilon = _values(file, "block_count", 1), _values(file, _EPSILON, 0.0)
    heads, shared = (
        _values(file, "attention.head_count", 1),
        _values(file, "attention.head_count_kv", 1),
    )
    if not ((layers >= 1) & (layers <= _MAX_LAYERS)).all():
        return f"claims {layers[0]} layers"
    comparable = 1 in (heads.size, shared.size) or heads.size == shared.size
    if comparable and (heads % np.maximum(shared, 1)).any():
        return f"shares {shared} key heads among {heads}"
    if not (epsilon >= 0).all():
        return f"claims a norm's epsilon of {epsilon[0]}"
    tokens = file.metadata.get("tokenizer.ggml.tokens", [])
    words = [str(token).partition("\0")[0] for token in tokens if token]  # as C reads them
    if len(set(words)) != len(words):
        return "has a vocabulary with duplicates"
    return None


def why_not(file: ModelHeader) -> str | None:
    """Why llama.cpp and its forks must not load a file that may be whole, to follow its name."""
    return _why_no_types(file) or _why_no_rotation(file) or _why_no_experts(file)


def _why_no_types(file: ModelHeader) -> str | None:
    for name, tensor in file.tensors.items():
        if tensor.type in DROPPED_FORMATS:
            return f"has tensors in {tensor.type}, a format that llama.cpp dropped; download it in Q4_0"
        vector = len(tensor.shape) == 1
        if vector and tensor.type != "F32" and name.endswith(("norm.weight", ".bias")):
            return f"has {name} in {tensor.type}, and llama.cpp takes norms and biases in F32 alone"
        if name.startswith("rope_f") and tensor.type != "F32":
            return f"has {name} in {tensor.type}, and llama.cpp takes it in F32 alone"
    return None


def _why_no_rotation(file: ModelHeader) -> str | None:
    prefix = file.architecture
    scaling = file.metadata.get(f"{prefix}.rope.scaling.type", "linear")
    if scaling not in _SCALINGS:
        return f"has the rotary scaling {str(scaling)[:64]!r} ({prefix}.rope.scaling.type), which llama.cpp does not know"
    heads = max(1, int(_values(file, "attention.head_count", 1).flat[0]))
    usual = int(_values(file, "embedding_length", 0).flat[0]) // heads
    key, value = (
        int(_values(file, f"attention.{each}_length", usual).flat[0]) for each in ("key", "value")
    )
    rotated = int(_values(file, "rope.dimension_count", key).flat[0])
    if prefix in _ONE_LENGTH and key != value:
        return f"has {prefix}.attention.key_length = {key} and value_length = {value}, which llama.cpp takes only alike"
    if rotated != key and (prefix in _WHOLLY_ROTATED or rotated % 2):
        return f"has {prefix}.rope.dimension_count = {rotated} of heads of {key}, which llama.cpp does not take"
    return None


def _why_no_experts(file: ModelHeader) -> str | None:
    """llama.cpp's assertions in ``load_hparams``."""
    total, used, groups, predicted, layers = (
        int(_values(file, key, 0).max())
        for key in (
            "expert_count", "expert_used_count", "expert_group_count", "nextn_predict_layers", "block_count",
        )
    )  # fmt: skip
    if file.architecture.startswith("hunyuan") and total <= 1:
        total = used = 0  # as llama.cpp has it
    if not 0 <= used <= total <= _MAX_EXPERTS or (total > 0) != (used > 0):
        return f"has {file.architecture}.expert_count = {total} and expert_used_count = {used}, which does not go together"
    groups_used = int(_values(file, "expert_group_used_count", 0).max())
    uneven = groups > 1 and (total % groups or not 0 < groups_used < groups)
    if uneven or (groups and groups >= total):
        return f"has {groups} groups of {total} experts ({file.architecture}.expert_group_count), which does not go together"
    if predicted > layers:
        return f"has {file.architecture}.nextn_predict_layers = {predicted} of {layers} layers"
    return None


def _values(file: ModelHeader, key: str, default: float) -> npt.NDArray[Any]:
    """One figure, or one a layer; the default where it is no number (llama.cpp refuses that by itself)."""
    try:
        found = np.atleast_1d(file.metadata.get(f"{file.architecture}.{key}", default))
    except ValueError:  # nested lists of different lengths
        return np.atleast_1d(default)
    usable = found.dtype.kind in "iuf" and found.size > 0
    return found if usable else np.atleast_1d(default)
