"""Phi-3 and Phi-4: query, key and value are one tensor, and so are gate and up; some heads' dimensions
are not rotated (Phi-4-mini); LongRoPE (the variants with a context of 128k).

LongRoPE has two sets of divisors, for sequences up to the length that the model was first trained
with, and beyond. A graph has the first of them only, so its context ends there.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.export.architectures.common import (
    Architecture,
    Config,
    HuggingFace,
    Metadata,
    add_window,
    common,
    count,
    metadata_of,
    rope_parameters,
    window,
)

_LONG = ("longrope", "su")


def config(metadata: Metadata) -> Config:
    found = common(metadata, fused_gate=True, window=window(metadata))
    trained = count(metadata, "rope.scaling.original_context_length", found.context)
    return replace(found, context=min(found.context, trained))


ARCHITECTURE = Architecture(
    config,
    ("attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"),
    tensors=("rope_factors_short.weight", "rope_factors_long.weight"),
    keys=("rope.scaling.original_context_length",),
)


def metadata(config: HuggingFace) -> dict[str, Any]:
    found = add_window(metadata_of("phi3", config, scalings=_LONG), config)
    found.setdefault(
        "phi3.attention.sliding_window", 0
    )  # llama.cpp distinguishes Phi-3 from Phi-4 by it
    rope, hidden = rope_parameters(config), count(found, "embedding_length")
    head_dim = count(found, "attention.key_length", hidden // count(found, "attention.head_count"))
    rotated = rope.get("partial_rotary_factor", 1.0)
    if not isinstance(rotated, (int, float)) or not 0 < rotated <= 1:
        raise UserError(f"config.json says partial_rotary_factor = {str(rotated)[:64]}")
    found["phi3.rope.dimension_count"] = int(head_dim * rotated)
    context = count(found, "context_length")
    trained = config.get("original_max_position_embeddings")
    trained = rope.get("original_max_position_embeddings", trained) or context
    found["phi3.rope.scaling.original_context_length"] = trained
    if rope["rope_type"] in _LONG:
        factor = context / count(found, "rope.scaling.original_context_length")
        gain = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 < trained else 1.0
        given = rope.get("attention_factor")
        found["phi3.rope.scaling.attn_factor"] = gain if given is None else given
    return found


def rope_divisors(config: HuggingFace, kind: str, dims: int) -> npt.NDArray[np.float32] | None:
    """LongRoPE's divisors, ``short`` or ``long``; ``None`` where the model has none."""
    rope = rope_parameters(config)
    if rope["rope_type"] not in _LONG:
        return None
    found = rope.get(f"{kind}_factor")
    numbers = found if isinstance(found, list) else []
    if len(numbers) != dims // 2 or not all(
        isinstance(number, (int, float)) and 0 < number < 1e9 for number in numbers
    ):
        raise UserError(f"config.json has no {dims // 2} numbers of {kind}_factor")
    return np.array(numbers, np.float32)
