"""Entropy-adaptive decoding (EAD: Simonds 2025). Lossy: some tokens come from the draft model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.core.acceptance.target import Target
from edgespec.core.draft import Draft

WINDOW = 5
"""Positions that the draft's entropy is averaged over, as in the paper."""
THRESHOLD = 0.5
"""The largest mean entropy, in bits, of an accepted token. The paper tries several values."""


def choose(
    rows: Sequence[int], draft: Draft, children: Sequence[Sequence[int]], target: Target
) -> int | None:
    """The first child of the last of ``rows`` if it is accepted without verification; else ``None``.

    It is accepted if the draft distribution's mean entropy is low over this position and the last few
    positions of its path. A draft without distributions is verified. Two differences from the paper:
    the distributions are those that the tokens were drawn from, not those before temperature; and
    there is no minimum number of tokens per model, because a switch is free after the target's pass.
    """
    siblings = children[rows[-1]]
    if draft.probabilities is None or not siblings:
        return None
    positions = [*(row - 1 for row in rows[1:]), siblings[0]][-WINDOW:]
    q = draft.probabilities[positions]
    bits = -(q * np.log2(q, where=q > 0, out=np.zeros_like(q))).sum(-1)
    return siblings[0] if bits.mean() <= THRESHOLD else None
