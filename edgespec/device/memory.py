"""What a model takes of memory, byte by byte, before anything is loaded (after SpecMemo).

The sizes come from the model's metadata. The constants were measured on Linux, x86-64, Python 3.11,
onnxruntime 1.31 and llama-cpp-python 0.3.36, in processes of their own (``bench/memory.py``), from
SmolLM2-135M (49k tokens of vocabulary, 94 MiB) to Qwen2.5-Coder-1.5B (152k, 1066 MiB).

What is counted is resident memory, as the system shows it: pages of files that are mapped count.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from edgespec.core.runtime import MAX_ROWS, prefill_chunk
from edgespec.device.machine import cpu_features
from edgespec.runtimes.llama_sequences import does_without_flash_attention

KIB, MIB = 1 << 10, 1 << 20


DRAFT_ROWS = 2
"""Rows of logits of a draft model's largest pass: it is timed on a prompt's."""
CACHE_BYTES = {"float32": 4.0, "float16": 2.0, "q8_0": 34 / 32}
"""Of a number in the cache; q8_0 has blocks of 32 with a float16 scale."""
CACHE_TYPES = {
    "onnx": ("float32",),
    "llama-cpp": ("float16", "q8_0"),
    "ik-llama-cpp": ("float16", "q8_0"),
}
"""What each runtime keeps keys and values in, the usual one first.

onnx: the CPU kernel of ``GroupQueryAttention`` also takes float16 with queries in float16, and int8
and int4 with scales fixed beforehand, in ONNX Runtime 1.31; the graphs built here have
float32. llama.cpp: values in q8_0 need its flash attention, which it turns on by itself,
and heads of whole blocks.
"""
_Q8_BLOCK = 32

_PYTHON = {"onnx": 57 * MIB, "llama-cpp": 50 * MIB, "ik-llama-cpp": 50 * MIB}
"""The interpreter, the packages that answering imports and what they map of their libraries."""
_SECOND_RUNTIME = 8 * MIB
_TOKENIZER = (10 * MIB, 254)
"""Its library, its merges and words; and so much more for each token."""
_READING = (10 * MIB, 910)
"""What reading a GGUF file's vocabulary takes for a while, and for each token."""
_ENGINE = 8 * MIB
"""Chat template, statistics and the rest that comes with the first answer."""
_ONNX_SESSION = (15 * MIB, 12 * KIB)
"""A session, and for each matrix."""
_ONNX_LOADING = 60 * MIB
"""Of the weights' file, what was read and is not given back yet while it is loaded, at most."""
_TABLES = 4 * MIB
"""Rows of the embedding that are held, and the pages of rotary tables in use."""
_LLAMA_CONTEXT = (6 * MIB, 340)
"""llama.cpp's own, and for each token its two vocabularies."""
_LLAMA_LOADING = 210
"""For a while, for each token."""
_LLAMA_PAD = 256
"""Its caches are multiples of so many tokens."""
_X86_REPACKED = ("Q4_0", "Q4_K", "IQ4_NL", "MXFP4")
_ARM_REPACKED = (*_X86_REPACKED, "Q5_K", "Q6_K", "Q8_0")
_REPACKED = {
    "avx2": dict.fromkeys(_X86_REPACKED, 0.0),
    "avx512f": {"Q2_K": 0.0},
    **dict.fromkeys(("asimddp", "dotprod"), dict.fromkeys(_ARM_REPACKED, 0.0)),
    "amx_int8": {
        "Q4_0": 0.0, "Q4_1": 0.0, "Q6_K": 0.0,
        "Q8_0": 4 / 32, "Q4_K": 4 / 256, "Q5_K": 4 / 256, "IQ4_XS": 2 / 256,
    },
}  # fmt: skip
"""What llama.cpp lays out anew for a processor's kernels, and the bytes that this adds to a weight
(``ggml-cpu/repack.cpp``, ``amx/mmq.cpp``). A build that does not use the feature takes less."""
_TABLE_BYTES = 640
"""Of a suffix automaton, at most, and of lists of tokens, for each token of context."""
NGRAM_CACHE_BYTES = 4 * MIB
"""Of the n-gram cache, where there is a budget; as much again while it is saved."""
_SAMPLING_ROWS = 4
"""Rows of the vocabulary's size that sampling works on: one row of logits at a time."""
_BUILT, _BUILDING = 24 * MIB, 106 * MIB
"""What stays of having built an onnx model (the libraries that it imports, and memory in pieces too
small to be given back), and what building it takes more, beside the pages of its source."""


@dataclass(frozen=True)
class ModelDimensions:
    """The sizes of a model that its memory follows from."""

    vocab_size: int
    """Tokens of its tokenizer."""
    columns: int
    """Of its logits: less, where its head was trimmed."""
    context: int
    cache_numbers: int
    """Keys and values of one token, in all layers."""
    heads: int
    head_dim: int
    hidden: int
    feed_forward: int
    matrices: int
    """Products that a pass computes."""
    stored_bytes: int
    """The weights as they are stored."""
    llama_bytes: int
    """As llama.cpp keeps them on this processor."""
    packed_bytes: int
    """As ONNX Runtime keeps them: codes, scales and the sums of their blocks, without the embedding."""
    largest_bytes: int
    """The largest of its packed matrices."""


@dataclass(frozen=True)
class Memory:
    """Peak resident memory in bytes, what for."""

    python: int
    tokenizer: int
    runtime: int
    weights: int
    cache: int
    logits: int
    activations: int
    tables: int
    """Of the drafters that copy from the context."""
    draft_weights: int = 0
    draft_cache: int = 0
    draft_rest: int = 0
    """The draft model's runtime, logits and activations."""
    loading: int = 0
    """What loading (or building) takes beyond all that, for a while."""

    @property
    def total(self) -> int:
        return sum(bytes for _, bytes in self.components())

    @property
    def generation(self) -> int:
        """All but the weights."""
        return self.total - self.weights - self.draft_weights

    def components(self) -> list[tuple[str, int]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


@dataclass(frozen=True)
class RunConfiguration:
    """How a model is run: all that its memory depends on besides its shape."""

    runtime: str
    context: int
    cache_type: str
    rows: int = MAX_ROWS
    """Rows of logits in the largest pass."""
    built: bool = True
    """onnx: whether the model was built before."""


def predict(
    shape: ModelDimensions,
    use: RunConfiguration,
    draft: tuple[ModelDimensions, RunConfiguration] | None = None,
    tables: bool = True,
) -> Memory:
    """Peak resident memory of a process with its context full.

    ``draft`` is the model that drafts, if one does; ``tables``: whether the context is searched,
    and answers are learnt from.
    """
    python = _PYTHON[use.runtime] + _ENGINE
    if any((u.runtime, u.built) == ("onnx", False) for u in (use, *([draft[1]] if draft else []))):
        python += _BUILT
    tokenizer = _linear(_TOKENIZER, shape.vocab_size)
    runtime, weights, cache, logits, activations = _parts(shape, use)
    tables_bytes = _TABLE_BYTES * use.context + 2 * NGRAM_CACHE_BYTES if tables else 0
    logits += 4 * _SAMPLING_ROWS * shape.columns
    reading = python + tokenizer + _linear(_READING, shape.vocab_size)
    if draft:
        drafting, own = draft
        if own.runtime != use.runtime:
            python += _SECOND_RUNTIME
        rest, draft_weights, draft_cache, *others = _parts(drafting, own)
        draft_rest = rest + sum(others) + 4 * use.rows * shape.columns  # what it drew from
    else:
        draft_weights = draft_cache = draft_rest = 0
    loading = python + tokenizer + runtime + weights + _loading(shape, use)
    loading += draft_weights + draft_rest
    if draft and (own.runtime, own.built) == ("onnx", False):
        loading = max(loading, python + tokenizer + _BUILDING + drafting.stored_bytes)
    if (use.runtime, use.built) == ("onnx", False):
        building = python + tokenizer + _BUILDING + shape.stored_bytes
        loading = max(loading, building + draft_weights + draft_rest)
    used = Memory(
        python, tokenizer, runtime, weights, cache, logits, activations, tables_bytes,
        draft_weights, draft_cache, draft_rest,
    )  # fmt: skip
    extra = max(0, max(loading, reading) - used.total)
    return Memory(**{**dict(used.components()), "loading": extra})


def _parts(shape: ModelDimensions, use: RunConfiguration) -> tuple[int, int, int, int, int]:
    """Of one model: its runtime's own, weights, cache, logits, activations."""
    numbers = shape.cache_numbers * CACHE_BYTES[use.cache_type]
    row = 4 * shape.columns
    # what is alive at once in a layer, and what attention makes of the whole context
    chunk = prefill_chunk(use.runtime)
    layer = 4 * chunk * (3 * shape.feed_forward + 6 * shape.hidden)
    if use.runtime == "onnx":
        runtime = _linear(_ONNX_SESSION, shape.matrices) + _TABLES
        attention = 2 * 4 * chunk * shape.heads * use.context
        cache = int(numbers * (use.context + MAX_ROWS))
        return runtime, shape.packed_bytes, cache, use.rows * row, layer + attention
    padded = -(-use.context // _LLAMA_PAD) * _LLAMA_PAD
    logits = 2 * use.rows * row  # where they are computed, and copied to
    runtime = _linear(_LLAMA_CONTEXT, shape.vocab_size)
    if use.runtime == "ik-llama-cpp":
        return runtime, shape.stored_bytes, int(numbers * padded), logits, layer
    if does_without_flash_attention(shape.head_dim, use.cache_type):
        layer += 4 * chunk * shape.heads * padded
    return runtime, shape.llama_bytes, int(numbers * padded), logits, layer


def _loading(shape: ModelDimensions, use: RunConfiguration) -> int:
    if use.runtime == "onnx":
        return min(_ONNX_LOADING, shape.largest_bytes)
    padded = -(-use.context // _LLAMA_PAD) * _LLAMA_PAD
    cache = int(shape.cache_numbers * CACHE_BYTES[use.cache_type] * padded)
    return cache + _LLAMA_LOADING * shape.vocab_size


def _linear(line: tuple[int, int], count: int) -> int:
    return line[0] + line[1] * count


def cache_types(runtime: str, shape: ModelDimensions) -> tuple[str, ...]:
    """What ``runtime`` can keep this model's keys and values in, the usual one first."""
    types = CACHE_TYPES[runtime]
    return types if shape.head_dim % _Q8_BLOCK == 0 else types[:1]


def repacked_types() -> dict[str, float]:
    """The types of weights that llama.cpp repacks on this processor: the bytes that this adds to a weight."""
    added: dict[str, float] = {}
    for feature in cpu_features():
        added |= _REPACKED.get(feature, {})
    return added
