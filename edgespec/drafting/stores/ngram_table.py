"""Growing and merging tables of n-grams."""

from __future__ import annotations

import numpy as np

from edgespec.drafting.stores.ngram_store import SLOT, SUCCESSORS, WAYS, Slots

_CHUNK = 1 << 11
"""Buckets merged at once, so that the memory for merging does not grow with the table."""


def doubled(slots: Slots) -> Slots:
    """The same n-grams in twice the buckets: one more bit of the key selects the bucket."""
    bit = slots["key"] >> np.uint64(64 - len(slots).bit_length()) & np.uint64(1)
    split = np.zeros((len(slots), 2, WAYS), SLOT)
    for half in (0, 1):
        split[:, half][bit == half] = slots[bit == half]
    return split.reshape(-1, WAYS)


def merge(ours: Slots, theirs: Slots, half_life: int) -> None:
    """Keep in ``ours`` the most valuable n-grams of both.

    An n-gram in both keeps the larger counts. Both tables grew from the same one, so adding up would count that twice.
    """
    for start in range(0, len(ours), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        unequal = ours[chunk].view(np.uint8) != theirs[chunk].view(np.uint8)
        differ = start + np.flatnonzero(unequal.any(axis=1))
        ours[differ] = _most_valuable(ours[differ], theirs[differ], half_life)


def _most_valuable(ours: Slots, theirs: Slots, half_life: int) -> Slots:
    """The slots of both with the highest values, by the order of ``NgramCache._value``."""
    key = ours["key"]
    same = (key[:, :, None] == theirs["key"][:, None, :]) & (key != 0)[:, :, None]
    bucket, i, j = np.nonzero(same)
    ours[bucket, i] = _united(ours[bucket, i], theirs[bucket, j])
    theirs[bucket, j] = np.zeros((), SLOT)
    both = np.concatenate([ours, theirs], axis=1)
    bits = np.frexp(both["counts"].sum(axis=2, dtype=np.float64))[1]  # as int.bit_length
    value = both["used"].astype(np.int64) + half_life * bits.astype(np.int64)
    order = np.argsort(-value, axis=1, kind="stable")
    best: Slots = np.take_along_axis(both, order[:, :WAYS], axis=1)
    return best


def _united(ours: Slots, theirs: Slots) -> Slots:
    """Merges slots of the same n-grams, one of ``theirs`` into each of ``ours``."""
    tokens = np.concatenate([ours["tokens"], theirs["tokens"]], axis=1)
    counts = np.concatenate([ours["counts"], theirs["counts"]], axis=1).astype(np.int64)
    both = ours["tokens"][:, :, None] == theirs["tokens"][:, None, :]
    slot, i, j = np.nonzero(both & (ours["counts"] > 0)[:, :, None])
    counts[slot, i] = np.maximum(counts[slot, i], counts[slot, SUCCESSORS + j])
    counts[slot, SUCCESSORS + j] = 0
    order = np.argsort(-counts, axis=1, kind="stable")[:, :SUCCESSORS]
    ours["tokens"] = np.take_along_axis(tokens, order, axis=1)
    ours["counts"] = np.take_along_axis(counts, order, axis=1)
    ours["used"] = np.maximum(ours["used"], theirs["used"])
    return ours
