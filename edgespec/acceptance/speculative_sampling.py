"""Speculative sampling (Leviathan et al. 2023, Algorithm 1; Chen et al. 2023, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgespec.draft import Draft
from edgespec.runtimes import FloatArray
from edgespec.sampling import Sampling, draw, probabilities


def accept(
    draft: Draft,
    logits: FloatArray,
    sampling: Sampling,
    context: Sequence[int],
    rng: np.random.Generator,
) -> list[int]:
    """The tokens said: the accepted prefix of the chain and one more, distributed as the target's.

    ``logits`` is ``[1 + len(draft), V]``. A row's distribution is computed only when it is reached.
    """
    history = (
        np.array([*context, *draft.tokens], dtype=np.intp)
        if sampling.repetition_penalty != 1
        else np.empty(0, dtype=np.intp)
    )
    said: list[int] = []
    for i, token in enumerate(draft.tokens):
        p = _target(logits, i, sampling, history, len(context))
        q = None if draft.probabilities is None else draft.probabilities[i]
        said.append(verify(token, p, q, rng))
        if said[-1] != token:
            return said
    p = _target(logits, len(draft), sampling, history, len(context))
    return [*said, draw(p, rng)]


def verify(token: int, p: FloatArray, q: FloatArray | None, rng: np.random.Generator) -> int:
    """What is said where ``token`` was drafted: ``token`` itself exactly if it is accepted.

    ``p [V]`` is the target's distribution, ``q [V]`` the one that ``token`` was drawn from. It is
    accepted with min(1, p/q); otherwise the answer is drawn from norm(max(0, p - q)), in which it
    has no mass. For a drafter that was certain (``q=None``) that is: accepted with p(token),
    otherwise drawn from p without it; and drawing from p and comparing is the same rule. It uses
    one random number for each token said, so that with a seed the words do not depend on what was
    drafted.
    """
    if q is None:
        return draw(p, rng)
    if q[token] <= 0:
        raise ValueError(f"token {token} was drafted with probability 0")
    if rng.random() * q[token] < p[token]:
        return token
    residual = np.maximum(p - q, 0)
    # p <= q everywhere means p = q up to rounding, where a rejection is itself a rounding error
    return draw(residual if residual.any() else p, rng)


def _target(
    logits: FloatArray, row: int, sampling: Sampling, history: npt.NDArray[np.intp], before: int
) -> FloatArray:
    """The target's distribution at ``row``; the penalty sees the context and the draft up to it."""
    p: FloatArray = probabilities(logits[row : row + 1], sampling, history[: before + row])[0]
    return p
