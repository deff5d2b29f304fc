"""The n-gram cache: what it learns, what it forgets, what it keeps. Its file: test_ngram_store.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edgespec.core.draft import EMPTY, Draft
from edgespec.core.drafter import Outcome
from edgespec.drafting import ngram_cache
from edgespec.drafting.ngram_cache import GRADES, MAX_BYTES, ORDERS, NgramCache
from edgespec.drafting.sources import Source
from edgespec.drafting.stores.ngram_store import BUCKET_BYTES, SLOT, WAYS

VOCAB = 50_000
LOGITS = np.zeros((1, 1), np.float32)


def new(path: Path | None = None, **options: object) -> NgramCache:
    return NgramCache(path, "key", VOCAB, **options)  # type: ignore[arg-type]


def answer(cache: Source, prompt: Sequence[int], tokens: Sequence[int], step: int = 1) -> list[int]:
    """Say ``tokens`` after ``prompt``, ``step`` at a time; the context."""
    context = list(prompt)
    for i in range(0, len(tokens), step):
        output = tokens[i : i + step]
        cache.start(context)
        cache.observe(Outcome(Draft(output[:-1]), len(output) - 1, output, LOGITS))
        context.extend(output)
    return context


def after(cache: NgramCache, place: Sequence[int], count: int = 8) -> list[int]:
    return [token for token, _ in cache.successors(cache.start(list(place)), count)]


def test_output_is_guessed_at_once() -> None:
    cache = new()
    context = answer(cache, [1], [10, 11, 12, 10])
    assert after(cache, context) == [11]


@pytest.mark.parametrize("step", [1, 3])
def test_steps_of_any_size_teach_the_same(step: int) -> None:
    cache = new()
    answer(cache, [1, 2], [10, 11, 12, 13, 14, 15], step)
    assert [after(cache, [i]) for i in (2, 10, 11, 12, 13, 14)] == [[i] for i in range(10, 16)]


def test_prompts_are_not_learnt() -> None:
    cache = new()
    context = answer(cache, [1, 2, 3], [10])
    answer(cache, [*context, 4, 5, 6], [11])
    known = {token for token in range(20) if after(cache, [token])}
    assert known == {3, 6}, "only what answers begin after"


def test_the_longest_ngram_comes_first_then_shorter_ones() -> None:
    cache = new()
    for tokens in ([1, 2, 3, 4, 50], [9, 2, 3, 4, 60], [9, 9, 3, 4, 70], [8, 8, 8, 4, 80]):
        answer(cache, tokens[:4], tokens[4:])
    assert after(cache, [1, 2, 3, 4]) == [50, 60, 70, 80]
    assert after(cache, [7, 7, 3, 4], 2) == [70, 60], "the latest of those as frequent"
    assert after(cache, [7, 4], 0) == []
    first, later = (dict(cache.successors(place, 9))[80] for place in ((7, 4), (1, 2, 3, 4)))
    assert cache.priors[first] > cache.priors[later], "a longer n-gram had another guess"
    assert after(cache, [7, 7]) == after(cache, []) == []


def test_a_walk_goes_on_from_a_guess() -> None:
    cache = new()
    answer(cache, [1], [10, 11, 12, 13])
    place = cache.start([1])
    for expected in (10, 11, 12, 13):
        [(token, _), *_] = cache.successors(place, 1)
        assert token == expected
        place = cache.advance(place, token)
    assert len(place) == ORDERS


def test_the_most_frequent_comes_first_and_its_kind_has_a_higher_prior() -> None:
    cache = new()
    answer(cache, [1], [10])
    once = cache.successors((1,), 4)[0][1]
    answer(cache, [1], [11])
    half = cache.successors((1,), 4)[0][1]
    answer(cache, [1], [10])
    answer(cache, [1], [10])
    (first, often), (second, seldom) = cache.successors((1,), 4)
    assert (first, second) == (10, 11)
    priors = cache.priors
    assert priors[often] > priors[seldom]
    assert priors[once] > priors[half]
    for order in range(1, ORDERS + 1):
        answer(cache, range(100, 100 + order), [7])
    kinds = [cache.successors(tuple(range(100, 100 + n)), 1)[0][1] for n in range(1, ORDERS + 1)]
    assert sorted(kinds, key=lambda kind: priors[kind]) == kinds
    assert len(set(kinds)) == ORDERS


def reference(answers: Sequence[Sequence[int]], place: Sequence[int]) -> dict[int, list[int]]:
    """By order: every token that followed, each as often as it did."""
    counts: dict[int, list[int]] = defaultdict(list)
    for tokens in answers:
        for i in range(1, len(tokens)):
            for order in range(1, min(ORDERS, i, len(place)) + 1):
                if list(tokens[i - order : i]) == list(place[len(place) - order :]):
                    counts[order].append(tokens[i])
    return counts


def test_counts_are_those_of_a_search() -> None:
    rng = np.random.default_rng(1)
    cache = new()
    answers = [rng.integers(0, 4, 60).tolist() for _ in range(8)]  # no more tokens than a slot has
    for tokens in answers:
        answer(cache, tokens[:1], tokens[1:])
    for _ in range(200):
        place = rng.integers(0, 4, rng.integers(1, ORDERS + 1)).tolist()
        counts = reference(answers, place)
        guesses = cache.successors(cache.start(place), 100)
        assert {token for token, _ in guesses} == {
            token for tokens in counts.values() for token in tokens
        }
        assert max(counts) == guesses[0][1] // GRADES + 1
        longest = counts[max(counts)]
        assert longest.count(guesses[0][0]) == max(map(longest.count, longest))


def test_no_count_overflows() -> None:
    cache = new()
    for _ in range(40):
        answer(cache, [1], [10] * 9 + [11, 1])
    assert after(cache, [10]) == [10, 11]
    for _ in range(300):
        answer(cache, [2], [12])
    assert after(cache, [2]) == [12]


def remembered(repeats: int, later: int) -> int:
    """How many of 30 n-grams, each output ``repeats`` times, a small table knows ``later`` tokens on."""
    cache = new(max_bytes=BUCKET_BYTES * 64)
    for token in range(1, 31):
        for _ in range(repeats):
            answer(cache, [token], [10])
    for token in range(100, 100 + later):
        answer(cache, [token], [20])
    return sum(after(cache, [token]) == [10] for token in range(1, 31))


def test_more_frequent_output_is_forgotten_later() -> None:
    assert [remembered(repeats, 100) for repeats in (1, 4)] == [30, 30]
    assert remembered(1, 650) < 10 < 20 < remembered(4, 650)
    assert remembered(4, 3000) == 0, "nothing is kept for ever"


def test_old_counts_weigh_less() -> None:
    cache = new(max_bytes=BUCKET_BYTES * 64)
    for _ in range(8):
        answer(cache, [1], [10])
    for token in range(100, 400):
        answer(cache, [token], [20])
    assert after(cache, [1]) == [10]
    for _ in range(2):
        answer(cache, [1], [11])
    assert after(cache, [1])[0] == 11, "8 times long ago"


# -- a long history ------------------------------------------------------------------------------


def history(answers: int, length: int) -> Iterator[list[int]]:
    """Text that repeats phrases, frequent and rare ones, between words of its own."""
    rng = np.random.default_rng(0)
    phrases = [rng.integers(0, VOCAB, rng.integers(3, 12)).tolist() for _ in range(2000)]
    for _ in range(answers):
        tokens: list[int] = []
        while len(tokens) < length:
            phrase = phrases[min(int(rng.zipf(1.3)), len(phrases) - 1)]
            tokens += phrase if rng.random() < 0.5 else rng.integers(0, VOCAB, 4).tolist()
        yield tokens[:length]


class Counting:
    """A ``struct.Struct`` that counts what is read and written of a table."""

    def __init__(self, inner: object, calls: list[object]) -> None:
        self._inner, self._calls = inner, calls

    def __getattr__(self, name: str) -> object:
        self._calls.append(name)
        return getattr(self._inner, name)


@pytest.mark.parametrize(
    ("length", "max_bytes"),
    [(25, 1 << 19), pytest.param(300, MAX_BYTES, marks=pytest.mark.slow)],
)
def test_a_long_history_stays_within_its_bound(
    length: int, max_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "a.ngrams"
    cache = new(path, max_bytes=max_bytes)
    calls: list[object] = []
    for name in ("_KEYS", "_SLOT"):
        monkeypatch.setattr(ngram_cache, name, Counting(getattr(ngram_cache, name), calls))
    right, looked_up, learnt, tested = [0, 0], 0, 0, 0
    for i, tokens in enumerate(history(1000, length)):
        context = [1, 2, 3]
        for token in tokens:
            place = cache.start(context)
            calls.clear()
            guesses = cache.successors(place, 4)
            looked_up = max(looked_up, len(calls))
            if i < 100 or i >= 900:
                right[i >= 900] += bool(guesses) and guesses[0][0] == token
                tested += 1
            calls.clear()
            cache.observe(Outcome(EMPTY, 0, [token], LOGITS))
            learnt = max(learnt, len(calls))
            context.append(token)
        assert cache.nbytes <= max_bytes
    assert looked_up <= 2 * ORDERS
    assert learnt <= ORDERS * (3 + WAYS)
    assert right[0] < right[1] > 0.15 * tested, "nothing was learnt"
    cache.save()
    assert cache.entries <= max_bytes // SLOT.itemsize
    assert 0 < path.stat().st_size - cache.nbytes < 1024
    assert sum(file.stat().st_size for file in path.parent.iterdir()) == path.stat().st_size


def test_growing_loses_nothing(tmp_path: Path) -> None:
    cache, small = new(), new(max_bytes=1 << 18)
    output = np.random.default_rng(2).permutation(VOCAB)[:10_000].tolist()
    for i in range(0, len(output), 200):
        for each in (cache, small):
            answer(each, output[i : i + 1], output[i + 1 : i + 200])
    assert cache.nbytes > 4 * small.nbytes
    recalled = [
        sum(after(each, [a], 1) == [b] for a, b in pairwise(output)) for each in (cache, small)
    ]
    assert recalled[0] > 0.98 * len(output) > 2 * recalled[1]


# -- across sessions -----------------------------------------------------------------------------


def everything(cache: NgramCache) -> list[list[tuple[int, int]]]:
    return [cache.successors((first, second), 9) for first in range(9) for second in range(9)]


def said_at_random(cache: NgramCache, seed: int) -> None:
    rng = np.random.default_rng(seed)
    answer(cache, [0], rng.integers(0, 9, 200).tolist())


def test_a_session_knows_the_output_of_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.ngrams"
    with_notice: list[str] = []
    first = new(path, notice=with_notice.append)
    said_at_random(first, 0)
    known = everything(first)
    first.close()
    second = new(path, notice=with_notice.append)
    assert everything(second) == known
    assert second.entries
    assert with_notice == []


def test_in_memory_only() -> None:
    cache = new()
    said_at_random(cache, 0)
    cache.close()
    assert cache.entries == 0


def test_without_output_nothing_is_written(tmp_path: Path) -> None:
    cache = new(tmp_path / "folder" / "a.ngrams")
    cache.start([1, 2])
    cache.close()
    assert list(tmp_path.iterdir()) == []


def test_saves_are_not_too_frequent(tmp_path: Path) -> None:
    path = tmp_path / "a.ngrams"
    cache = new(path)
    said_at_random(cache, 0)
    cache.save(every=3600)
    assert not path.exists()
    cache.save()
    before = path.read_bytes()
    said_at_random(cache, 1)
    cache.save(every=3600)
    assert path.read_bytes() == before
    cache.close()
    assert path.read_bytes() != before


def test_two_sessions_at_once_learn_from_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.ngrams"
    base = new(path)
    answer(base, [1], [10, 11])
    base.close()
    ours, theirs = new(path), new(path)
    answer(ours, [1], [10, 20])
    answer(theirs, [1], [10, 30])
    answer(theirs, [2], [40])
    theirs.save()
    ours.save()
    for cache in (ours, new(path)):
        assert after(cache, [1]) == [10]
        assert set(after(cache, [1, 10])) == {11, 20, 30}
        assert after(cache, [2]) == [40]
        assert cache.entries == 4, "an n-gram is stored twice"


def test_what_both_know_is_not_counted_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.ngrams"
    base = new(path)
    for _ in range(4):
        answer(base, [1], [10])
    base.close()
    ours, theirs = new(path), new(path)
    for times, cache in enumerate((theirs, ours), 1):
        for _ in range(times):
            answer(cache, [1], [11])
        cache.save()
    assert after(ours, [1]) == [10, 11]
    for _ in range(2):
        answer(ours, [1], [11])
    assert after(ours, [1]) == [11, 10], "4 to 4, the latest first"


@pytest.mark.parametrize("larger", [0, 1])
def test_tables_of_different_sizes_merge(larger: int, tmp_path: Path) -> None:
    path = tmp_path / "a.ngrams"
    sizes = [1 << 14, 1 << 17]
    caches = [new(path, max_bytes=sizes[larger]), new(path, max_bytes=sizes[1 - larger])]
    for number, cache in enumerate(caches):
        answer(cache, [number], [10 + number, 20 + number])
    for cache in caches:
        cache.save()
    assert [after(caches[1], [number]) for number in (0, 1)] == [[10], [11]]
    assert caches[1].nbytes == sizes[1 - larger]


def test_a_larger_file_is_cut_to_the_most_valuable_n_grams(tmp_path: Path) -> None:
    path = tmp_path / "a.ngrams"
    large = new(path, max_bytes=1 << 16)
    for token in range(300):
        answer(large, [token], [token + 1])
    for _ in range(3):
        answer(large, [1000], [1001])
    large.close()
    small = new(path, max_bytes=1 << 13)
    assert small.nbytes == 1 << 13
    assert after(small, [1000]) == [1001]
    kept = [token for token in range(300) if after(small, [token]) == [token + 1]]
    assert len(kept) > 100
    assert np.mean(kept) > 160, "the latest"


def test_what_is_closed_writes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a.ngrams"
    cache = new(path)
    said_at_random(cache, 0)
    cache.close()
    before = path.read_bytes()
    said_at_random(cache, 1)
    cache.close()
    assert path.read_bytes() == before


def test_what_the_user_cleared_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "a.ngrams"
    cache = new(path)
    answer(cache, [1], [10])
    cache.save()
    path.unlink()
    answer(cache, [2], [20])
    cache.save()
    assert not path.exists()
    assert after(cache, [1]) == after(cache, [2]) == []
    answer(cache, [3], [30])
    cache.close()
    assert after(new(path), [3]) == [30]
    assert after(new(path), [1]) == []
