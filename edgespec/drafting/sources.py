"""Sources: where guesses at the next tokens are looked up. One file a source, in this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from edgespec.core.drafter import Outcome


class Source(Protocol):
    """Tells what followed sequences like this one in what it has seen.

    A drafter walks it, ``start`` at the context's end, ``advance`` to the place after a guess of
    ``successors``. A place is the source's own kind of value, valid until the next ``start``. No
    call takes longer the more was seen (``start``: for each token added), and none raises because
    of what a user's files hold.
    """

    name: str

    @property
    def priors(self) -> Sequence[float]:
        """By kind of guess, the chance that it is right before any was judged. A kind is what the
        source knows of a guess's quality, as a small number: a match's length, a rank, a count."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether the kinds' chances hold from one answer to the next; else they start anew."""
        ...

    def start(self, context: Sequence[int]) -> Any:
        """The place of the context's end; tokens added to ``context`` since the last call are
        learnt. Another list object is another conversation."""
        ...

    def successors(self, place: Any, count: int) -> Sequence[tuple[int, int]]:
        """At most ``count`` different tokens that may follow, each with its kind, the likeliest first."""
        ...

    def advance(self, place: Any, token: int) -> Any:
        """The place after ``token`` is added to ``place``; it was among the successors of some source."""
        ...

    def observe(self, outcome: Outcome) -> None:
        """Learn from what the target said. ``context`` has not been extended yet."""
        ...
