"""A draft: the tokens guessed to come next, as a chain or a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgespec.core.runtime import FloatArray


@dataclass(frozen=True)
class Draft:
    """Tokens to verify in one target pass.

    ``parents[i]`` is the draft token that token ``i`` follows, -1 for the context's last token;
    ``None`` is a chain. Every parent comes before its children. Siblings are candidates for the same
    place, tried in their order.

    ``probabilities`` is float32 ``[len(tokens), vocab_size]``: the distribution that each token was
    drawn from, before its earlier siblings were taken out (siblings have the same row); ``None``: the
    drafter was certain (one-hot). Siblings were drawn from it one after the other without
    replacement, or ``with_replacement`` independently, so that they may repeat. Lossless are only
    drafts in which nothing that was drawn decided whether it is offered. What was drawn earlier may
    decide whether more is drawn, with one exception: how many siblings there are, if drawn with
    replacement, must not depend on any of them.

    ``confidence[i]`` is the drafter's estimate of the chance that token ``i`` is accepted once its
    parent is; the scheduler cuts a draft by it. ``None`` means no cut: tokens that were drawn may not
    be chosen from afterwards. ``expected`` then says how many tokens may be accepted.
    """

    tokens: Sequence[int] = ()
    parents: Sequence[int] | None = None
    probabilities: FloatArray | None = None
    confidence: Sequence[float] | None = None
    expected: float = 0.0
    with_replacement: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether every token follows the one before it."""
        return self.parents is None or list(self.parents) == list(range(-1, len(self.tokens) - 1))

    def children(self) -> list[list[int]]:
        """By row of the pass that verifies it (the context's last token, then the draft's), the
        draft tokens that follow."""
        if self.parents is None:
            return [*([i] for i in range(len(self.tokens))), []]
        found: list[list[int]] = [[] for _ in range(1 + len(self.tokens))]
        for i, parent in enumerate(self.parents):
            found[parent + 1].append(i)
        return found

    def depth(self) -> int:
        """Tokens of its longest path."""
        if self.parents is None:
            return len(self.tokens)
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent + 1] + 1)
        return max(depths)

    def first(self, count: int) -> Draft:
        """The first ``count`` tokens: of a tree a tree, as parents come first.

        Of ``expected`` there is no more than the depth that is left; how it spread over the tokens
        is not known.
        """
        if count >= len(self.tokens):
            return self
        shorter = replace(
            self,
            tokens=self.tokens[:count],
            parents=None if self.parents is None else self.parents[:count],
            probabilities=None if self.probabilities is None else self.probabilities[:count],
            confidence=None if self.confidence is None else self.confidence[:count],
        )
        return replace(shorter, expected=min(self.expected, shorter.depth()))


EMPTY = Draft()
