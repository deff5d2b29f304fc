"""Sources: where guesses at the next tokens are looked up. One file a source, in this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from edgespec.core.drafter import Outcome


class Source(Protocol):
    """Knows which tokens followed sequences like the present one.

    A drafter walks it: ``start`` at the context's end, then ``advance`` to the place after a guess of
    ``successors``. A place is a value of the source's own type, valid until the next ``start``. The time of a call
    does not grow with what the source has stored (``start``: it grows with the tokens added). No call raises
    because of what a user's files contain.
    """

    name: str

    @property
    def priors(self) -> Sequence[float]:
        """By kind of guess: its acceptance rate before any guess was verified.

        A kind is what the source knows of a guess's quality, as a small number: a match's length, a rank, a count.
        """
        ...

    @property
    def persistent(self) -> bool:
        """Whether the kinds' acceptance rates hold from one answer to the next; else they start anew."""
        ...

    def start(self, context: Sequence[int]) -> Any:
        """The place of the context's end; learns the tokens added to ``context`` since the last call.

        Another list object is another conversation.
        """
        ...

    def successors(self, place: Any, count: int) -> Sequence[tuple[int, int]]:
        """At most ``count`` different tokens that may follow, each with its kind, the likeliest first."""
        ...

    def advance(self, place: Any, token: int) -> Any:
        """The place after ``place`` and ``token``, which was among the successors of some source."""
        ...

    def observe(self, outcome: Outcome) -> None:
        """Learn from the output tokens. ``context`` has not been extended yet."""
        ...
