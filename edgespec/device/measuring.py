"""Measures what passes cost here, in the time that it is given."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from time import perf_counter

import numpy as np

from edgespec.core.latency import LatencyCurve
from edgespec.core.runtime import Runtime
from edgespec.device.profile import Profile, Setup
from edgespec.progress import Progress, silent

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 17, 20, 24, 32)
"""Sizes of pass worth measuring: those that are drafted most, and both sides of the kernels' steps."""
LENGTHS = (64, 512, 1536)
"""Tokens in the cache: a question, a conversation, a document."""
FULL_S, QUICK_S = 16.0, 1.8
"""Seconds for all of it."""
QUICK_ROWS = (1, 2, 4, 8)
"""Sizes measured before a first answer."""
_EVERYWHERE = (1, 4, 8, 2, 16, 32)
"""Sizes measured at every length, and first. What the others cost more there lies between these."""
_OFTEN = 16
"""Larger sizes are measured once a visit: they take long, and few are drafted."""
_FILLING = 0.3
"""The share of the time that may go into filling the cache."""
_ROUNDS = 8
"""Passes per size at one visit of a length; more add little information."""
_APART = 256
"""Tokens: closer lengths do not show the effect of a longer cache."""
_OUTLIER = 5.0
"""Samples so many times the usual deviation away from the median are another program's doing."""
_LEAST_DEVIATION = 0.01
"""Of the median: clocks and caches make as much."""
_SWEPT_BYTES = 1 << 28
"""More than caches hold."""


def measure_curve(
    runtime: Runtime,
    rows: Sequence[int] = ROWS,
    lengths: Sequence[int] = LENGTHS,
    budget_s: float = FULL_S,
    progress: Progress = silent,
) -> LatencyCurve:
    """Time passes over ``rows`` tokens at cache ``lengths`` for about ``budget_s`` seconds.

    Sizes that are padded to the same one are measured once, under that. Lengths that the context,
    or the time for filling the cache, does not reach are moved closer together. Nothing stays in
    the cache.
    """
    return _Measuring(runtime, rows, budget_s, progress).curve(lengths)


def measure_profile(
    runtime: Runtime,
    setup: Setup,
    *,
    quick: bool = False,
    budget_s: float | None = None,
    rows: Sequence[int] | None = None,
    progress: Progress = silent,
) -> Profile:
    """The profile of a model that is loaded with ``setup``; a ``quick`` one at the present length,
    in at most 2 s (where a few passes do not take longer)."""
    budget_s = budget_s or (QUICK_S if quick else FULL_S)
    rows = rows or (QUICK_ROWS if quick else ROWS)
    measuring = _Measuring(runtime, rows, budget_s, progress)
    curve = measuring.curve((runtime.length,) if quick else LENGTHS)
    rate, info = measuring.prefill_tokens_per_s(), runtime.info
    progress(f"timing passes on {info.runtime}", 1, 1)
    name = "".join(c if c.isprintable() else " " for c in info.name)[:100]
    return Profile(
        machine=setup.machine,
        model={
            "name": name.strip() or "unnamed",
            "fingerprint": setup.fingerprint,
            "weight_bytes": info.weight_bytes,
            **({"isa": info.isa} if info.isa else {}),
        },
        runtime=setup.runtime,
        runtime_version=setup.runtime_version,
        device=setup.device,
        exact=setup.exact,
        threads=setup.threads,
        curve=curve,
        prefill_tokens_per_s=rate,
        thread_counts={setup.threads: curve.seconds[0][0]},
        quick=quick,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        pass_sizes=info.pass_sizes,
    )


def memory_bandwidth(threads: int) -> float:
    """Bytes a second that ``threads`` threads read of memory: of the best of a few sweeps."""
    array = np.ones(_SWEPT_BYTES // 4, np.float32)
    parts = np.array_split(array, threads)
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            started = perf_counter()
            list(pool.map(np.dot, parts, parts))  # numpy's sum adds more slowly than memory reads
            times.append(perf_counter() - started)
    return array.nbytes / min(times)


class _Measuring:
    """One measuring of a runtime: its clock, and the samples taken so far."""

    def __init__(
        self, runtime: Runtime, rows: Sequence[int], budget_s: float, progress: Progress
    ) -> None:
        self.runtime, self.budget_s = runtime, budget_s
        self._progress = progress
        self._end, self._start = perf_counter() + budget_s, runtime.length
        info, room = runtime.info, runtime.info.context - runtime.length
        self._tokens_of = {info.padded(n): n for n in sorted(rows) if n <= room}
        self._rng = np.random.default_rng(0)
        chunk = info.prefill_chunk
        count = min(room, max((chunk, *rows)))
        self._tokens: list[int] = self._rng.integers(0, info.vocab_size, count).tolist()
        self._chunk = min(chunk, count)
        self._warm: dict[int, float] = {}  # seconds of the first pass of a size
        self._samples: dict[tuple[int, int], list[float]] = {}  # by length and size
        self._chunks: list[float] = []  # seconds of prompt chunks

    def curve(self, lengths: Sequence[int]) -> LatencyCurve:
        """Measure, up to the longest of ``lengths`` and down again: drift must not look like length."""
        try:
            self._fill(min(lengths[0], self._most()), self.budget_s / 4)
            first = self.runtime.length
            self._warm_up()
            sizes = {at: self._sizes(at, first) for at in self._reachable(lengths, first)}
            visits = [*sizes, *list(sizes)[-2::-1]]
            for number, length in enumerate(visits):
                filling_s = max(length - self.runtime.length, 0) / self._rate()
                if self._left() < filling_s + sum(self._warm[size] for size in sizes[length]):
                    break
                if length > self.runtime.length:
                    self._fill(length)
                else:
                    self.runtime.keep([])
                    self.runtime.truncate(length)
                left = self._left()
                if number < len(sizes):
                    left -= (max(sizes) - length) / self._rate()  # which filling will take
                rounds = left / sum(self._round_s(sizes[at]) for at in visits[number:])
                self._visit(length, sizes[length], rounds * self._round_s(sizes[length]))
        finally:
            self.runtime.keep([])
            self.runtime.truncate(self._start)
        for size, seconds in self._warm.items():
            taken = self._samples.setdefault((first, size), [])
            if len(taken) < 2:  # the error of a single sample is unknown
                taken.append(seconds)
        return self._curve([at for at in sizes if (at, min(self._warm)) in self._samples])

    def prefill_tokens_per_s(self) -> float:
        """Of prompt chunks; where the cache was not filled they are timed now, if there is time.

        Else that of the largest pass, whose logits a prompt would not need.
        """
        for _ in range(2 - len(self._chunks)):
            if self._chunk / self._rate() <= self._left():
                self._chunks.append(self._timed(self._chunk, logits=False))
        self.runtime.keep([])
        return self._rate()

    def _left(self) -> float:
        """Seconds."""
        return self._end - perf_counter()

    def _most(self) -> int:
        """The longest cache that leaves room for every size."""
        return self.runtime.info.context - max(self._tokens_of.values())

    def _timed(self, count: int, *, logits: bool = True) -> float:
        tenths = int(self.budget_s * 10)
        done = min(max(int((self.budget_s - self._left()) * 10), 0), tenths)
        self._progress(f"timing passes on {self.runtime.info.runtime}", done, tenths)
        started = perf_counter()
        self.runtime.forward(self._tokens[:count], logits="all" if logits else "none")
        return perf_counter() - started

    def _fill(self, length: int, seconds: float = math.inf) -> None:
        """Fill the cache with ``length`` tokens, or as many as ``seconds`` allow."""
        until = perf_counter() + seconds
        while (missing := length - self.runtime.length) > 0 and perf_counter() < until:
            size = min(self._chunk, missing)
            taken = self._timed(size, logits=False)
            self.runtime.keep(range(size))
            if size == self._chunk:
                self._chunks.append(taken)

    def _rate(self) -> float:
        """Tokens of a prompt a second, as far as is known."""
        if not self._chunks:
            largest, seconds = max(self._warm.items())
            return largest / seconds
        chunks = self._chunks[1:] or self._chunks  # the first allocates
        return self._chunk / statistics.median(chunks)

    def _warm_up(self) -> None:
        """Once through the sizes: the first pass of one pays for allocations, and counts only where
        there is time for hardly another.

        When that has taken an eighth of the time, the sizes left are left out, for a few timed often
        say more than many timed once.
        """
        order = [self.runtime.info.padded(n) for n in _EVERYWHERE]
        order = [size for size in order if size in self._tokens_of]
        for size in dict.fromkeys([*order, *self._tokens_of]):
            if len(self._warm) >= 2 and sum(self._warm.values()) > self.budget_s / 8:
                break
            self._warm[size] = self._timed(self._tokens_of[size])
        self._warm = dict(sorted(self._warm.items()))

    def _reachable(self, lengths: Sequence[int], first: int) -> list[int]:
        """``lengths``, closer together where the context or the time does not reach the last.

        Only the first where no time would be left for passes.
        """
        seconds = min(_FILLING * self.budget_s, self._left() / 2)
        longest = min(lengths[-1], self._most(), first + int(self._rate() * seconds))
        passes_s = self._left() - (longest - first) / self._rate()
        rounds = passes_s / sum(self._warm[size] for size in self._sizes(longest, first))
        if longest - first < _APART or rounds < _ROUNDS:
            return [first]
        share = (longest - first) / (lengths[-1] - first)
        return sorted({first + max(int((length - first) * share), 0) for length in lengths})

    def _sizes(self, length: int, first: int) -> list[int]:
        """What is measured at ``length``: every size at the ``first``."""
        everywhere = {self.runtime.info.padded(n) for n in _EVERYWHERE}
        sizes = list(self._warm)
        return [n for n in sizes if length == first or n in everywhere] or sizes[:1]

    def _round_s(self, sizes: Sequence[int]) -> float:
        """Seconds of a round, but for the first of a visit."""
        return sum(self._warm[size] for size in sizes if size <= _OFTEN)

    def _visit(self, length: int, sizes: Sequence[int], seconds: float) -> None:
        """Rounds over the sizes, one at least, each in another order."""
        until = perf_counter() + seconds
        for _ in range(_ROUNDS):
            for size in self._rng.permutation(sizes).tolist():
                taken = self._timed(self._tokens_of[size])
                self._samples.setdefault((length, size), []).append(taken)
            sizes = [size for size in sizes if size <= _OFTEN] or sizes
            if perf_counter() + self._round_s(sizes) > until:
                break

    def _curve(self, lengths: Sequence[int]) -> LatencyCurve:
        sizes = list(self._warm)
        seconds: list[tuple[float, ...]] = []
        spreads: list[tuple[float, ...]] = []
        for length in lengths:
            known = [size for size in sizes if (length, size) in self._samples]
            found = [robust(self._samples[length, size]) for size in known]
            row = np.array([median for median, _ in found])
            if len(known) < len(sizes):  # elsewhere than at the first length
                base = np.array(seconds[0])
                more = row - np.interp(known, sizes, base)
                between = base + np.interp(sizes, known, more).clip(0)
                measured = np.isin(sizes, known)
                row = np.where(measured, np.interp(sizes, known, row), between)
            seconds.append(tuple(row.tolist()))
            spread = np.interp(sizes, known, [spread for _, spread in found])
            spreads.append(tuple(spread.tolist()))
        return LatencyCurve(tuple(sizes), tuple(lengths), tuple(seconds), tuple(spreads))


def robust(samples: Sequence[float]) -> tuple[float, float]:
    """The median and the spread, (p90 - p10) / median, of ``samples`` without outliers."""
    values = np.asarray(samples)
    middle = np.median(values)
    deviation = max(float(np.median(np.abs(values - middle))), _LEAST_DEVIATION * float(middle))
    values = values[np.abs(values - middle) <= _OUTLIER * deviation]
    low, middle, high = np.percentile(values, (10, 50, 90))
    return float(middle), float((high - low) / middle)
