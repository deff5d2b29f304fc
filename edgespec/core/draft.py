"""A draft: guesses of the next tokens, as a chain or a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgespec.core.runtime import FloatArray


@dataclass(frozen=True)
class Draft:
    """Tokens to verify in one target pass.

    ``parents[i]`` is the index of the draft token before token ``i``, -1 for the context's last
    token; ``None`` is a chain. Every parent comes before its children. Siblings are candidates for
    the same position, in the order in which they are verified.

    ``probabilities`` is float32 ``[len(tokens), vocab_size]``: the distribution q that each token was
    drawn from, before its earlier siblings were removed (siblings have the same row). ``None`` means
    one-hot: the drafter did not sample. Siblings are drawn one after the other without replacement,
    or independently with ``with_replacement`` (then they may repeat). A draft is lossless only if no
    drawn token is dropped because of its value. Earlier tokens may decide whether more tokens are
    drawn, with one exception: the number of siblings that are drawn with replacement must not depend
    on any of them.

    ``confidence[i]`` is the estimated probability that token ``i`` is accepted if its parent is. The
    scheduler cuts a draft by it. ``None`` means no cut, because drawn tokens must not be selected
    afterwards. ``expected`` is then the expected number of accepted tokens.
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
        """Whether every token follows the token before it."""
        return self.parents is None or list(self.parents) == list(range(-1, len(self.tokens) - 1))

    def children(self) -> list[list[int]]:
        """The children of each row of the pass, as indices of draft tokens.

        Row 0 is the context's last token, row i + 1 is draft token i.
        """
        if self.parents is None:
            return [*([i] for i in range(len(self.tokens))), []]
        found: list[list[int]] = [[] for _ in range(1 + len(self.tokens))]
        for i, parent in enumerate(self.parents):
            found[parent + 1].append(i)
        return found

    def depth(self) -> int:
        """The number of tokens of the longest path."""
        if self.parents is None:
            return len(self.tokens)
        depths = [0]
        for parent in self.parents:
            depths.append(depths[parent + 1] + 1)
        return max(depths)

    def first(self, count: int) -> Draft:
        """The first ``count`` tokens. The result is a tree, because parents come first.

        ``expected`` is limited to the remaining depth: its share per token is unknown.
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
