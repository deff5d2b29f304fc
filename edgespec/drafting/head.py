"""The columns of a draft model's logits that tokens are taken from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import Sampling, penalise, probabilities
from edgespec.drafting.vocabulary import Ids, Vocabulary

_SHARED = 0.5
"""Of the draft's tokens, what the target must have too for drafts to be drawn from these alone."""


@dataclass(frozen=True)
class Head:
    """Where a token is taken from: its likeliest, or drawn."""

    columns: Ids | None
    """``None``: all of them."""
    ids: Ids
    """Their tokens, the draft's."""
    targets: Ids | None
    """The target's, if tokens are drawn from a distribution; ``None``: the likeliest is taken."""
    column_of: Ids
    """By the draft's token; -1: it has none."""

    def scores(
        self,
        logits: FloatArray,
        sampling: Sampling,
        context: Sequence[int],
        drafted: Sequence[int],
    ) -> tuple[FloatArray, float]:
        """What the token after ``context`` and ``drafted`` is taken from, ``[columns]``, and its top probability.

        A distribution if it is drawn; else logits, and the top probability of their softmax.
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


def make_head(
    ids: Ids, vocabulary: Vocabulary, vocab_size: int, readable: int, drawn: bool
) -> Head:
    """What tokens are taken from, ``drawn`` or not.

    ``ids`` are the draft's tokens, by column; ``vocab_size`` is the width of the target's logits, and those from
    ``readable`` on the draft cannot read.
    """
    targets = None
    if drawn or vocabulary.same:
        shared = vocabulary.shared
        targets = np.where(ids < len(shared), shared[np.minimum(ids, len(shared) - 1)], -1)
        targets, columns = np.unique(targets, return_index=True)
        targets, columns = targets[targets >= 0], columns[targets >= 0]
    if targets is None or (not vocabulary.same and len(columns) < _SHARED * readable):
        targets, columns = None, np.flatnonzero(ids < readable)
    column_of = np.full(max(vocab_size, readable, int(ids.max()) + 1), -1)
    column_of[ids[columns]] = np.arange(len(columns))
    every = np.array_equal(columns, np.arange(len(ids)))
    return Head(None if every else columns, ids[columns], targets if drawn else None, column_of)
