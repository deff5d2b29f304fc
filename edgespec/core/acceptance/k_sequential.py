"""SpecTr's k-sequential selection, k-SEQ (Sun et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import draw

_HALVINGS = 16
"""Of the interval [1, k]: every γ above the best is valid, and one so near accepts as much."""


def verify(
    candidates: Sequence[int], p: FloatArray, q: FloatArray, rng: np.random.Generator
) -> tuple[int, int | None]:
    """What is said where ``candidates`` were drafted, and which of them that is, if one is accepted.

    ``p [V]`` is the target's distribution; the candidates were drawn from ``q [V]`` independently. In
    their order, each is accepted with min(1, p / (γ q)), so that one of k is with 1 - (1 - β)^k, where
    β = Σ min(q, p/γ) is the chance of each. If none is, the answer is drawn from what these have left
    of p: max(0, p - min(q, p/γ) (1 - (1 - β)^k) / β). A draw from the target's distribution in any case.
    """
    gamma = division_factor(p, q, len(candidates))
    for i, token in enumerate(candidates):
        if q[token] <= 0:
            raise ValueError(f"token {token} was drafted with probability 0")
        if rng.random() * gamma * q[token] < p[token]:
            return token, i
    overlap = np.minimum(q, p / gamma)
    beta = float(overlap.sum())
    any_of_k = 1 - (1 - beta) ** len(candidates)
    residual = np.maximum(p - overlap * (any_of_k / beta if beta else 0), 0)
    # nothing left means p = q up to rounding, where a rejection is itself a rounding error
    return draw(residual if residual.any() else p, rng), None


def division_factor(p: FloatArray, q: FloatArray, k: int) -> float:
    """The least γ in [1, k] that leaves nothing negative: 1 - (1 - β(γ))^k = γ β(γ), by bisection."""
    drawn = np.flatnonzero(q)
    p, q = p[drawn], q[drawn]
    low, high = 1.0, float(k)
    for _ in range(_HALVINGS if k > 1 else 0):
        middle = (low + high) / 2
        beta = float(np.minimum(q, p / middle).sum())
        if 1 - (1 - beta) ** k > middle * beta:
            low = middle
        else:
            high = middle
    return high
