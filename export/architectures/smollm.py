"""SmolLM3: Llama without a rotary embedding in every fourth layer. (SmolLM 1 and 2 are Llama.)"""

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

_UNROTATED_EVERY = 4  # GGUF has no key for it


def config(metadata: Metadata) -> Config:
    return common(metadata, rope_interleaved=True, unrotated_every=_UNROTATED_EVERY)


ARCHITECTURE = Architecture(config)


def metadata(config: HuggingFace) -> dict[str, Any]:
    found = metadata_of("smollm3", config)
    rotated = config.get("no_rope_layers")  # 1 means that the layer *has* rotary embeddings
    every = config.get("no_rope_layer_interval", _UNROTATED_EVERY)
    if every != _UNROTATED_EVERY and rotated is None:
        raise unsupported(f"no_rope_layer_interval {str(every)[:64]}")
    if rotated is not None and (
        not isinstance(rotated, list)
        or rotated != [int((i + 1) % _UNROTATED_EVERY != 0) for i in range(len(rotated))]
    ):
        raise unsupported(f"no_rope_layers {str(rotated)[:64]}")
    if config.get("use_sliding_window"):
        raise unsupported("a sliding window for smollm3")
    return found
