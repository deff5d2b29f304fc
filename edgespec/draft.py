"""A draft: the tokens guessed to come next, as a chain or a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgespec.runtimes import FloatArray


@dataclass(frozen=True)
class Draft:
    """Tokens to verify in one target pass.

    ``parents[i]`` is the draft token that token ``i`` follows, -1 for the context's last token;
    ``None`` is a chain. ``probabilities`` is float32 ``[len(tokens), vocab_size]``: the
    distribution that each token was drawn from; ``None``: the drafter was certain (one-hot).
    ``confidence[i]`` is the drafter's estimate of the chance that token ``i`` is accepted once its
    parent is; the scheduler cuts a chain by it. ``None`` means no cut: tokens that were drawn may not
    be chosen from afterwards. ``expected`` then says how many tokens may be accepted.
    """

    tokens: Sequence[int] = ()
    parents: Sequence[int] | None = None
    probabilities: FloatArray | None = None
    confidence: Sequence[float] | None = None
    expected: float = 0.0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether every token follows the one before it."""
        return self.parents is None or list(self.parents) == list(range(-1, len(self.tokens) - 1))

    def first(self, count: int) -> Draft:
        """The first ``count`` tokens of a chain."""
        if count >= len(self.tokens):
            return self
        if not self.is_chain:
            raise ValueError("a tree cannot be cut to a length")
        return Draft(
            self.tokens[:count],
            None,
            None if self.probabilities is None else self.probabilities[:count],
            None if self.confidence is None else self.confidence[:count],
            self.expected,
        )


EMPTY = Draft()
