"""Gemma 3: scaled embeddings, norms before and after, five local layers to a global one."""

from __future__ import annotations

from typing import Any

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

_GLOBAL_EVERY = 6


def config(metadata: Metadata) -> Config:
    return common(
        metadata,
        activation="gelu",
        embedding_scale=float(read(metadata, "embedding_length")) ** 0.5,
        window=count(metadata, "attention.sliding_window"),
        global_every=count(metadata, "attention.sliding_window_pattern", _GLOBAL_EVERY),
        rope_local_base=read(metadata, "rope.freq_base_swa", 10000.0),
    )


ARCHITECTURE = Architecture(
    config,
    (*LAYER_TENSORS, "attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"),
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
