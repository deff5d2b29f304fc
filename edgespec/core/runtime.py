"""The protocol of a runtime: a model on a device that runs passes over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError

FloatArray = npt.NDArray[np.float32]
Logits = Literal["all", "last", "none"]
DEFAULT_CONTEXT = 4096
"""The default context in tokens, limited by the model's."""
MAX_ROWS = 16
"""Rows of logits in the largest pass without a memory limit: the last token and 15 drafted."""


def logit_rows(logits: Logits, rows: int) -> int:
    """How many rows of logits a pass over ``rows`` tokens returns: its last ones."""
    return {"all": rows, "last": 1, "none": 0}[logits]


@dataclass(frozen=True)
class ModelInfo:
    """A loaded model and its device.

    ``context`` is the cache's capacity in tokens. ``weight_bytes`` is the bytes that one pass reads.
    ``pass_sizes`` lists, in ascending order, the pass sizes that give the same row the same bits. It is
    empty if this was not proved (or not requested); then passes are not padded. ``vocab_size`` is the
    number of columns of the logits. A draft model's head may be trimmed: ``token_ids`` are then the
    tokens of its columns; ``None``: every token, in order. ``max_rows`` is the largest number of rows of
    logits in a pass that memory was planned for. ``trees``: whether a pass may be a tree; else it must
    be a chain. ``prefill_chunk``: prompt tokens per pass; a larger chunk is hardly faster and delays
    Ctrl-C. ``hidden_size`` is the width of ``Runtime.features``; 0 if the runtime has none. ``isa`` is
    the instruction set of edgespec's kernels; ``None`` if the runtime does not use them.
    """

    name: str
    architecture: str
    vocab_size: int
    layers: int
    context: int
    weight_bytes: int
    device: str
    runtime: str
    pass_sizes: tuple[int, ...] = ()
    token_ids: tuple[int, ...] | None = None
    max_rows: int = MAX_ROWS
    trees: bool = False
    prefill_chunk: int = 64
    hidden_size: int = 0
    isa: str | None = None

    def padded(self, rows: int) -> int:
        """The size that a pass over ``rows`` tokens is padded to."""
        return next((size for size in self.pass_sizes if size >= rows), rows)


class Runtime(Protocol):
    """One causal language model, loaded on one device, with its key-value cache.

    A pass appends rows after the committed ones. The rows stay uncommitted until ``keep`` commits some
    of them. The next pass discards uncommitted rows.
    """

    info: ModelInfo
    length: int
    """The number of committed tokens in the cache."""
    features: FloatArray | None
    """Hidden states of the last pass after the final norm: float32 ``[requested rows, hidden_size]``.
    ``None`` if the pass did not request them. The next pass may reuse the array."""

    def forward(
        self,
        tokens: Sequence[int],
        parents: Sequence[int] | None = None,
        *,
        logits: Logits = "all",
        features: bool = False,
    ) -> FloatArray:
        """Run one pass over ``tokens``.

        ``parents[i]`` is the row before token ``i`` (-1: the cache's end); ``None`` is a chain. Returns
        float32 logits ``[requested rows, vocab_size]``. The next pass may reuse the array: copy it to keep
        it. With ``features``, ``self.features`` has the same rows. Raises ``ContextOverflow`` if the rows do
        not fit, and ``ValueError`` for parents that are not a tree, for a tree if ``info.trees`` is false
        and for features if ``info.hidden_size`` is 0.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Commit these rows of the last pass, a path from the cache's end; discard the others.

        Raises ``ValueError`` if they are not such a path.
        """
        ...

    def truncate(self, length: int) -> None:
        """Discard everything after the first ``length`` committed tokens.

        Raises ``ValueError`` if fewer are committed.
        """
        ...

    def close(self) -> None:
        """Free the weights and the cache."""
        ...


def capacity(context: int | None, limit: int) -> int:
    """The capacity of a cache in tokens, for a requested ``context`` and the model's ``limit``.

    Raises ``UserError`` if the model does not support ``context`` tokens.
    """
    tokens = min(limit, DEFAULT_CONTEXT) if context is None else context
    if not 0 < tokens <= limit:
        raise UserError(f"--context is {tokens}; this model supports 1 to {limit} tokens")
    return tokens


class ContextOverflow(ValueError):
    """A pass does not fit in the free part of the cache."""
