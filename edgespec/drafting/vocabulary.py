"""The words that a draft model and its target share, or need translated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.intp]


class Vocabulary(Protocol):
    """How the target's tokens are told to a draft model, and the draft's to the target."""

    same: bool
    """Whether both have the same ids, so that what one says the other can say."""

    def read(self, context: Sequence[int]) -> tuple[Sequence[int], int, bool]:
        """The target's ``context`` in the draft's ids; how many of the first of these are as they
        were at the last call; and whether the draft can go on from there."""
        ...

    def spell(self, tokens: Sequence[int]) -> list[tuple[int, int, float]]:
        """What follows if the draft says ``tokens`` there: the target's tokens, each with how many of
        ``tokens`` are begun where it ends, and the chance that it is the whole of the target's."""
        ...

    @property
    def shared(self) -> Ids:
        """By the draft's id: the target's token that stands for the same, or -1."""
        ...


class SameVocabulary:
    """Target and draft share their ids, of which the target has ``size``."""

    same = True

    def __init__(self, size: int) -> None:
        self.shared: Ids = np.arange(size)

    def read(self, context: Sequence[int]) -> tuple[Sequence[int], int, bool]:
        """``context`` itself, which only grows."""
        return context, len(context), True

    def spell(self, tokens: Sequence[int]) -> list[tuple[int, int, float]]:
        """``tokens`` themselves."""
        return [(token, i, 1.0) for i, token in enumerate(tokens, 1)]
