"""Mistral: Llama with a sliding window over all layers. GGUF calls it llama."""

from __future__ import annotations

from typing import Any

from edgespec.export.architectures import llama
from edgespec.export.architectures.common import HuggingFace, add_window


def metadata(config: HuggingFace) -> dict[str, Any]:
    return add_window(llama.metadata(config), config)
