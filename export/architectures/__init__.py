"""The architectures: their metadata in GGUF and in Hugging Face's format. One small file each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgespec.errors import UserError
from edgespec.export.architectures import gemma3, llama, mistral, phi3, qwen2, qwen3, smollm
from edgespec.export.architectures.common import Architecture, Config, HuggingFace, Metadata

ARCHITECTURES: dict[str, Architecture] = {
    "llama": llama.ARCHITECTURE,
    "smollm3": smollm.ARCHITECTURE,
    "qwen2": qwen2.ARCHITECTURE,
    "qwen3": qwen3.ARCHITECTURE,
    "gemma3": gemma3.ARCHITECTURE,
    "phi3": phi3.ARCHITECTURE,
}
"""By GGUF's names."""

MODEL_TYPES: dict[str, Callable[[HuggingFace], dict[str, Any]]] = {
    "llama": llama.metadata,
    "mistral": mistral.metadata,
    "smollm3": smollm.metadata,
    "qwen2": qwen2.metadata,
    "qwen3": qwen3.metadata,
    "gemma3_text": gemma3.metadata,
    "phi3": phi3.metadata,
}
"""By the ``model_type`` of ``config.json``: to GGUF's metadata."""


def read_config(metadata: Metadata) -> Config:
    """The configuration that the metadata describes. Raises ``UserError`` for what is not supported."""
    name = str(metadata.get("general.architecture", ""))
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"the onnx runtime has no architecture {name[:64]!r} (it has {known}); "
            "try --runtime llama-cpp"
        )
    return ARCHITECTURES[name].config(metadata)
