"""The protocol of a drafter. Each drafter is one file in ``edgespec.drafting``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgespec.core.draft import Draft
from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import Sampling


@dataclass(frozen=True)
class Budget:
    """The limits of one draft."""

    nodes: int
    """The most tokens of the draft."""
    width: int = 1
    """The most candidates for one position; 1: a chain."""
    tokens: int = sys.maxsize
    """The most output tokens before the answer ends."""
    pass_seconds: Callable[[int], float] = float
    """Expected seconds of a target pass over n tokens, the context's last token included."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the target's tokens are chosen."""
    best_so_far: tuple[float, float] | None = None
    """Expected output tokens and pass seconds that a draft must beat. ``None``: no limit."""


@dataclass(frozen=True)
class Outcome:
    """The result of one target pass over ``[last token] + draft``."""

    draft: Draft
    accepted: int
    """The number of drafted tokens in the output."""
    tokens: Sequence[int]
    """The output tokens of this step: the accepted ones, then the target's own."""
    logits: FloatArray
    """The pass's logits, ``[1 + len(draft.tokens), vocab_size]``. Valid only during the call."""


class Drafter(Protocol):
    """A source of drafts.

    ``context`` is one list that only grows during a conversation, so a drafter may index it
    incrementally. Another list object is another conversation.
    """

    name: str

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        """Draft at most ``budget.nodes`` tokens to follow ``context``. The draft may be empty."""
        ...

    def observe(self, outcome: Outcome) -> None:
        """Learn from a verified draft. ``context`` does not include the output tokens yet."""
        ...


def draft_passes(drafter: Drafter) -> int:
    """The number of draft model passes that ``drafter`` has run; 0 for model-free drafters."""
    passes: int = getattr(drafter, "passes", 0)
    return passes
