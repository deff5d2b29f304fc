"""The only place where drafted tokens are accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgespec.acceptance import greedy, speculative_sampling
from edgespec.draft import Draft
from edgespec.runtimes import FloatArray
from edgespec.sampling import Sampling


@dataclass(frozen=True)
class Verdict:
    """What one target pass over ``[last token] + draft`` says."""

    tokens: list[int]
    """The tokens said: the accepted ones, then the target's own."""
    rows: Sequence[int]
    """The rows of the pass to keep, as many as tokens said: the last token's and the accepted."""


def accept(
    draft: Draft,
    logits: FloatArray,
    sampling: Sampling,
    context: Sequence[int],
    rng: np.random.Generator,
) -> Verdict:
    """Verify ``draft`` against the target's ``logits [1 + len(draft), V]``, losslessly.

    ``context`` is what came before the draft. Raises ``ValueError`` for a tree: only chains can be
    verified so far.
    """
    if not draft.is_chain:
        raise ValueError("acceptance verifies chains only, and this draft is a tree")
    if sampling.greedy:
        tokens = greedy.accept(draft, logits, sampling, context)
    else:
        tokens = speculative_sampling.accept(draft, logits, sampling, context, rng)
    return Verdict(tokens, range(len(tokens)))
