"""How much of a draft is worth verifying."""

from __future__ import annotations

from edgespec.draft import Draft
from edgespec.runtimes import ModelInfo
from edgespec.scheduling.costs import PassCosts

MAX_DRAFT = 15
"""The most tokens drafted for one pass: of 16 then, the largest whose exactness runtimes prove."""
_MARGIN = 1.05
"""What a pass larger than plain decoding's must promise: times and confidences are estimates."""


def cut(draft: Draft, nodes: int, info: ModelInfo, costs: PassCosts) -> Draft:
    """The first γ tokens of ``draft``, γ <= ``nodes``, with the largest expected tokens per second.

    That is SmartSpec's goodput: (1 + Σ_j Π_{i<=j} a_i) / t(n), a_i the draft's confidences and
    t(n) the time of a pass over n = γ + 1 tokens, padded as the runtime pads it. Plain decoding,
    γ = 0, is among the choices, and tokens that only fill padding are free. A draft without
    confidences is taken as it is, up to ``nodes``. Raises ``ValueError`` for a tree with more than
    ``nodes`` tokens.
    """
    draft = draft.first(nodes)
    if draft.confidence is None:
        return draft
    plain = info.padded(1)
    best, best_rate = 0, 1 / costs.seconds(plain)
    expected = chance = 1.0
    for gamma, confidence in enumerate(draft.confidence, 1):
        chance *= confidence
        expected += chance
        size = info.padded(gamma + 1)
        rate = expected / (costs.seconds(size) * (1 if size == plain else _MARGIN))
        if rate > best_rate:
            best, best_rate = gamma, rate
    return draft.first(best)
