"""SpecTr's k-sequential selection, k-SEQ (Sun et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import draw

_HALVINGS = 16
"""Bisections of the interval [1, k]. Every γ above the best is valid, and a close one accepts as much."""


def verify(
    candidates: Sequence[int], p: FloatArray, q: FloatArray, rng: np.random.Generator
) -> tuple[int, int | None]:
    """Verify ``candidates``; return the output token, and the index of the accepted candidate or ``None``.

    ``p [V]`` is the target's distribution. The candidates were drawn from ``q [V]`` independently. In
    their order, each is accepted with probability min(1, p / (γ q)), in total β = Σ min(q, p/γ) each
    and 1 - (1 - β)^k for one of k. If all are rejected, the token is drawn from the residual
    max(0, p - min(q, p/γ) (1 - (1 - β)^k) / β). The output token has the distribution p.
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
    # a residual of 0 means p = q up to rounding, where a rejection is itself a rounding error
    return draw(residual if residual.any() else p, rng), None


def division_factor(p: FloatArray, q: FloatArray, k: int) -> float:
    """The smallest γ in [1, k] with a non-negative residual: 1 - (1 - β(γ))^k = γ β(γ), by bisection."""
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
