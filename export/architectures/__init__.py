"""What each architecture is, read from a GGUF file's metadata. One small file each."""

from __future__ import annotations

from collections.abc import Callable

from edgespec.errors import UserError
from edgespec.export.architectures import gemma3, llama, qwen2, qwen3
from edgespec.export.architectures.common import Config, Metadata

ARCHITECTURES: dict[str, Callable[[Metadata], Config]] = {
    "llama": llama.config,
    "qwen2": qwen2.config,
    "qwen3": qwen3.config,
    "gemma3": gemma3.config,
}


def read_config(metadata: Metadata) -> Config:
    """The configuration that the metadata describes. Raises ``UserError`` for what is not supported."""
    name = str(metadata.get("general.architecture", ""))
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"the onnx runtime has no architecture {name[:64]!r} (it has {known}); "
            "try --runtime llama-cpp"
        )
    return ARCHITECTURES[name](metadata)
