"""The tokens that a draft model and its target share, or that need translation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.intp]


class Vocabulary(Protocol):
    """Translates the target's tokens into a draft model's, and the draft's into the target's."""

    same: bool
    """Whether both have the same ids."""

    def read(self, context: Sequence[int]) -> tuple[Sequence[int], int, bool]:
        """The target's ``context`` in the draft's ids; how many of the first of these are as they were at the
        last call; and whether they spell all of it, so that the draft can continue."""
        ...

    def spell(self, tokens: Sequence[int]) -> list[tuple[int, int, float]]:
        """The target's tokens for the draft's ``tokens`` after the context.

        Each with how many of ``tokens`` start before its end, and the chance that it is complete, not the beginning of
        a longer token of the target.
        """
        ...

    @property
    def shared(self) -> Ids:
        """By the draft's id: the target's token with the same text, or -1."""
        ...


class SameVocabulary:
    """Target and draft share their ids; the target has ``size`` of them."""

    same = True

    def __init__(self, size: int) -> None:
        self.shared: Ids = np.arange(size)

    def read(self, context: Sequence[int]) -> tuple[Sequence[int], int, bool]:
        """``context`` itself, which only grows."""
        return context, len(context), True

    def spell(self, tokens: Sequence[int]) -> list[tuple[int, int, float]]:
        """``tokens`` themselves."""
        return [(token, i, 1.0) for i, token in enumerate(tokens, 1)]
