"""Token Recycling (Luo et al. 2025): what the target thought might follow a token when it last said so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.drafting import Outcome
from edgespec.sampling import likeliest

_SUCCESSORS = 8
_MARGINS = (0.5, 1.0, 2.0, 4.0)
"""Differences between the two largest logits that tell how sure the target was of the first."""
_FIRST_PRIORS = (0.15, 0.2, 0.3, 0.4, 0.5)
_OTHER_PRIOR = 0.05


class Recycling:
    """The target's last eight likeliest successors of every token, from every row that it computed.

    Rows after a rejected token count, too: what the target thought of a text that was not said. A kind
    is how sure it was of its first choice, or the rank of another. The table has ``vocab_size`` rows
    of eight tokens; no more of it is in memory than was said.
    """

    name = "recycling"
    priors = (*_FIRST_PRIORS, *[_OTHER_PRIOR] * (_SUCCESSORS - 1))
    lasting = True

    def __init__(self, vocab_size: int) -> None:
        self._successors = np.zeros((vocab_size, min(_SUCCESSORS, vocab_size)), np.int32)
        self._sureness = np.zeros(vocab_size, np.uint8)  # 0: the token was never seen
        self._last = 0

    def start(self, context: Sequence[int]) -> int:
        self._last = context[-1]
        return self._last

    def successors(self, place: int, count: int) -> Sequence[tuple[int, int]]:
        sureness = self._sureness.item(place)
        if not sureness:
            return []
        tokens = self._successors[place, :count].tolist()
        others = range(len(_FIRST_PRIORS), len(self.priors))
        return list(zip(tokens, (sureness - 1, *others), strict=False))

    def advance(self, place: int, token: int) -> int:
        return token

    def observe(self, outcome: Outcome) -> None:
        """Learn every row; the last of a token's rows is the one that stays."""
        for token, logits in zip((self._last, *outcome.draft.tokens), outcome.logits, strict=False):
            best = likeliest(logits, self._successors.shape[1])
            self._successors[token] = best
            margin = logits[best[0]] - logits[best[:2][-1]]  # of one token, 0
            self._sureness[token] = 1 + int(np.searchsorted(_MARGINS, margin))
