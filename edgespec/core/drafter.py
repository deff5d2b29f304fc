"""Drafters guess what the target will say next. One file a drafter; all satisfy one protocol."""

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
    """What a drafter may spend on one draft, and what it is for."""

    nodes: int
    """At most so many tokens."""
    width: int = 1
    """At most so many tokens may be candidates for one place; 1: a chain."""
    tokens: int = sys.maxsize
    """At most so many will be said before the answer ends."""
    pass_seconds: Callable[[int], float] = float
    """Expected time of a target pass over so many tokens, the context's last one included."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the target's tokens are chosen."""
    best_so_far: tuple[float, float] | None = None
    """What the best draft so far promises, or one must at least: tokens said, and the pass's seconds. ``None``:
    nothing."""


@dataclass(frozen=True)
class Outcome:
    """What became of a draft: the target's answer to one pass over ``[last token] + draft``."""

    draft: Draft
    accepted: int
    """How many drafted tokens were said."""
    said: Sequence[int]
    """The tokens said in this step: the accepted ones, then the target's own."""
    logits: FloatArray
    """The pass's logits, ``[1 + len(draft.tokens), vocab_size]``. Valid only during the call."""


class Drafter(Protocol):
    """A source of drafts.

    ``context`` is one list that only ever grows while a conversation lasts, so a drafter may index
    it incrementally; another list object is another conversation.
    """

    name: str

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        """At most ``budget.nodes`` tokens to follow ``context``. An empty draft is an answer."""
        ...

    def observe(self, outcome: Outcome) -> None:
        """Learn from what the target said. ``context`` has not been extended yet."""
        ...


def draft_passes(drafter: Drafter) -> int:
    """Passes of a draft model that ``drafter`` has run; 0 for drafters that count none."""
    passes: int = getattr(drafter, "passes", 0)
    return passes
