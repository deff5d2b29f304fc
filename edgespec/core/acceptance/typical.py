"""Typical acceptance (Medusa: Cai et al. 2024). Lossy: not the target's distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgespec.core.acceptance.target import Target
from edgespec.core.draft import Draft
from edgespec.core.runtime import FloatArray

EPSILON = 0.09
"""ε: a larger probability is always accepted. Medusa's default."""
DELTA = math.sqrt(EPSILON)
"""δ: the threshold as a share of exp(-entropy); the square root of ε, as in Medusa."""


def is_typical(token: int, p: FloatArray) -> bool:
    """Whether p(x) > min(ε, δ exp(-H(p))) in ``p [V]``, or x is the likeliest token."""
    some = p[p > 0]
    nats = -float(some @ np.log(some))
    return bool(p[token] > min(EPSILON, DELTA * math.exp(-nats)) or token == p.argmax())


def choose(
    rows: Sequence[int], draft: Draft, children: Sequence[Sequence[int]], target: Target
) -> int | None:
    """The child of the last of ``rows`` on the longest path of typical tokens; ``None`` if none is typical.

    The likeliest of several longest paths is chosen. With ``None`` a token is drawn from the target's
    distribution; Medusa takes the likeliest token. So the output without a draft has the target's
    distribution. Greedy decoding is lossless, because only the likeliest token has any probability.
    """
    return _longest(rows[-1], draft, children, target)[2]


def _longest(
    row: int, draft: Draft, children: Sequence[Sequence[int]], target: Target
) -> tuple[int, float, int | None]:
    """Length and log-likelihood of the best typical path below ``row``, and its first draft token."""
    best: tuple[int, float, int | None] = (0, 0.0, None)
    if not children[row]:
        return best
    p = target.p(row)
    for i in children[row]:
        if is_typical(draft.tokens[i], p):
            length, likelihood, _ = _longest(i + 1, draft, children, target)
            found = (length + 1, likelihood + math.log(p[draft.tokens[i]]), i)
            if best[2] is None or found[:2] > best[:2]:
                best = found
    return best
