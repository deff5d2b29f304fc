"""An n-gram cache that learns across sessions: which tokens the target produced after the last 1 to 4.

It counts what followed in all output tokens, and in what the target produces instead of a wrong draft (OmniDraft, ADED,
STAND, llama.cpp's lookup). Prompts are not learnt: prompt lookup covers those of this conversation, and those of others
are private. Nor are the target's other likely tokens, as in STAND: in 72 recorded answers the first guess was right 3
times in 1000 more often with them, one of the first two 8 times, for 1 ms a row that partitions a vocabulary.

The table is set-associative, like a processor's cache. An n-gram can be in the eight slots of one bucket, so looking up
and learning read one bucket for each order, however much is stored. A full bucket drops the n-gram of the lowest value:
its count, halved for every so many tokens since its last occurrence as fill the table with n-grams.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from edgespec.drafting.stores.ngram_table import doubled, merge
from edgespec.models.store import reason

MAX_BYTES = 32 << 20
"""The most that a table takes, in memory and on disk."""
ORDERS = 4
"""The longest n-grams. In 72 recorded answers, longer ones were right 2 times in 1000 more often."""
GRADES = 6
"""Grades of a follower: the only one, of one occurrence; of two occurrences one, or both; of more occurrences less than
half, at least half, all. A kind of guess is a grade for each order, and again for tokens of a shorter n-gram that come
after those of a longer one."""


@dataclass(frozen=True)
class NgramConstants:
    """Constants of the n-gram cache."""

    priors: tuple[float, ...] = (
        *(0.20, 0.13, 0.40, 0.06, 0.18, 0.70),
        *(0.35, 0.13, 0.55, 0.06, 0.20, 0.80),
        *(0.45, 0.20, 0.65, 0.13, 0.30, 0.85),
        *(0.65, 0.25, 0.85, 0.20, 0.40, 0.95),
        *(0.05, 0.10, 0.10, 0.05, 0.10, 0.10),
        *(0.10, 0.10, 0.10, 0.08, 0.20, 0.20),
        *(0.15, 0.20, 0.20, 0.10, 0.25, 0.25),
    )
    """By kind, a row of grades for each order: the acceptance rate of its guesses. Measured on 72 answers of all kinds,
    each half after the other."""


CONSTANTS = NgramConstants()

_KEYS = struct.Struct("=" + f"Q{SLOT.itemsize - 8}x" * WAYS)
_SLOT = struct.Struct(f"=QI{SUCCESSORS}B{SUCCESSORS}I")
_FIRST_BUCKETS = 1 << 12
"""A mebibyte; it doubles as it fills."""
_MASK, _MIX = (1 << 64) - 1, 0x9E3779B97F4A7C15
_MAX_COUNT, _MAX_CLOCK = (1 << 8) - 1, (1 << 32) - 1

Placement = tuple[int, ...]
"""The last ``ORDERS`` tokens or fewer."""


class NgramCache:
    """A source of what the target produced after the last 1 to 4 tokens, stored at ``path``.

    ``key`` identifies the tokens' model, see ``ngram_store.key_of``; ``model`` is its name, for people. A file of
    another model, or a damaged one, is reported to ``notice`` and replaced when this one is saved. With ``path`` ``None``
    nothing is read or written.
    """

    name = "ngram-cache"
    persistent = True

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
        self.priors = CONSTANTS.priors
        self._tail: Placement = ()
        self._length = -1  # the context's, if only output tokens are added
        self._saved_at, self._serial = time.monotonic(), 0
        self._reported: set[str] = set()
        self._empty()
        if path is not None:
            self._load(path)

    # -- the source ----------------------------------------------------------------------------

    def start(self, context: Sequence[int]) -> Placement:
        """The context's last tokens.

        A table that fills up grows when a prompt was added: that takes up to 0.1 s, little beside reading a prompt.
        """
        if len(context) != self._length:
            self._length = len(context)
            while 2 * self.entries > self._slots.size and len(self._slots) < self._max_buckets:
                self._set_table(doubled(self._slots))
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
            total = sum(times for _, times in followers)
            for token, times in followers:
                if len(found) >= count:
                    return list(found.items())
                found.setdefault(token, longer + (order - 1) * GRADES + _grade(times, total))
            longer = ORDERS * GRADES
        return list(found.items())

    def advance(self, place: Placement, token: int) -> Placement:
        """The place after one more token."""
        return (*place, token)[-ORDERS:]

    def observe(self, outcome: Outcome) -> None:
        """Count the output tokens; they may be guessed from the next step on."""
        for token in map(int, outcome.tokens):
            for key in _keys(self._tail):
                self._count(key, token)
            self._tail = self.advance(self._tail, token)
            self._clock = min(self._clock + 1, _MAX_CLOCK)
        self._length += len(outcome.tokens)
        self._changed = True

    # -- the file ------------------------------------------------------------------------------

    def save(self, every: float = 0.0) -> None:
        """Write what was learnt, merged with what other processes wrote, at most once in ``every`` seconds.

        For use between answers: it takes 0.1 s with a full table. Where another process has written, it takes 0.3 s
        and the memory of a second table. If the file cannot be written, it stays as it was, and the first failure is
        reported. If the file was deleted meanwhile (``edgespec cache clear``), what was learnt before is forgotten.
        """
        if self._path is None or not self._changed or time.monotonic() - self._saved_at < every:
            return
        self._saved_at = time.monotonic()
        try:
            with files.locked(self._path.parent):
                self._exchange(self._path)
        except OSError as error:
            self._report(f"cannot keep what was learnt in {self._path.parent}: {reason(error)}")

    def close(self) -> None:
        """Save, and release the memory."""
        self.save()
        self._path = None
        self._empty()

    @property
    def entries(self) -> int:
        """The number of n-grams stored."""
        return self._entries

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the table takes now."""
        return self._slots.nbytes

    def _load(self, path: Path) -> None:
        try:
            header, slots = files.read(path, self._key, self._vocab_size)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self._report(f"the n-gram cache {path} is not used and will be replaced: {error}")
            return
        self._set_table(self._shrunk(slots))
        self._clock, self._serial = header.clock, header.serial

    def _exchange(self, path: Path) -> None:
        """Merge with the file if another process wrote it, and write."""
        serial = files.serial_of(path)
        if self._serial and not path.exists():
            self._empty()
            self._serial = 0
            return
        if serial is not None and serial != self._serial:
            try:
                header, slots = files.read(path, self._key, self._vocab_size)
            except ValueError:
                pass  # reported at the start, or another process's fault: replaced either way
            else:
                self._clock = max(self._clock, header.clock)
                slots = self._shrunk(slots)
                while len(slots) < len(self._slots):
                    slots = doubled(slots)
                while len(self._slots) < len(slots):
                    self._set_table(doubled(self._slots))
                merge(self._slots, slots, self._half_life)
                self._set_table(self._slots)
        self._serial = files.write(
            path, self._key, self._model, self._vocab_size, self._clock, self._slots
        )
        self._changed = False

    def _shrunk(self, slots: Slots) -> Slots:
        """The table within ``max_bytes``; it may have been made with more."""
        while len(slots) > self._max_buckets:
            merge(slots[0::2], slots[1::2], self._half_life)
            slots = slots[0::2]
        return slots

    def _report(self, line: str) -> None:
        if line not in self._reported:
            self._notice(line)
        self._reported.add(line)

    # -- the table -----------------------------------------------------------------------------

    def _set_table(self, slots: Slots) -> None:
        self._slots = np.ascontiguousarray(slots)
        self._bytes = self._slots.view(np.uint8).reshape(-1).data
        self._shift = 65 - len(slots).bit_length()
        self._entries = int(np.count_nonzero(slots["key"]))

    def _empty(self) -> None:
        self._set_table(np.zeros((min(_FIRST_BUCKETS, self._max_buckets), WAYS), SLOT))
        self._clock = 0
        self._changed = False

    def _find(self, key: int) -> int:
        """The byte offset of an n-gram's slot; -1 if it is not stored."""
        bucket = (key >> self._shift) * BUCKET_BYTES
        keys = _KEYS.unpack_from(self._bytes, bucket)
        return bucket + keys.index(key) * SLOT.itemsize if key in keys else -1

    def _room(self, key: int) -> int:
        """The byte offset for a new n-gram: a free slot of its bucket, else that of the lowest value."""
        bucket = (key >> self._shift) * BUCKET_BYTES
        keys = _KEYS.unpack_from(self._bytes, bucket)
        if 0 in keys:
            self._entries += 1
            return bucket + keys.index(0) * SLOT.itemsize
        places = range(bucket, bucket + BUCKET_BYTES, SLOT.itemsize)
        return min(places, key=self._value)

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
            i = sum(n > times for n in counts)  # the latest of equally frequent ones comes first
            tokens.insert(i, token)
            counts.insert(i, times)
            if times > _MAX_COUNT:
                counts = [n // 2 for n in counts]
        free = [0] * (SUCCESSORS - len(tokens))
        _SLOT.pack_into(self._bytes, at, key, self._clock, *counts, *free, *tokens, *free)

    def _value(self, place: int) -> int:
        """Its last occurrence, plus a half-life for each doubling of its count; as in ``ngram_table``."""
        used, *slot = _SLOT.unpack_from(self._bytes, place)[1:]
        value: int = used + self._half_life * sum(slot[:SUCCESSORS]).bit_length()
        return value


def _keys(place: Placement) -> list[int]:
    """Hashes of the last token, the last two, and so on; never 0. They are stored: the same on every machine."""
    keys, key = [], 0
    for token in reversed(place):
        key = ((key ^ key >> 32) + token + 1) * _MIX & _MASK or 1
        keys.append(key)
    return keys


def _grade(times: int, total: int) -> int:
    """The grade of a follower that came ``times`` of ``total``, see ``GRADES``."""
    if total < 3:
        return times if total == 2 else 0
    return 5 if times == total else 4 if 2 * times >= total else 3


def _followers(slot: Sequence[int]) -> list[tuple[int, int]]:
    """The tokens of a slot and how often each followed."""
    counts, tokens = slot[2 : 2 + SUCCESSORS], slot[2 + SUCCESSORS :]
    return [(token, times) for token, times in zip(tokens, counts, strict=True) if times]
