"""No drafting: plain decoding."""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.draft import EMPTY, Draft
from edgespec.drafting import Budget, Outcome


class NoDrafter:
    """Never drafts anything."""

    name = "none"

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        """An empty draft."""
        return EMPTY

    def observe(self, outcome: Outcome) -> None:
        """Nothing to learn."""
