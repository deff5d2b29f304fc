"""Qwen3: query and key are normalized per head."""

from __future__ import annotations

from typing import Any

from edgespec.export.architectures import qwen2
from edgespec.export.architectures.common import LAYER_TENSORS, Architecture, HuggingFace

ARCHITECTURE = Architecture(qwen2.config, (*LAYER_TENSORS, "attn_q_norm", "attn_k_norm"))


def metadata(config: HuggingFace) -> dict[str, Any]:
    return qwen2.metadata(config, "qwen3")
