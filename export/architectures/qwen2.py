"""Qwen2 and Qwen2.5: biases on query, key and value."""

from __future__ import annotations

from typing import Any

from edgespec.export.architectures.common import (
    Architecture,
    Config,
    HuggingFace,
    Metadata,
    common,
    metadata_of,
    unsupported,
)


def config(metadata: Metadata) -> Config:
    return common(metadata)


ARCHITECTURE = Architecture(config, biases=("attn_q", "attn_k", "attn_v"), tensors=("output.bias",))


def metadata(config: HuggingFace, architecture: str = "qwen2") -> dict[str, Any]:
    if config.get("use_sliding_window"):  # of some layers
        raise unsupported(f"a sliding window for {architecture}")
    return metadata_of(architecture, config)
