"""Gemma 3: scaled embeddings, norms before and after, five local layers to a global one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgespec.errors import UserError
from edgespec.export.architectures.common import (
    LAYER_TENSORS,
    Architecture,
    Config,
    HuggingFace,
    Metadata,
    common,
    count,
    metadata_of,
    read,
    rope_parameters,
    unsupported,
)
from edgespec.export.source import KEPT_LAYERS

_GLOBAL_EVERY = 6
_LAYERS_OF_27B = 62
"""The one size with scores divided by the root of ``hidden / heads``: GGUF has no key for it."""


def config(metadata: Metadata) -> Config:
    pattern = metadata.get("gemma3.attention.sliding_window_pattern")
    variant = (
        {"local_layers": _local_layers(metadata, pattern)}
        if isinstance(pattern, list)
        else {"global_every": count(metadata, "attention.sliding_window_pattern", _GLOBAL_EVERY)}
    )
    found = common(
        metadata,
        activation="gelu",
        embedding_scale=float(read(metadata, "embedding_length")) ** 0.5,
        window=count(metadata, "attention.sliding_window"),
        rope_local_base=read(metadata, "rope.freq_base_swa", 10000.0),
        **variant,
    )
    is_largest = found.layers == _LAYERS_OF_27B
    return replace(found, score_dims=found.hidden // found.heads) if is_largest else found


def _local_layers(metadata: Metadata, pattern: list[Any]) -> tuple[bool, ...]:
    whole = 1 + max(metadata.get(KEPT_LAYERS) or [count(metadata, "block_count") - 1])
    if len(pattern) < whole or not all(value in (0, 1) for value in pattern):
        raise UserError(
            f"the model file says gemma3.attention.sliding_window_pattern = {str(pattern)[:64]}, "
            f"which is no list of {whole} layers"
        )
    return tuple(map(bool, pattern))


ARCHITECTURE = Architecture(
    config,
    (*LAYER_TENSORS, "attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"),
    keys=("attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa"),
)


def metadata(config: HuggingFace) -> dict[str, Any]:
    found = metadata_of("gemma3", config, activation="gelu_pytorch_tanh")
    found["gemma3.attention.sliding_window"] = config.get("sliding_window")
    every, kinds = _pattern(config), config.get("layer_types")
    found["gemma3.attention.sliding_window_pattern"] = every
    if kinds is not None and kinds != [
        "sliding_attention" if (i + 1) % every else "full_attention" for i in range(len(kinds))
    ]:
        raise unsupported(f"layer_types {str(kinds)[:64]}")
    local = config.get("rope_local_base_freq", 10000.0)
    if "sliding_attention" in (config.get("rope_parameters") or {}):
        rope = rope_parameters(config, "sliding_attention")
        if rope["rope_type"] != "default":
            raise unsupported(f"rotary scaling {str(rope['rope_type'])[:64]!r} in local layers")
        local = rope.get("rope_theta", local)
    found["gemma3.rope.freq_base_swa"] = float(local) if isinstance(local, int) else local
    for name in (
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "use_bidirectional_attention",
    ):
        if config.get(name):
            raise unsupported(name)
    if (scale := config.get("query_pre_attn_scalar")) != config.get("head_dim"):
        raise unsupported(f"query_pre_attn_scalar {str(scale)[:64]}, which is not head_dim,")
    return found


def _pattern(config: HuggingFace) -> int:
    """Every how many layers one is global: from its own key, or from the list of layers."""
    kinds = config.get("layer_types") or []
    if isinstance(kinds, list) and "full_attention" in kinds:
        return kinds.index("full_attention") + 1
    every = config.get("sliding_window_pattern", config.get("_sliding_window_pattern"))
    return every if isinstance(every, int) and every > 0 else _GLOBAL_EVERY
