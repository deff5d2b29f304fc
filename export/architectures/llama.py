"""Llama, and all that GGUF calls by its name (Mistral, SmolLM): rotary pairs are neighbours, as GGUF
stores their query and key rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.export.architectures.common import (
    Architecture,
    Config,
    HuggingFace,
    Metadata,
    common,
    metadata_of,
    rope_parameters,
    window,
)


def config(metadata: Metadata) -> Config:
    return common(metadata, rope_interleaved=True, window=window(metadata))


ARCHITECTURE = Architecture(
    config,
    optional_biases=(
        "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    ),
    tensors=("rope_freqs.weight",),
)  # fmt: skip


def metadata(config: HuggingFace) -> dict[str, Any]:
    return metadata_of("llama", config, scalings=("llama3",))


def rope_divisors(config: HuggingFace, base: float, dims: int) -> npt.NDArray[np.float32] | None:
    """The divisors of the rotary frequencies in Llama 3.1: long waves by the factor, short ones by 1.

    https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py
    (``_compute_llama3_parameters``).
    """
    rope = rope_parameters(config)
    if rope["rope_type"] != "llama3":
        return None
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    numbers = [rope.get(name) for name in names]
    if not all(isinstance(number, (int, float)) and 0 < number < 1e9 for number in numbers):
        raise UserError(
            f"config.json says {dict(zip(names, numbers, strict=True))}, which cannot be"
        )
    factor, low, high, context = map(float, numbers)  # type: ignore[arg-type]
    if low >= high:
        raise UserError(f"config.json says low_freq_factor {low} and high_freq_factor {high}")
    turns = context * base ** (-np.arange(0, dims, 2) / dims) / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
