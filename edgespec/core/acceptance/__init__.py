"""The only place where drafted tokens are accepted. One file a rule."""

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
"""How drafted tokens are accepted. Only ``lossless`` says what the target alone would say."""

# A child of the path's last row that is accepted though ``lossless`` might not, if there is one.
_LOSSY = {"typical": typical.choose, "entropy": entropy.choose}


@dataclass(frozen=True)
class Verification:
    """What one target pass over ``[last token] + draft`` says."""

    tokens: list[int]
    """The tokens said: the accepted ones, then the target's own."""
    rows: Sequence[int]
    """The rows of the pass to keep, as many as tokens said: row 0 is the last token's, row i + 1
    draft token i's. They are a path from row 0."""


def accept(
    draft: Draft,
    logits: FloatArray,
    sampling: Sampling,
    context: Sequence[int],
    rng: np.random.Generator,
    rule: Rule = "lossless",
) -> Verification:
    """Verify ``draft``, a chain or a tree, against the target's ``logits [1 + len(draft), V]``.

    ``context`` is what came before the draft. Draft tokens are accepted one after the other for as
    long as one follows, then the target says one of its own. Rows that are not reached are not
    looked at.

    **Greedy**: the target's likeliest token is said, and the child that has it is followed.
    **Sampled, certain guesses**: a token is drawn from the target's p, and the child that has it is
    followed. So what is said is p's whatever was drafted; and no lossless rule accepts more, since
    what is said is one of the candidates C with the chance p(C), and whenever it is, it is accepted.
    One random number is used for each token said: with a seed, the words do not depend on what was
    drafted. **Sampled, drawn guesses**: ``speculative_sampling.verify``, or ``k_sequential.verify``
    where they were drawn with replacement.

    The other rules take some tokens that these would not: ``typical.choose``, ``entropy.choose``.
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
    """What is said after ``row``, and which of ``siblings``, its children, that is."""
    candidates = [draft.tokens[i] for i in siblings]
    if greedy or draft.probabilities is None or not siblings:
        token = target.best(row) if greedy else draw(target.p(row), rng)
        accepted = candidates.index(token) if token in candidates else None
    else:
        verify = k_sequential.verify if draft.with_replacement else speculative_sampling.verify
        q = draft.probabilities[siblings[0]]
        token, accepted = verify(candidates, target.p(row), q, rng)
    return token, None if accepted is None else siblings[accepted]
