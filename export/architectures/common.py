"""The decoder-only transformer that every architecture here is a variant of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgespec.errors import UserError

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Config:
    """Hyperparameters, with the names of the literature."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_epsilon: float
    rope_base: float
    rope_dims: int
    rope_scale: float = 1.0
    """Positions are divided by this (linear scaling)."""
    rope_interleaved: bool = False
    """Whether rotary pairs are neighbours (2i, 2i+1) or halves (i, i + d/2)."""
    activation: str = "silu"
    embedding_scale: float = 1.0
    window: int = 0
    """Local layers attend to this many last tokens; 0 where every layer is global."""
    global_every: int = 1
    """Every so-many-th layer is global."""
    rope_local_base: float = 0.0

    def is_local(self, layer: int) -> bool:
        return self.window > 0 and (layer + 1) % self.global_every != 0


def count(metadata: Metadata, key: str, default: int | None = None) -> int:
    """The whole number at ``ARCHITECTURE.key``; it must be positive."""
    value = read(metadata, key, default)
    if not isinstance(value, int):
        name = f"{metadata['general.architecture']}.{key}"
        raise UserError(f"the model file says {name} = {value!r}, which is no count")
    return value


def read(metadata: Metadata, key: str, default: float | None = None) -> float:
    """The number at ``ARCHITECTURE.key``; it must be positive."""
    name = f"{metadata['general.architecture']}.{key}"
    value = metadata.get(name, default)
    if value is None:
        raise UserError(f"the model file does not say {name}; is it a complete language model?")
    if not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise UserError(f"the model file says {name} = {str(value)[:64]!r}, which cannot be")
    return value


def common(metadata: Metadata, **variant: Any) -> Config:
    """A ``Config`` from the keys that all architectures share, and what is special to this one."""
    scaling = metadata.get(f"{metadata['general.architecture']}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UserError(
            f"rotary scaling {str(scaling)[:64]!r} is not supported on the onnx runtime; "
            "try --runtime llama-cpp"
        )
    hidden, heads = count(metadata, "embedding_length"), count(metadata, "attention.head_count")
    head_dim = count(metadata, "attention.key_length", hidden // heads)
    if count(metadata, "attention.value_length", head_dim) != head_dim:
        raise UserError("keys and values of different lengths are not supported")
    config = Config(
        architecture=metadata["general.architecture"],
        layers=count(metadata, "block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=count(metadata, "attention.head_count_kv", heads),
        head_dim=head_dim,
        context=count(metadata, "context_length"),
        norm_epsilon=read(metadata, "attention.layer_norm_rms_epsilon"),
        rope_base=read(metadata, "rope.freq_base", 10000.0),
        rope_dims=count(metadata, "rope.dimension_count", head_dim),
        rope_scale=read(metadata, "rope.scaling.factor", 1.0) if scaling == "linear" else 1.0,
        **variant,
    )
    if config.heads % config.kv_heads or config.rope_dims % 2 or config.rope_dims > head_dim:
        raise UserError(
            f"{config.heads} heads, {config.kv_heads} key-value heads and {config.rope_dims} rotary "
            f"dimensions of {head_dim} do not go together"
        )
    return config
