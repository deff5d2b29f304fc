"""The columns of a draft model's logits from which tokens are drafted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import Sampling, penalise, probabilities
from edgespec.drafting.vocabulary import Ids, Vocabulary


@dataclass(frozen=True)
class ColumnConstants:
    """Constants of the choice of columns."""

    min_shared: float = 0.5
    """Share of the draft's tokens that the target must have too, for drafts to be sampled. A guess."""


CONSTANTS = ColumnConstants()


@dataclass(frozen=True)
class LogitColumns:
    """The logit columns of the tokens that may be drafted, and their ids."""

    columns: Ids | None
    """Indices into a row of logits; ``None``: all columns."""
    ids: Ids
    """By column: the draft model's token id."""
    targets: Ids | None
    """By column: the target's token id, if tokens are sampled; ``None``: the likeliest is taken."""
    column_of: Ids
    """By the draft model's token id: its column, or -1."""

    def scores(
        self,
        logits: FloatArray,
        sampling: Sampling,
        context: Sequence[int],
        drafted: Sequence[int],
    ) -> tuple[FloatArray, float]:
        """Scores of the token after ``context`` and ``drafted``, ``[columns]``, and its top probability.

        A distribution if tokens are sampled; else logits, and the top probability of their softmax.
        """
        row = logits if self.columns is None else logits[self.columns]
        seen = np.empty(0, np.intp)
        if sampling.repetition_penalty != 1:
            seen = self.column_of[[*context, *drafted]]
            seen = seen[seen >= 0]
        if self.targets is not None:
            p: FloatArray = probabilities(row[None], sampling, seen)[0]
            return p, float(p.max())
        if seen.size:
            row = penalise(row[None], sampling.repetition_penalty, seen)[0]
        return row, 1 / float(np.exp(row - row.max()).sum())


def select_columns(
    ids: Ids, vocabulary: Vocabulary, vocab_size: int, readable: int, sampled: bool
) -> LogitColumns:
    """The columns for ``sampled`` or for greedy drafts.

    ``ids`` are the draft model's tokens by column. ``vocab_size`` is the width of the target's logits. The
    draft model cannot read ids from ``readable`` on.
    """
    targets = None
    if sampled or vocabulary.same:
        shared = vocabulary.shared
        targets = np.where(ids < len(shared), shared[np.minimum(ids, len(shared) - 1)], -1)
        targets, columns = np.unique(targets, return_index=True)
        targets, columns = targets[targets >= 0], columns[targets >= 0]
    if targets is None or (not vocabulary.same and len(columns) < CONSTANTS.min_shared * readable):
        targets, columns = None, np.flatnonzero(ids < readable)
    column_of = np.full(max(vocab_size, readable, int(ids.max()) + 1), -1)
    column_of[ids[columns]] = np.arange(len(columns))
    is_all = np.array_equal(columns, np.arange(len(ids)))
    return LogitColumns(
        None if is_all else columns, ids[columns], targets if sampled else None, column_of
    )
