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
    """Verify ``candidates``; return the output token, and the index of the accepted candidate or ``None``.

    ``p [V]`` is the target's distribution. The candidates were drawn from ``q [V]`` one after the
    other without replacement. In their order, each is accepted with probability min(1, p/q). After a
    rejection p ← norm(max(0, p - q)), which has no mass on the candidate, and q ← norm(q without the
    candidate), which the next one was drawn from. After the last rejection the token is drawn from p.
    The output token has the target's distribution.
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
