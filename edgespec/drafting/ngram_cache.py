"""What the model said before after words like these: an n-gram cache that learns across sessions.

For the last 1 to 4 tokens it counts what followed, in everything that the target says and in what it
says instead of a wrong draft (OmniDraft, ADED, STAND, llama.cpp's lookup). Prompts are not learnt:
those of this conversation are the suffix source's, those of others nobody's business. Nor are the
target's other likely tokens, as in STAND: in 72 recorded answers the first guess was right 3 times in
1000 more often with them, one of the first two 8 times, for 1 ms a row that partitions a vocabulary.

The table is set-associative, as a processor's cache is: an n-gram can lie in the eight slots of one
bucket, so looking up and learning read a bucket an order, whatever is stored. A full bucket forgets
what is worth least: its count, halved for every so many tokens since it was last said as fill the
table with n-grams.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgespec.core.drafter import Outcome
from edgespec.drafting.stores import ngram_store as files
from edgespec.drafting.stores.ngram_store import (
    BUCKET_BYTES,
    MAX_BUCKETS,
    SLOT,
    SUCCESSORS,
    WAYS,
    Slots,
)
from edgespec.models.store import reason

MAX_BYTES = 32 << 20
"""The most that a table takes, in memory and on disk."""
ORDERS = 4
"""The longest n-grams; more of them were right 2 times in 1000 more often."""

_KEYS = struct.Struct("=" + f"Q{SLOT.itemsize - 8}x" * WAYS)
_SLOT = struct.Struct(f"=QI{SUCCESSORS}B{SUCCESSORS}I")
_FIRST_BUCKETS = 1 << 12
"""A mebibyte; it doubles as it fills."""
_MASK, _MIX = (1 << 64) - 1, 0x9E3779B97F4A7C15
_MAX_COUNT, _MAX_CLOCK = (1 << 8) - 1, (1 << 32) - 1
_CHUNK = 1 << 11
"""Buckets that are merged at once: what merging takes in memory does not grow with the table."""

Placement = tuple[int, ...]
"""The last ``ORDERS`` tokens or fewer."""

_GRADES = 6
"""Of an n-gram's followers: the only one of one time; of two times one or both; of more times less
than half, half, all. A kind is a grade for each order, and again for tokens of a shorter n-gram that
come after those of a longer one."""
_PRIORS = (
    *(0.20, 0.13, 0.40, 0.06, 0.18, 0.70),
    *(0.35, 0.13, 0.55, 0.06, 0.20, 0.80),
    *(0.45, 0.20, 0.65, 0.13, 0.30, 0.85),
    *(0.65, 0.25, 0.85, 0.20, 0.40, 0.95),
    *(0.05, 0.10, 0.10, 0.05, 0.10, 0.10),
    *(0.10, 0.10, 0.10, 0.08, 0.20, 0.20),
    *(0.15, 0.20, 0.20, 0.10, 0.25, 0.25),
)
"""How often guesses were right in 72 answers of all kinds, each half after the other."""


class NgramCache:
    """A source of what the target said after the last 1 to 4 tokens, kept at ``path``.

    ``key`` says whose tokens they are, see ``ngram_store.key_of``; ``model`` is its name, for people.
    A file of another model, or one that is not as it was written, is told to ``notice`` and replaced
    when this one is saved. ``path`` ``None``: nothing is read or written.
    """

    name = "ngram-cache"
    priors = _PRIORS
    lasting = True

    def __init__(
        self,
        path: Path | None,
        key: str,
        vocab_size: int,
        *,
        model: str = "",
        max_bytes: int = MAX_BYTES,
        notice: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._path, self._key, self._vocab_size, self._model = path, key, vocab_size, model
        self._clock: int
        self._notice = notice
        buckets = min(max(max_bytes // BUCKET_BYTES, 1), MAX_BUCKETS)
        self._max_buckets = 1 << buckets.bit_length() - 1
        self._half_life = self._max_buckets * WAYS // ORDERS
        self._tail: Placement = ()
        self._length = -1  # the context's, if only what the target said is added
        self._saved_at, self._serial = time.monotonic(), 0
        self._told: set[str] = set()
        self._forget()
        if path is not None:
            self._load(path)

    # -- the source ----------------------------------------------------------------------------

    def start(self, context: Sequence[int]) -> Placement:
        """The context's last tokens. Where a prompt was added, a table that fills up grows: it takes
        up to 0.1 s, which is little beside reading a prompt."""
        if len(context) != self._length:
            self._length = len(context)
            while 2 * self.entries > self._slots.size and len(self._slots) < self._max_buckets:
                self._use(_doubled(self._slots))
        self._tail = tuple(map(int, context[-ORDERS:]))
        return self._tail

    def successors(self, place: Placement, count: int) -> list[tuple[int, int]]:
        """At most ``count`` tokens: those after the longest n-gram known, then after shorter ones."""
        found: dict[int, int] = {}
        longer = 0
        keys = _keys(place)
        for order in range(len(keys), 0, -1):
            at = self._find(keys[order - 1])
            if at < 0:
                continue
            followers = _followers(_SLOT.unpack_from(self._bytes, at))
            said = sum(times for _, times in followers)
            for token, times in followers:
                if len(found) >= count:
                    return list(found.items())
                found.setdefault(token, longer + (order - 1) * _GRADES + _grade(times, said))
            longer = ORDERS * _GRADES
        return list(found.items())

    def advance(self, place: Placement, token: int) -> Placement:
        """The place after one more token."""
        return (*place, token)[-ORDERS:]

    def observe(self, outcome: Outcome) -> None:
        """Count what was said; it may be guessed from the next step on."""
        for token in map(int, outcome.said):
            for key in _keys(self._tail):
                self._count(key, token)
            self._tail = self.advance(self._tail, token)
            self._clock = min(self._clock + 1, _MAX_CLOCK)
        self._length += len(outcome.said)
        self._changed = True

    # -- the file ------------------------------------------------------------------------------

    def save(self, every: float = 0.0) -> None:
        """Keep what was learnt, with what other processes have kept since, unless that was done in
        the last ``every`` seconds. For between answers: it takes 0.1 s with a full table, and where
        another process has written 0.3 s and the memory of a second one.

        Where the disk cannot take it, the file stays as it was and the first such time is told. Where
        it was deleted meanwhile (``edgespec cache clear``), what was learnt before is forgotten.
        """
        if self._path is None or not self._changed or time.monotonic() - self._saved_at < every:
            return
        self._saved_at = time.monotonic()
        try:
            with files.locked(self._path.parent):
                self._exchange(self._path)
        except OSError as error:
            self._tell(f"cannot keep what was learnt in {self._path.parent}: {reason(error)}")

    def close(self) -> None:
        """Save, and give the memory back."""
        self.save()
        self._path = None
        self._forget()

    @property
    def entries(self) -> int:
        """N-grams that are stored."""
        return self._entries

    @property
    def nbytes(self) -> int:
        """Memory that the table takes now."""
        return self._slots.nbytes

    def _load(self, path: Path) -> None:
        try:
            header, slots = files.read(path, self._key, self._vocab_size)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self._tell(f"the n-gram cache {path} is not used and will be replaced: {error}")
            return
        self._use(self._shrunk(slots))
        self._clock, self._serial = header.clock, header.serial

    def _exchange(self, path: Path) -> None:
        """Merge with what is on disk, if somebody else wrote that, and write."""
        serial = files.serial_of(path)
        if self._serial and not path.exists():
            self._forget()
            self._serial = 0
            return
        if serial is not None and serial != self._serial:
            try:
                header, slots = files.read(path, self._key, self._vocab_size)
            except ValueError:
                pass  # it was told at the start, or is another process's mishap: replaced either way
            else:
                self._clock = max(self._clock, header.clock)
                slots = self._shrunk(slots)
                while len(slots) < len(self._slots):
                    slots = _doubled(slots)
                while len(self._slots) < len(slots):
                    self._use(_doubled(self._slots))
                _merge(self._slots, slots, self._half_life)
                self._use(self._slots)
        self._serial = files.write(
            path, self._key, self._model, self._vocab_size, self._clock, self._slots
        )
        self._changed = False

    def _shrunk(self, slots: Slots) -> Slots:
        """At most ``max_bytes`` of a table that was made with more."""
        while len(slots) > self._max_buckets:
            _merge(slots[0::2], slots[1::2], self._half_life)
            slots = slots[0::2]
        return slots

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._notice(line)
        self._told.add(line)

    # -- the table -----------------------------------------------------------------------------

    def _use(self, slots: Slots) -> None:
        self._slots = np.ascontiguousarray(slots)
        self._bytes = self._slots.view(np.uint8).reshape(-1).data
        self._shift = 65 - len(slots).bit_length()
        self._entries = int(np.count_nonzero(slots["key"]))

    def _forget(self) -> None:
        self._use(np.zeros((min(_FIRST_BUCKETS, self._max_buckets), WAYS), SLOT))
        self._clock = 0
        self._changed = False

    def _find(self, key: int) -> int:
        """Where an n-gram lies, in bytes; -1 where it does not."""
        bucket = (key >> self._shift) * BUCKET_BYTES
        keys = _KEYS.unpack_from(self._bytes, bucket)
        return bucket + keys.index(key) * SLOT.itemsize if key in keys else -1

    def _room(self, key: int) -> int:
        """Where a new n-gram may lie: a free slot of its bucket, else that of what is worth least."""
        bucket = (key >> self._shift) * BUCKET_BYTES
        keys = _KEYS.unpack_from(self._bytes, bucket)
        if 0 in keys:
            self._entries += 1
            return bucket + keys.index(0) * SLOT.itemsize
        places = range(bucket, bucket + BUCKET_BYTES, SLOT.itemsize)
        return min(places, key=self._worth)

    def _count(self, key: int, token: int) -> None:
        """Count ``token`` after an n-gram."""
        at = self._find(key)
        if at < 0:
            tokens, counts = [token], [1]
            at = self._room(key)
        else:
            slot = _SLOT.unpack_from(self._bytes, at)
            halved = (self._clock - slot[1]) // self._half_life
            followers = [(t, n >> halved) for t, n in _followers(slot) if n >> halved]
            tokens, counts = [t for t, _ in followers], [n for _, n in followers]
            times = 1
            if token in tokens:
                i = tokens.index(token)
                times += counts.pop(i)
                del tokens[i]
            del tokens[SUCCESSORS - 1 :], counts[SUCCESSORS - 1 :]
            i = sum(n > times for n in counts)  # of those as frequent it is the latest
            tokens.insert(i, token)
            counts.insert(i, times)
            if times > _MAX_COUNT:
                counts = [n // 2 for n in counts]
        free = [0] * (SUCCESSORS - len(tokens))
        _SLOT.pack_into(self._bytes, at, key, self._clock, *counts, *free, *tokens, *free)

    def _worth(self, place: int) -> int:
        """What forgetting goes by: the count, halved by age, in half-lives. As in ``_best``."""
        used, *slot = _SLOT.unpack_from(self._bytes, place)[1:]
        worth: int = used + self._half_life * sum(slot[:SUCCESSORS]).bit_length()
        return worth


def _keys(place: Placement) -> list[int]:
    """Hashes of the last token, the last two, and so on; never 0. The same on every machine."""
    keys, key = [], 0
    for token in reversed(place):
        key = ((key ^ key >> 32) + token + 1) * _MIX & _MASK or 1
        keys.append(key)
    return keys


def _grade(times: int, said: int) -> int:
    if said < 3:
        return times if said == 2 else 0
    return 5 if times == said else 4 if 2 * times >= said else 3


def _followers(slot: Sequence[int]) -> list[tuple[int, int]]:
    """The tokens of a slot and how often each was said."""
    counts, tokens = slot[2 : 2 + SUCCESSORS], slot[2 + SUCCESSORS :]
    return [(token, times) for token, times in zip(tokens, counts, strict=True) if times]


def _doubled(slots: Slots) -> Slots:
    """The same n-grams in twice the buckets: one more bit of a key says which of two it is in."""
    bit = slots["key"] >> np.uint64(64 - len(slots).bit_length()) & np.uint64(1)
    split = np.zeros((len(slots), 2, WAYS), SLOT)
    for half in (0, 1):
        split[:, half][bit == half] = slots[bit == half]
    return split.reshape(-1, WAYS)


def _merge(ours: Slots, theirs: Slots, half_life: int) -> None:
    """Put into ``ours`` what is worth most of both. An n-gram that both have keeps the larger counts:
    the tables grew from the same, and adding them up would count that twice."""
    for start in range(0, len(ours), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        unequal = ours[chunk].view(np.uint8) != theirs[chunk].view(np.uint8)
        differ = start + np.flatnonzero(unequal.any(axis=1))
        ours[differ] = _best(ours[differ], theirs[differ], half_life)


def _best(ours: Slots, theirs: Slots, half_life: int) -> Slots:
    key = ours["key"]
    same = (key[:, :, None] == theirs["key"][:, None, :]) & (key != 0)[:, :, None]
    bucket, i, j = np.nonzero(same)
    ours[bucket, i] = _united(ours[bucket, i], theirs[bucket, j])
    theirs[bucket, j] = np.zeros((), SLOT)
    both = np.concatenate([ours, theirs], axis=1)
    bits = np.frexp(both["counts"].sum(axis=2, dtype=np.float64))[1]  # as int.bit_length
    worth = both["used"].astype(np.int64) + half_life * bits.astype(np.int64)
    order = np.argsort(-worth, axis=1, kind="stable")
    best: Slots = np.take_along_axis(both, order[:, :WAYS], axis=1)
    return best


def _united(ours: Slots, theirs: Slots) -> Slots:
    """Slots of the same n-grams as one each."""
    tokens = np.concatenate([ours["tokens"], theirs["tokens"]], axis=1)
    counts = np.concatenate([ours["counts"], theirs["counts"]], axis=1).astype(np.int64)
    again = ours["tokens"][:, :, None] == theirs["tokens"][:, None, :]
    slot, i, j = np.nonzero(again & (ours["counts"] > 0)[:, :, None])
    counts[slot, i] = np.maximum(counts[slot, i], counts[slot, SUCCESSORS + j])
    counts[slot, SUCCESSORS + j] = 0
    order = np.argsort(-counts, axis=1, kind="stable")[:, :SUCCESSORS]
    ours["tokens"] = np.take_along_axis(tokens, order, axis=1)
    ours["counts"] = np.take_along_axis(counts, order, axis=1)
    ours["used"] = np.maximum(ours["used"], theirs["used"])
    return ours
