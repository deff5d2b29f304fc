"""Speculative sampling (Leviathan et al. 2023, Algorithm 1; Chen et al. 2023, Algorithm 2), and
recursive rejection sampling of several candidates (RSD: Jeon et al. 2024; Yang et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import draw


def verify(
    candidates: Sequence[int], p: FloatArray, q: FloatArray, rng: np.random.Generator
) -> tuple[int, int | None]:
    """What is said where ``candidates`` were drafted, and which of them that is, if one is accepted.

    ``p [V]`` is the target's distribution; the candidates were drawn from ``q [V]`` one after the
    other without replacement. In their order, each is accepted with min(1, p/q); after a rejection
    what is left to say is p ← norm(max(0, p - q)), in which the candidate has no mass, and the next one
    was drawn from q ← norm(q without the candidate). Said after the last rejection: a draw from p.
    A draw from the target's distribution in any case.
    """
    for i, token in enumerate(candidates):
        if q[token] <= 0:
            raise ValueError(f"token {token} was drafted with probability 0")
        if rng.random() * q[token] < p[token]:
            return token, i
        residual = np.maximum(p - q, 0)
        mass = residual.sum()
        if mass <= 0:  # p = q up to rounding, where a rejection is itself a rounding error
            break
        p = residual / mass
        if i + 1 < len(candidates):
            q = q.copy()
            q[token] = 0
            q /= q.sum() or 1
    return draw(p, rng), None
