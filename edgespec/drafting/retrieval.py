"""Retrieval: what followed the longest match in the user's own files (REST, RASD).

REST: He et al. 2023, "Retrieval-Based Speculative Decoding". From RASD: what is retrieved is pruned
before it is merged with other drafts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgespec.core.drafter import Outcome
from edgespec.drafting.stores.datastore import DEPTH, SEPARATOR, Datastore, kept, tokenizer_key

if TYPE_CHECKING:
    from edgespec.models.tokenizer import Tokenizer

_SAMPLED = 64
"""Of more places where the context's end occurs only so many are looked at."""
_LENGTHS = (2, 3, 4, 5, 6, 8, 11, 16)
"""The shortest matches of each bin; below the first nothing is guessed."""
_SHARES = (0.05, 0.1, 0.2, 0.4, 0.7)
"""Least of n / (places + 1) for a guess that n of the places agree on; below the first it is pruned."""
_UNANIMOUS = (1, 2, 4)
"""Least number of places, if all agree."""
_BINS = len(_SHARES) + len(_UNANIMOUS)
_PRIORS = (
    (0.04, 0.06, 0.12, 0.28, 0.54, 0.16, 0.33, 0.62),
    (0.03, 0.08, 0.12, 0.27, 0.59, 0.22, 0.40, 0.73),
    (0.04, 0.07, 0.13, 0.30, 0.62, 0.30, 0.50, 0.83),
    (0.05, 0.08, 0.14, 0.34, 0.70, 0.40, 0.60, 0.84),
    (0.03, 0.08, 0.15, 0.35, 0.74, 0.54, 0.70, 0.86),
    (0.04, 0.09, 0.16, 0.47, 0.67, 0.67, 0.78, 0.92),
    (0.03, 0.06, 0.16, 0.43, 0.82, 0.77, 0.88, 0.95),
    (0.05, 0.13, 0.27, 0.58, 0.92, 0.97, 0.98, 0.99),
)
"""For each bin of lengths: as measured on Python sources that were left out of an index of their like."""
_MOST = 16
"""Indexes that are opened."""


@dataclass(frozen=True)
class Placement:
    """Where the context's end occurs in the files."""

    tail: tuple[int, ...]
    """The context's last tokens, at most ``DEPTH``."""
    positions: Sequence[int]
    """What follows it, all of it or a sample."""
    match: int
    """How many tokens match, at most ``DEPTH``."""
    whole: bool
    """Whether ``positions`` are all there are."""


class Retrieval:
    """Looks into one datastore. A lookup is a binary search: some 30 µs, whatever its size."""

    priors: Sequence[float] = tuple(chance for of_length in _PRIORS for chance in of_length)
    lasting = True

    def __init__(self, datastore: Datastore, vocab_size: int) -> None:
        self.name = f"retrieval:{datastore.facts.name}"
        self._datastore = datastore
        self._vocab_size = vocab_size

    def start(self, context: Sequence[int]) -> Placement:
        """The place of the context's end."""
        return self._find(tuple(context[-DEPTH:]))

    def successors(self, place: Placement, count: int) -> Sequence[tuple[int, int]]:
        """What follows in the files, by how often; a kind is a bin of match length and of agreement."""
        length = bisect_right(_LENGTHS, place.match) - 1
        if length < 0:
            return ()
        tokens = self._datastore.tokens
        followers = Counter(tokens[position % len(tokens)] for position in place.positions)
        places = len(place.positions)
        found = []
        for token, agreeing in followers.most_common():
            if agreeing == places:
                bin = len(_SHARES) + bisect_right(_UNANIMOUS, places) - 1
            else:
                bin = bisect_right(_SHARES, agreeing / (places + 1)) - 1
            if bin >= 0 and token < self._vocab_size:
                found.append((token, length * _BINS + bin))
        return found[:count]

    def advance(self, place: Placement, token: int) -> Placement:
        """Those of the positions where ``token`` is, or what a new search finds if there are none."""
        tail = (*place.tail, token)[-DEPTH:]
        if place.whole:
            tokens = self._datastore.tokens
            size = len(tokens)
            agreeing = ((at + 1) % size for at in place.positions if tokens[at % size] == token)
            if positions := [at for at in agreeing if tokens[at] != SEPARATOR]:
                return Placement(tail, positions, min(place.match + 1, DEPTH), True)
        return self._find(tail)

    def observe(self, outcome: Outcome) -> None:
        """Files do not change by what is said."""

    def _find(self, tail: tuple[int, ...]) -> Placement:
        first, last, match = self._datastore.find(tail)
        size, places = last - first, self._datastore.positions
        if size <= _SAMPLED:
            return Placement(tail, places[first:last].tolist(), match, True)
        sample = [places[first + i * size // _SAMPLED] for i in range(_SAMPLED)]
        return Placement(tail, sample, match, False)


def open_datastores(
    tokenizer: Tokenizer, notice: Callable[[str], None] = lambda line: None
) -> list[Retrieval]:
    """The sources of all indexes that were made for ``tokenizer``; takes a few milliseconds.

    A file that is there and is no such index is told to ``notice``.
    """
    if not kept():
        return []
    found = []
    for path in kept(tokenizer_key(tokenizer))[:_MOST]:
        try:
            found.append(Retrieval(Datastore(path), tokenizer.vocab_size))
        except (OSError, ValueError) as error:
            notice(f"the index {path} is not used: {error}; `edgespec index` makes it anew")
    return found
