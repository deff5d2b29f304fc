"""The protocol of a runtime: a model, loaded on a device, that runs passes over tokens."""

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
"""Tokens of context, where the user asks for none and the model has as many."""
MAX_ROWS = 16
"""Rows of logits in the largest pass, where memory is not short: the last token and 15 drafted."""


@dataclass(frozen=True)
class ModelInfo:
    """What is loaded, and where.

    ``context`` is the cache's capacity in tokens. ``weight_bytes`` is what one pass must read.
    ``pass_sizes`` lists, in ascending order, the sizes of pass that give the same row the same bits;
    it is empty where that was not proved (or not asked for), and then passes are not padded.
    ``vocab_size`` is the columns of the logits. A draft's head may have been trimmed: ``token_ids``
    are then the tokens that its columns are for; ``None``: every token, in order.
    ``max_rows`` is the most rows of logits that a pass is meant to have: memory was planned for these.
    ``trees``: whether a pass may be a tree, or chains only. ``prefill_chunk``: prompt tokens in one pass;
    more are hardly faster, and keep Ctrl-C waiting. ``hidden_size`` is the width of ``Runtime.features``; 0 where the
    runtime has none.
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

    def padded(self, rows: int) -> int:
        """The size that a pass over ``rows`` tokens is padded to."""
        return next((size for size in self.pass_sizes if size >= rows), rows)


class Runtime(Protocol):
    """One causal language model, loaded on one device, with its key-value cache.

    A pass appends rows after the committed ones; the rows stay uncommitted until ``keep`` says which
    of them are true. Rows that nobody keeps are forgotten by the next pass.
    """

    info: ModelInfo
    length: int
    """Tokens committed in the cache."""
    features: FloatArray | None
    """Hidden states of the last pass, after the final norm: float32 ``[rows asked for, hidden_size]``,
    where that pass was asked for them; else ``None``. The next pass may reuse the array."""

    def forward(
        self,
        tokens: Sequence[int],
        parents: Sequence[int] | None = None,
        *,
        logits: Logits = "all",
        features: bool = False,
    ) -> FloatArray:
        """Run one pass over ``tokens``.

        ``parents[i]`` is the row that token ``i`` follows (-1: the cache's end); ``None`` is a chain.
        Returns float32 logits, ``[rows asked for, vocab_size]``; the array may be reused by the next
        pass, so copy what must outlive it. With ``features`` the same rows are left in ``self.features``.
        Raises ``ContextOverflow`` when the rows do not fit, and ``ValueError`` for parents that are no tree, for
        a tree where ``info.trees`` is false and for features where ``info.hidden_size`` is 0.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Commit these rows of the last pass, a path from the cache's end; forget the others.

        Raises ``ValueError`` where they are not such a path.
        """
        ...

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` committed tokens.

        Raises ``ValueError`` where fewer are committed.
        """
        ...

    def close(self) -> None:
        """Free the weights and the cache."""
        ...


def capacity(context: int | None, limit: int) -> int:
    """The tokens that a cache is made for, where the user asks for ``context`` of the model's ``limit``.

    Raises ``UserError`` where the model does not take as many.
    """
    tokens = min(limit, DEFAULT_CONTEXT) if context is None else context
    if not 0 < tokens <= limit:
        raise UserError(f"the context is {tokens}; this model takes 1 to {limit} tokens")
    return tokens


class ContextOverflow(ValueError):
    """A pass does not fit in what is left of the cache."""
