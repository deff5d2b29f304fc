"""Entropy-switched decoding (EAD: Simonds 2025). Lossy: some tokens are the draft model's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgespec.core.acceptance.target import Target
from edgespec.core.draft import Draft

WINDOW = 5
"""Places that the draft's entropy is averaged over, as in the paper."""
THRESHOLD = 0.5
"""Bits, on average, up to which the draft is trusted. The paper tries several; this one is ours."""


def choose(
    rows: Sequence[int], draft: Draft, children: Sequence[Sequence[int]], target: Target
) -> int | None:
    """The first child of the last of ``rows`` if it is taken unverified; or ``None``.

    It is where the draft's own distribution has had little entropy, on average, at this place and the
    last few of its path. A draft without distributions is verified. The distributions are those that
    were drawn from, where the paper has those before temperature. Its least stay with a model is left
    out: here a switch costs nothing, as the target has looked at all of the draft.
    """
    siblings = children[rows[-1]]
    if draft.probabilities is None or not siblings:
        return None
    places = [*(row - 1 for row in rows[1:]), siblings[0]][-WINDOW:]
    q = draft.probabilities[places]
    bits = -(q * np.log2(q, where=q > 0, out=np.zeros_like(q))).sum(-1)
    return siblings[0] if bits.mean() <= THRESHOLD else None
