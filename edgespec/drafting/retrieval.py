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
from edgespec.drafting.stores.datastore import (
    DEPTH,
    SEPARATOR,
    Datastore,
    index_paths,
    tokenizer_key,
)

if TYPE_CHECKING:
    from edgespec.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class RetrievalConstants:
    """Constants of retrieval. A kind of guess is a bin of match length and a bin of agreement."""

    sampled: int = 64
    """Places that are read, at most, where the context's end occurs. A guess."""
    most_indexes: int = 16
    """Indexes that are opened. A guess."""
    lengths: tuple[int, ...] = (2, 3, 4, 5, 6, 8, 11, 16)
    """Shortest match of each bin, in tokens; below the first nothing is guessed. A guess."""
    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.7)
    """Least n / (places + 1) of each bin, for a guess that n of the places agree on; below the first it is pruned. A
    guess."""
    unanimous: tuple[int, ...] = (1, 2, 4)
    """Least number of places of each further bin, if all places agree. A guess."""
    priors: tuple[tuple[float, ...], ...] = (
        (0.04, 0.06, 0.12, 0.28, 0.54, 0.16, 0.33, 0.62),
        (0.03, 0.08, 0.12, 0.27, 0.59, 0.22, 0.40, 0.73),
        (0.04, 0.07, 0.13, 0.30, 0.62, 0.30, 0.50, 0.83),
        (0.05, 0.08, 0.14, 0.34, 0.70, 0.40, 0.60, 0.84),
        (0.03, 0.08, 0.15, 0.35, 0.74, 0.54, 0.70, 0.86),
        (0.04, 0.09, 0.16, 0.47, 0.67, 0.67, 0.78, 0.92),
        (0.03, 0.06, 0.16, 0.43, 0.82, 0.77, 0.88, 0.95),
        (0.05, 0.13, 0.27, 0.58, 0.92, 0.97, 0.98, 0.99),
    )
    """Acceptance rate of each kind, a row for each bin of lengths. Measured on Python sources that were left out of an
    index of similar ones."""


CONSTANTS = RetrievalConstants()


@dataclass(frozen=True)
class Placement:
    """Where the context's end occurs in the files."""

    tail: tuple[int, ...]
    """The context's last tokens, at most ``DEPTH``."""
    positions: Sequence[int]
    """The positions after it, all of them or a sample."""
    match: int
    """The number of matching tokens, at most ``DEPTH``."""
    complete: bool
    """Whether ``positions`` are all of them."""


class Retrieval:
    """Looks up one datastore. A lookup is a binary search: some 30 µs, whatever its size."""

    persistent = True

    def __init__(self, datastore: Datastore, vocab_size: int) -> None:
        self.priors = [rate for of_length in CONSTANTS.priors for rate in of_length]
        self.name = f"retrieval:{datastore.facts.name}"
        self._datastore = datastore
        self._vocab_size = vocab_size

    def start(self, context: Sequence[int]) -> Placement:
        """The place of the context's end."""
        return self._find(tuple(context[-DEPTH:]))

    def successors(self, place: Placement, count: int) -> Sequence[tuple[int, int]]:
        """The tokens that follow in the files, the most frequent first, with their kinds."""
        shares, unanimous = CONSTANTS.shares, CONSTANTS.unanimous
        length = bisect_right(CONSTANTS.lengths, place.match) - 1
        if length < 0:
            return ()
        tokens = self._datastore.tokens
        followers = Counter(tokens[position % len(tokens)] for position in place.positions)
        places = len(place.positions)
        found = []
        for token, agreeing in followers.most_common():
            if agreeing == places:
                bin = len(shares) + bisect_right(unanimous, places) - 1
            else:
                bin = bisect_right(shares, agreeing / (places + 1)) - 1
            if bin >= 0 and token < self._vocab_size:
                found.append((token, length * (len(shares) + len(unanimous)) + bin))
        return found[:count]

    def advance(self, place: Placement, token: int) -> Placement:
        """The positions where ``token`` follows, or the result of a new search if there are none."""
        tail = (*place.tail, token)[-DEPTH:]
        if place.complete:
            tokens = self._datastore.tokens
            size = len(tokens)
            agreeing = ((at + 1) % size for at in place.positions if tokens[at % size] == token)
            if positions := [at for at in agreeing if tokens[at] != SEPARATOR]:
                return Placement(tail, positions, min(place.match + 1, DEPTH), True)
        return self._find(tail)

    def observe(self, outcome: Outcome) -> None:
        """Nothing to learn: files do not depend on the output tokens."""

    def _find(self, tail: tuple[int, ...]) -> Placement:
        first, last, match = self._datastore.find(tail)
        size, places = last - first, self._datastore.positions
        count = CONSTANTS.sampled
        if size <= count:
            return Placement(tail, places[first:last].tolist(), match, True)
        sample = [places[first + i * size // count] for i in range(count)]
        return Placement(tail, sample, match, False)


def open_datastores(
    tokenizer: Tokenizer, notice: Callable[[str], None] = lambda line: None
) -> list[Retrieval]:
    """The sources of all indexes that were built for ``tokenizer``; takes a few milliseconds.

    A file that is not a valid index is reported to ``notice``.
    """
    if not index_paths():
        return []
    found = []
    for path in index_paths(tokenizer_key(tokenizer))[: CONSTANTS.most_indexes]:
        try:
            found.append(Retrieval(Datastore(path), tokenizer.vocab_size))
        except (OSError, ValueError) as error:
            notice(f"the index {path} is not used: {error}; `edgespec index` builds it again")
    return found
