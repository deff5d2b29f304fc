"""Acceptance of drafted tokens, in one place. Each rule is one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgespec.core.acceptance import entropy, k_sequential, speculative_sampling, typical
from edgespec.core.acceptance.target import Target
from edgespec.core.draft import Draft
from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import Sampling, draw

Rule = Literal["lossless", "typical", "entropy"]
"""An acceptance rule. Only ``lossless`` keeps the target's distribution."""

# Each returns a child of the path's last row that the lossy rule accepts, if there is one.
_LOSSY = {"typical": typical.choose, "entropy": entropy.choose}


@dataclass(frozen=True)
class Verification:
    """The result of verifying a draft."""

    tokens: list[int]
    """The output tokens: the accepted ones, then the target's own."""
    rows: Sequence[int]
    """The rows of the pass to keep, one per output token. Row 0 is the context's last token, row i + 1
    is draft token i. The rows are a path from row 0."""


def accept(
    draft: Draft,
    logits: FloatArray,
    sampling: Sampling,
    context: Sequence[int],
    rng: np.random.Generator,
    rule: Rule = "lossless",
) -> Verification:
    """Verify ``draft``, a chain or a tree, against the target's ``logits [1 + len(draft), V]``.

    ``context`` is the token ids before the draft. Draft tokens are accepted one after the other along
    a path, then the target adds a token of its own. Rows off the path are not read.

    **Greedy**: the output token is the target's likeliest token. A child with that token is accepted.
    **Sampled, draft without probabilities**: the output token is drawn from the target's p. A child
    with that token is accepted. The output has the distribution p for any draft, and no lossless rule
    accepts more: one of the candidates C is accepted with probability p(C). Each output token uses
    one random number, so with a seed the output does not depend on the draft. **Sampled, draft with
    probabilities**: ``speculative_sampling.verify``, or ``k_sequential.verify`` for siblings that were
    drawn with replacement.

    The lossy rules accept more tokens: ``typical.choose``, ``entropy.choose``.
    """
    choose = None if rule == "lossless" else _LOSSY[rule]
    target = Target(draft, logits, sampling, context)
    children = draft.children()
    tokens: list[int] = []
    rows = [0]
    child: int | None = 0
    while child is not None:
        child = choose(rows, draft, children, target) if choose else None
        if child is not None:
            token = draft.tokens[child]
        else:
            siblings = children[rows[-1]]
            token, child = _verify(rows[-1], siblings, draft, target, sampling.greedy, rng)
        tokens.append(token)
        if child is not None:
            rows.append(child + 1)
    return Verification(tokens, rows)


def _verify(
    row: int,
    siblings: Sequence[int],
    draft: Draft,
    target: Target,
    greedy: bool,
    rng: np.random.Generator,
) -> tuple[int, int | None]:
    """The output token after ``row``, and the accepted one of ``siblings``, the row's children."""
    candidates = [draft.tokens[i] for i in siblings]
    if greedy or draft.probabilities is None or not siblings:
        token = target.best(row) if greedy else draw(target.p(row), rng)
        accepted = candidates.index(token) if token in candidates else None
    else:
        verify = k_sequential.verify if draft.with_replacement else speculative_sampling.verify
        q = draft.probabilities[siblings[0]]
        token, accepted = verify(candidates, target.p(row), q, rng)
    return token, None if accepted is None else siblings[accepted]
