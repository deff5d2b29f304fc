"""The decoder-only transformer that every architecture here is a variant of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgespec.errors import UserError
from edgespec.export.source import KEPT_LAYERS, WINDOW

Metadata = Mapping[str, Any]
HuggingFace = Mapping[str, Any]
"""The contents of a ``config.json``."""

LAYER_TENSORS = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down",
)  # fmt: skip
"""The matrices and norms of a layer, by GGUF's names, in most architectures."""


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
    global_every: int = 0
    """Every so-many-th layer is global; 0 where none is."""
    local_layers: tuple[bool, ...] = ()
    """For each layer whether it is local, where the file has a list; then ``global_every`` does not count."""
    rope_local_base: float = 0.0
    """Local layers rotate with this base; 0 where they do as the global ones."""
    unrotated_every: int = 0
    """Every so-many-th layer has no rotary embedding; 0 where all have."""
    rope_gain: float = 1.0
    """Rotated queries and keys are multiplied by this (LongRoPE)."""
    score_dims: int = 0
    """Attention's scores are divided by the root of this; 0: of ``head_dim``."""
    fused_gate: bool = False
    """Whether the gate's rows are the first half of the tensor ``ffn_up``."""
    kept_layers: tuple[int, ...] = ()
    """For a pruned model: each layer's index in the whole model."""

    @property
    def attention_scale(self) -> float:
        return float((self.score_dims or self.head_dim) ** -0.5)

    def is_local(self, layer: int) -> bool:
        if self.local_layers:
            return self.window > 0 and self.local_layers[self._original(layer)]
        return self.window > 0 and not self._is_nth(layer, self.global_every)

    def is_rotated(self, layer: int) -> bool:
        return not self._is_nth(layer, self.unrotated_every)

    def _is_nth(self, layer: int, period: int) -> bool:
        return period > 0 and (self._original(layer) + 1) % period == 0

    def _original(self, layer: int) -> int:
        return self.kept_layers[layer] if self.kept_layers else layer


@dataclass(frozen=True)
class Architecture:
    """One of GGUF's architectures: how its metadata is read, and what its layers consist of."""

    config: Callable[[Metadata], Config]
    layer_tensors: tuple[str, ...] = LAYER_TENSORS
    biases: tuple[str, ...] = ()
    """Tensors of a layer that must have a bias."""
    optional_biases: tuple[str, ...] = ("attn_q", "attn_k", "attn_v", "attn_qkv")
    """Tensors of a layer that may have a bias in a GGUF file, as llama.cpp has it."""
    tensors: tuple[str, ...] = ()
    """Other tensors that a GGUF file may have, besides embedding, norm and head."""
    keys: tuple[str, ...] = ()
    """Keys that only this architecture reads."""


def count(metadata: Metadata, key: str, default: int | None = None) -> int:
    """The whole number at ``ARCHITECTURE.key``, or its equal numbers for all layers; it must be positive."""
    value = read(_without_lists(metadata, key), key, default)
    if not isinstance(value, int):
        name = f"{metadata['general.architecture']}.{key}"
        raise UserError(f"the model file says {name} = {value!r}, which is no count")
    return value


def _without_lists(metadata: Metadata, key: str) -> Metadata:
    """With one number at ``ARCHITECTURE.key`` where there is the same one for each layer."""
    prefix = metadata["general.architecture"]
    value = metadata.get(f"{prefix}.{key}")
    if isinstance(value, list) and value == value[:1] * metadata.get(f"{prefix}.block_count", 0):
        return {**metadata, f"{prefix}.{key}": value[0]}
    return metadata


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
        rope_scale=_rope_scale(metadata),
        rope_gain=read(metadata, "rope.scaling.attn_factor", 1.0),
        kept_layers=_kept_layers(metadata),
        **variant,
    )
    if config.heads % config.kv_heads or config.rope_dims % 2 or config.rope_dims > head_dim:
        raise UserError(
            f"{config.heads} heads, {config.kv_heads} key-value heads and {config.rope_dims} rotary "
            f"dimensions of {head_dim} do not go together"
        )
    return config


def _rope_scale(metadata: Metadata) -> float:
    """What positions are divided by. As in llama.cpp a model without a type of scaling has the linear one,
    files of 2023 have the factor under another key, and a factor of 0 is 1."""
    prefix = f"{metadata['general.architecture']}.rope."
    if metadata.get(f"{prefix}scaling.type") == "none":
        return 1.0
    key = "scaling.factor" if f"{prefix}scaling.factor" in metadata else "scale_linear"
    return read(metadata, f"rope.{key}") if metadata.get(prefix + key) else 1.0


def window(metadata: Metadata) -> int:
    """The sliding window of a model with local layers only; 0 where it has none.

    It has one under ``WINDOW``. llama.cpp ignores ``attention.sliding_window`` of these architectures.
    """
    size = metadata.get(WINDOW) or 0
    if not isinstance(size, int) or size < 0:
        raise UserError(f"the model file says {WINDOW} = {str(size)[:64]!r}, which cannot be")
    return size if size < count(metadata, "context_length") else 0


def _kept_layers(metadata: Metadata) -> tuple[int, ...]:
    if (kept := metadata.get(KEPT_LAYERS)) is None:
        return ()
    if (
        not isinstance(kept, list)
        or len(kept) != count(metadata, "block_count")
        or not all(isinstance(layer, int) and layer >= 0 for layer in kept)
    ):
        raise UserError(f"the model file says {KEPT_LAYERS} = {str(kept)[:64]}, which cannot be")
    return tuple(kept)


# From Hugging Face's config.json to GGUF's metadata.

_KEYS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}


def metadata_of(
    architecture: str, config: HuggingFace, scalings: tuple[str, ...] = (), activation: str = "silu"
) -> dict[str, Any]:
    """GGUF's metadata for what most architectures have in common.

    ``scalings`` are the kinds of rotary scaling that the caller sees to, besides none and linear.
    Values are checked when the metadata is read (``read_config``).
    """
    found: dict[str, Any] = {"general.architecture": architecture}
    for name, key in _KEYS.items():
        if (value := config.get(name)) is not None:
            found[f"{architecture}.{key}"] = value
    if (head_dim := config.get("head_dim")) is not None:
        found[f"{architecture}.attention.value_length"] = head_dim
        found[f"{architecture}.rope.dimension_count"] = head_dim
    rope = rope_parameters(config)
    found[f"{architecture}.rope.freq_base"] = _real(rope.get("rope_theta", 10000.0))
    kind = rope["rope_type"]
    if kind == "linear":
        found[f"{architecture}.rope.scaling.type"] = kind
        found[f"{architecture}.rope.scaling.factor"] = _real(rope.get("factor"))
    elif kind != "default" and kind not in scalings:
        raise unsupported(f"rotary scaling {str(kind)[:64]!r}")
    if rope.get("partial_rotary_factor", 1) != 1 and architecture != "phi3":
        raise unsupported("partial_rotary_factor")
    found_activation = config.get("hidden_act", config.get("hidden_activation", activation))
    if found_activation != activation:
        raise unsupported(f"the activation {str(found_activation)[:64]!r}")
    return found


def add_window(metadata: dict[str, Any], config: HuggingFace) -> dict[str, Any]:
    """With the sliding window of all layers, if there is one."""
    architecture, size = metadata["general.architecture"], config.get("sliding_window")
    if size is not None and size != 0:
        metadata[f"{architecture}.attention.sliding_window"] = metadata[WINDOW] = size
    return metadata


def rope_parameters(config: HuggingFace, layers: str = "full_attention") -> dict[str, Any]:
    """The rotary embedding's parameters, as transformers 5 writes them, or 4; ``rope_type`` is set."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(found, dict) and layers in found:
        found = found[layers]
    if not isinstance(found, dict):
        raise unsupported(f"the rotary parameters {str(found)[:64]}")
    older = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if key in config}
    return {**older, "rope_type": found.get("type", "default"), **found}


def unsupported(what: str) -> UserError:
    """Features of a ``config.json`` that no architecture here supports."""
    return UserError(f"{what} in config.json is not supported; try --via optimum")


def _real(value: Any) -> Any:
    """JSON writes whole numbers without a point; what is no number is refused when it is read."""
    return float(value) if isinstance(value, int) else value
