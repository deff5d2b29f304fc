"""What a model takes of memory, byte by byte, before anything is loaded (after SpecMemo).

The sizes come from the model's metadata, and from each runtime's own ``RuntimeSpec.memory``. The constants were
measured on Linux, x86-64, Python 3.11 (``edgespec.bench.memory``), from SmolLM2-135M (49k tokens of
vocabulary, 94 MiB) to Qwen2.5-Coder-1.5B (152k, 1066 MiB).

Resident memory is counted as the system shows it: pages of mapped files count.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from edgespec.core.runtime_spec import ModelDimensions, RunConfiguration

MIB = 1 << 20

DRAFT_ROWS = 2
"""Rows of logits of a draft model's largest pass: it is timed on a prompt's."""
_SECOND_RUNTIME = 8 * MIB
_TOKENIZER = (10 * MIB, 254)
"""Its library, its merges and words; and so much more for each token."""
_READING = (10 * MIB, 910)
"""What reading a GGUF file's vocabulary takes for a while, and for each token."""
_ENGINE = 8 * MIB
"""Chat template, statistics and the rest that comes with the first answer."""
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


def predict(
    model: ModelDimensions,
    run: RunConfiguration,
    draft: tuple[ModelDimensions, RunConfiguration] | None = None,
    tables: bool = True,
) -> Memory:
    """Peak resident memory of a process with its context full.

    ``draft`` is the draft model, if there is one; ``tables``: whether the context is searched,
    and answers are learnt from.
    """
    own = run.runtime.memory(model, run)
    python = own.libraries + _ENGINE
    if not run.built or (draft and not draft[1].built):
        python += _BUILT
    tokenizer = _linear(_TOKENIZER, model.vocab_size)
    tables_bytes = _TABLE_BYTES * run.context + 2 * NGRAM_CACHE_BYTES if tables else 0
    logits = own.logits + 4 * _SAMPLING_ROWS * model.columns
    reading = python + tokenizer + _linear(_READING, model.vocab_size)
    draft_weights = draft_cache = draft_rest = 0
    if draft:
        drafting, beside = draft
        if beside.runtime != run.runtime:
            python += _SECOND_RUNTIME
        its = beside.runtime.memory(drafting, beside)
        draft_weights, draft_cache = its.weights, its.cache
        distributions = 4 * run.rows * model.columns  # what its tokens were drawn from
        draft_rest = its.runtime + its.logits + its.activations + distributions
    loading = python + tokenizer + own.runtime + own.weights + own.loading
    loading += draft_weights + draft_rest
    if draft and not draft[1].built:
        loading = max(loading, python + tokenizer + _BUILDING + draft[0].stored_bytes)
    if not run.built:
        building = python + tokenizer + _BUILDING + model.stored_bytes
        loading = max(loading, building + draft_weights + draft_rest)
    used = Memory(
        python, tokenizer, own.runtime, own.weights, own.cache, logits, own.activations,
        tables_bytes, draft_weights, draft_cache, draft_rest,
    )  # fmt: skip
    extra = max(0, max(loading, reading) - used.total)
    return Memory(**{**dict(used.components()), "loading": extra})


def _linear(line: tuple[int, int], count: int) -> int:
    return line[0] + line[1] * count
