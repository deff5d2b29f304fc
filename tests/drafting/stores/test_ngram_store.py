"""The n-gram cache's file: whatever happens to it, nothing wrong is read and nothing else breaks."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgespec.drafting.ngram_cache import NgramCache
from edgespec.drafting.stores import ngram_store as files
from edgespec.drafting.stores.ngram_store import SLOT
from edgespec.errors import UserError
from tests.drafting.test_ngram_cache import VOCAB, after, answer, new

KEY = "key"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ngrams" / "a.ngrams"


@pytest.fixture
def saved(path: Path) -> Path:
    """A file that knows that 11 follows 10."""
    cache = new(path, max_bytes=1 << 14, model="a model")
    answer(cache, [10], [11])
    cache.close()
    return path


def alter(path: Path, change: Callable[[bytearray], object], checksums: bool = False) -> None:
    """Change a file's bytes; with ``checksums`` also those that say that they are right."""
    content = bytearray(path.read_bytes())
    change(content)
    if checksums:
        header = files._HEADER.size
        payload = zlib.crc32(content[files._START :])
        struct.pack_into("=I", content, struct.calcsize("=8sIIIIIQ"), payload)
        struct.pack_into("=I", content, header, zlib.crc32(content[:header]))
    path.write_bytes(content)


def ignored(path: Path) -> str:
    """The notice of a file that is not used; it comes once, and the next save replaces the file."""
    notices: list[str] = []
    cache = NgramCache(path, KEY, VOCAB, max_bytes=1 << 14, notice=notices.append)
    assert cache.entries == 0
    answer(cache, [20], [21])
    cache.save()
    [line] = notices
    assert "\n" not in line
    assert str(path) in line
    again = NgramCache(path, KEY, VOCAB, max_bytes=1 << 14, notice=notices.append)
    assert after(again, [20]) == [21]
    assert after(again, [10]) == []
    assert len(notices) == 1
    return line


def test_the_header_of_a_file(saved: Path) -> None:
    header, slots = files.read(saved, KEY, VOCAB)
    assert (header.name, header.key, header.vocab_size) == ("a model", KEY, VOCAB)
    assert (header.entries, header.clock, header.buckets) == (1, 1, len(slots))
    assert files.serial_of(saved) == header.serial


@pytest.mark.skipif(os.name == "nt", reason="the user's folder is private there")
def test_only_the_user_may_read_it(path: Path) -> None:
    mask = os.umask(0)
    try:
        cache = new(path)
        answer(cache, [10], [11])
        cache.close()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# -- files that are not to be used ---------------------------------------------------------------


def test_flipped_bits(saved: Path) -> None:
    whole = saved.read_bytes()
    rng = np.random.default_rng(0)
    in_header = range(files._START * 8)
    in_table = rng.integers(files._START * 8, len(whole) * 8, 300).tolist()
    for bit in (*in_header, *in_table):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(content)
        with pytest.raises(ValueError, match=r"^its? "):
            files.read(saved, KEY, VOCAB)
    assert "checksum" in ignored(saved)


@pytest.mark.parametrize("size", [0, 1, files._START - 1, files._START, files._START + 1000, -1])
def test_cut_short(saved: Path, size: int) -> None:
    alter(saved, lambda content: content.__delitem__(slice(size, None)))
    ignored(saved)


def test_too_long(saved: Path) -> None:
    alter(saved, lambda content: content.extend(b"\0"))
    assert "incomplete" in ignored(saved)


def test_another_model(saved: Path) -> None:
    notices: list[str] = []
    for key, vocab_size in (("other", VOCAB), (KEY, VOCAB + 1)):
        assert NgramCache(saved, key, vocab_size, notice=notices.append).entries == 0
    assert len(notices) == 2
    assert all("of another model" in line for line in notices)


def test_another_version(saved: Path) -> None:
    alter(saved, lambda content: struct.pack_into("=I", content, 8, 2), checksums=True)
    assert "version 2" in ignored(saved)


def test_another_file(saved: Path) -> None:
    saved.write_bytes(b"GGUF" + bytes(10_000))
    assert "no n-gram cache" in ignored(saved)


def in_slot(field: str, value: object) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        slots = np.frombuffer(content, SLOT, offset=files._START)
        where = np.flatnonzero(slots["key"])[0]
        slots[field][where] = value

    return change


def three_buckets(content: bytearray) -> None:
    struct.pack_into("=I", content, 16, 3)
    del content[files._START + 3 * files.BUCKET_BYTES :]


@pytest.mark.parametrize(
    "change",
    [
        in_slot("tokens", [VOCAB, 0, 0, 0]),
        in_slot("tokens", [11, 0, 0, 2**32 - 1]),
        in_slot("counts", 0),
        lambda content: struct.pack_into("=I", content, 16, 0),
        three_buckets,
        lambda content: struct.pack_into("=I", content, 16, 2**31),
        lambda content: content.__setitem__(files._HEADER.size - 128, 0xFF),
        lambda content: content.__setitem__(files._HEADER.size - 128, 0x1B),
    ],
    ids=["token", "last token", "count", "0 buckets", "3 buckets", "huge", "utf-8", "escape"],
)
def test_hostile_values(saved: Path, change: Callable[[bytearray], None]) -> None:
    alter(saved, change, checksums=True)
    ignored(saved)


def test_random_tables_raise_nothing_and_stay_in_the_vocabulary(saved: Path) -> None:
    rng = np.random.default_rng(0)

    def scramble(content: bytearray) -> None:
        slots = np.frombuffer(content, SLOT, offset=files._START)
        slots["key"] = rng.integers(0, 3, slots.shape)
        slots["used"] = rng.integers(0, 2**32, slots.shape)
        slots["counts"] = rng.integers(1, 256, slots["counts"].shape)
        slots["tokens"] = rng.integers(0, 5, slots["tokens"].shape)
        known = [key for token in range(5) for key in _keys_of(token)]
        slots["key"][::2] = rng.choice(known, len(slots[::2]))

    alter(saved, scramble, checksums=True)
    cache, other = new(saved, max_bytes=1 << 14), new(saved, max_bytes=1 << 12)
    for _ in range(50):
        place = rng.integers(0, 5, 4).tolist()
        found = after(cache, place)
        assert len(found) == len(set(found))
        assert set(found) <= set(range(5))
        answer(cache, place, rng.integers(0, 5, 4).tolist())
        answer(other, place, rng.integers(0, 5, 4).tolist())
    cache.save()
    other.save()
    files.read(saved, KEY, VOCAB)


def _keys_of(token: int) -> list[np.uint64]:
    from edgespec.drafting.ngram_cache import _keys

    return [np.uint64(key) for key in _keys((token, token, token, token))]


# -- disasters -----------------------------------------------------------------------------------

SAVING = """
import sys
from pathlib import Path
from tests.drafting.test_ngram_cache import answer, new
path, start, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
cache = new(path)
print("open", flush=True)
for token in range(start, start + count):
    answer(cache, [token], [token + 1])
    cache.save()
cache.close()
"""


def saving(path: Path, start: int, count: int) -> subprocess.Popen[str]:
    """Another process that learns that each of ``count`` tokens follows the last, one a save."""
    command = [sys.executable, "-c", SAVING, str(path), str(start), str(count)]
    root = Path(__file__).parents[3]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


def test_killed_at_any_moment(path: Path) -> None:
    rng, seen = np.random.default_rng(0), 0
    for attempt in range(6):
        process = saving(path, 1000 * attempt, 1000)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        time.sleep(rng.uniform(0.01, 0.3))
        process.kill()
        process.communicate()
        if not path.exists():
            continue
        header, _ = files.read(path, KEY, VOCAB)
        assert header.entries >= seen, "an older file"
        seen = header.entries
    assert seen
    notices: list[str] = []
    cache = new(path, notice=notices.append)
    answer(cache, [10_000], [10_001])
    cache.close()
    assert notices == [], "the lock is free"
    files_left = {file.name for file in path.parent.iterdir()}
    assert files_left <= {path.name, ".lock"}, "what the killed left is used up"
    assert files.read(path, KEY, VOCAB)[0].entries == seen + 1


def test_killed_before_the_new_file_has_its_name(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()
    cache = new(saved, max_bytes=1 << 14)
    answer(cache, [20], [21])

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt  # as abrupt as it gets without losing this process

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        cache.save()
    monkeypatch.undo()
    assert saved.read_bytes() == before
    cache.close()
    assert after(new(saved), [20]) == [21]


def test_two_processes_learning_at_once(path: Path) -> None:
    both = [saving(path, start, 40) for start in (1000, 2000)]
    assert [process.wait(60) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    cache = new(path)
    known = [start + i for start in (1000, 2000) for i in range(40) if after(cache, [start + i])]
    assert len(known) == 80
    assert all(after(cache, [token]) == [token + 1] for token in known)


FULL = """
import resource, sys
from pathlib import Path
from tests.drafting.test_ngram_cache import after, answer, new
path = Path(sys.argv[1])
cache = new(path, notice=print)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
for token in range(20, 24):
    answer(cache, [token], [token + 1])
    cache.save()
assert after(cache, [20]) == [21]
cache.close()
"""


@pytest.mark.skipif(os.name == "nt", reason="it has no limit on a file's size to set")
def test_a_full_disk(saved: Path) -> None:
    before = saved.read_bytes()
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", FULL, str(saved)]
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    [line] = shown.stdout.splitlines()
    assert str(saved.parent) in line
    assert saved.read_bytes() == before
    assert {file.name for file in saved.parent.iterdir()} <= {saved.name, ".lock"}


def test_a_lock_that_is_not_released(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LOCK_S", 0.05)
    notices: list[str] = []
    cache = new(saved, max_bytes=1 << 14, notice=notices.append)
    answer(cache, [20], [21])
    with files.locked(saved.parent):
        cache.save()
        cache.save()
    [line] = notices
    assert "another process" in line
    cache.close()
    assert after(new(saved), [20]) == [21]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    notices: list[str] = []
    cache = new(tmp_path / "file" / "a.ngrams", notice=notices.append)
    answer(cache, [1], [2])
    cache.save()
    cache.close()
    assert notices
    assert after(cache, [1]) == []


# -- the folder ----------------------------------------------------------------------------------


def keep(model: str) -> Path:
    key = files.key_of(model, VOCAB)
    cache = NgramCache(files.path_of(key), key, VOCAB, max_bytes=1 << 14, model=model)
    answer(cache, [10], [11])
    cache.close()
    return files.path_of(key)


def test_keys_differ_for_every_identity() -> None:
    keys = {files.key_of("a", 1), files.key_of("a", 2), files.key_of("b", 1), files.key_of("a1")}
    assert len(keys) == 4
    assert all(len(key) == 32 and key.isalnum() for key in keys)


def test_cache_files_are_listed(home: Path) -> None:
    assert files.cache_files() == []
    assert files.clear() == 0
    paths = [keep("one"), keep("two"), keep("a long\nname " * 30)]
    os.utime(paths[0], (1, 1))
    (files.directory() / "other.ngrams").write_bytes(b"no cache")
    found = {cache.path: cache for cache in files.cache_files()}
    assert list(found)[-1] == paths[0], "the last used first"
    assert [found[path].header.name for path in paths[:2]] == ["one", "two"]  # type: ignore[union-attr]
    assert found[files.directory() / "other.ngrams"].header is None
    with pytest.raises(UserError, match="no cache of 'three'"):
        files.clear("three")
    assert files.clear("one") == 1
    assert not paths[0].exists()
    assert files.clear() == 3
    assert files.cache_files() == []


def test_switching_off_and_on(home: Path) -> None:
    assert files.enabled()
    for _ in range(2):
        files.switch(False)
        assert not files.enabled()
    for _ in range(2):
        files.switch(True)
        assert files.enabled()
