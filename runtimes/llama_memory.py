"""What a model takes of memory on llama.cpp and its forks (llama-cpp-python 0.3.36)."""

from __future__ import annotations

from edgespec.core.runtime_spec import CACHE_BYTES, ModelDimensions, RunConfiguration, RuntimeMemory

_MIB = 1 << 20
_LIBRARIES = 50 * _MIB
_CONTEXT, _TOKEN = 6 * _MIB, 340
"""llama.cpp's own, and for each token its two vocabularies."""
_LOADING_TOKEN = 210
"""For a while, for each token."""
_CACHE_STEP = 256
"""Caches are multiples of so many tokens."""
_Q8_BLOCK = 32


def cache_types_of(types: tuple[str, ...], model: ModelDimensions) -> tuple[str, ...]:
    """Values in q8_0 need flash attention and heads of whole blocks."""
    return types if model.head_dim % _Q8_BLOCK == 0 else types[:1]


def memory(
    model: ModelDimensions, run: RunConfiguration, weights: int, *, flash_attention: bool
) -> RuntimeMemory:
    """``weights``: bytes of the weights as the library keeps them."""
    chunk = run.runtime.prefill_chunk
    padded = -(-run.context // _CACHE_STEP) * _CACHE_STEP
    cache = int(model.cache_numbers * CACHE_BYTES[run.cache_type] * padded)
    layer = 4 * chunk * (3 * model.feed_forward + 6 * model.hidden)
    attention = 0 if flash_attention else 4 * chunk * model.heads * padded
    return RuntimeMemory(
        libraries=_LIBRARIES,
        runtime=_CONTEXT + _TOKEN * model.vocab_size,
        weights=weights,
        cache=cache,
        logits=2
        * 4
        * run.rows
        * model.columns,  # where they are computed, and where they are copied to
        activations=layer + attention,
        loading=cache + _LOADING_TOKEN * model.vocab_size,
    )
