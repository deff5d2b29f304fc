"""Greedy verification: a drafted token is accepted while it is the target's argmax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.draft import Draft
from edgespec.runtimes import FloatArray
from edgespec.sampling import Sampling, penalise


def accept(
    draft: Draft, logits: FloatArray, sampling: Sampling, context: Sequence[int]
) -> list[int]:
    """The tokens that greedy decoding says: the accepted prefix of the chain and one more.

    ``logits`` is ``[1 + len(draft), V]``. The lowest id wins a tie, whatever was drafted.
    """
    if sampling.repetition_penalty != 1:
        history = np.array([*context, *draft.tokens], dtype=np.intp)
        logits = np.concatenate(
            [
                penalise(row[None], sampling.repetition_penalty, history[: len(context) + i])
                for i, row in enumerate(logits)
            ]
        )
    best: list[int] = logits.argmax(-1).tolist()
    accepted = 0
    while accepted < len(draft) and draft.tokens[accepted] == best[accepted]:
        accepted += 1
    return best[: accepted + 1]
