"""The target's distribution after each row of a pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgespec.core.draft import Draft
from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import Sampling, penalise, probabilities


class Target:
    """The target's distributions from ``logits [1 + len(draft), V]``, one row at a time.

    The repetition penalty applies to the context and the draft's path to the row.
    """

    def __init__(
        self, draft: Draft, logits: FloatArray, sampling: Sampling, context: Sequence[int]
    ) -> None:
        self._draft, self._logits, self._sampling = draft, logits, sampling
        self._penalty = sampling.repetition_penalty
        self._context = np.array(context if self._penalty != 1 else (), dtype=np.intp)

    def best(self, row: int) -> int:
        """The likeliest token. The lowest id wins a tie, with any draft."""
        scores = self._logits[row]
        if self._penalty != 1:
            scores = penalise(scores[None], self._penalty, self._history(row))[0]
        return int(scores.argmax())

    def p(self, row: int) -> FloatArray:
        """The distribution that tokens are sampled from, ``[V]``."""
        found: FloatArray = probabilities(
            self._logits[row : row + 1], self._sampling, self._history(row)
        )[0]
        return found

    def _history(self, row: int) -> npt.NDArray[np.intp]:
        if self._penalty == 1:
            return self._context
        parents, path = self._draft.parents, []
        while row > 0:
            path.append(self._draft.tokens[row - 1])
            row = row - 1 if parents is None else parents[row - 1] + 1
        return np.append(self._context, np.array(path[::-1], dtype=np.intp))
