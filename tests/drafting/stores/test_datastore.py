"""Datastores: what is read, what is found, and what happens to files that are not as they should be."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from edgespec.drafting.stores import datastore, indexing
from edgespec.drafting.stores.datastore import (
    DEPTH,
    SEPARATOR,
    Datastore,
    indexes_dir,
    kept,
    remove,
    tokenizer_key,
)
from edgespec.drafting.stores.indexing import build, skipped_line
from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from edgespec.models.vocabulary import USER_DEFINED
from tests.tiny import tiny_gguf

TEXTS = {"a.txt": "hello world, the world is in order\n", "b/c.md": "for the sake of the world\n"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")))


def write(folder: Path, texts: dict[str, str | bytes]) -> Path:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture
def folder(tmp_path: Path, home: Path) -> Path:
    return write(tmp_path / "notes", {**TEXTS})


def texts_in(store: Datastore, tokenizer: Tokenizer) -> list[str]:
    """What an index holds, read from its tokens alone."""
    tokens = store.tokens.tolist()
    assert tokens[:DEPTH] == [SEPARATOR] * DEPTH
    assert tokens[-1] == SEPARATOR
    texts: list[list[int]] = [[]]
    for token in tokens[DEPTH:]:
        if token == SEPARATOR:
            texts.append([])
        else:
            texts[-1].append(token)
    return [tokenizer.decode(text) for text in texts[:-1]]


def matches(tokens: Sequence[int], context: Sequence[int]) -> tuple[int, set[int]]:
    """By brute force: the longest end of ``context`` that is in ``tokens``, and what follows it."""
    found: dict[int, set[int]] = {}
    for position in range(1, len(tokens)):
        if SEPARATOR in (tokens[position - 1], tokens[position]):
            continue
        match = 0
        while (
            match < min(DEPTH, len(context)) and tokens[position - 1 - match] == context[-1 - match]
        ):
            match += 1
        for length in range(match + 1):
            found.setdefault(length, set()).add(position)
    longest = max(found)
    return longest, found[longest]


@pytest.mark.parametrize("letters", ["a", "ab", "abcdefgh"])
@pytest.mark.parametrize("part", [1 << 21, 40])
def test_finds_all_places_of_the_longest_match(
    letters: str,
    part: int,
    tmp_path: Path,
    home: Path,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(indexing, "_PART", part)
    random = np.random.default_rng(len(letters))
    sizes = [1, 2, 30, 120, 60]
    texts = {f"{i}": "".join(random.choice(list(letters), n)) for i, n in enumerate(sizes)}
    texts["5"] = texts["3"][20:80] + texts["2"]  # long matches
    store, _ = build([write(tmp_path / "random", {**texts})], tokenizer, "tiny")
    tokens = store.tokens.tolist()
    words = [tokenizer.encode(text) for text in texts.values()]
    contexts = [text[:end] for text in words for end in range(len(text) + 1)]
    contexts += [words[2][-5:] + words[3][:4]]  # over the end of a text
    contexts += [random.choice(words[2], 8).tolist() for _ in range(100)]
    contexts += [[*words[3][:9], len(tokenizer.kinds)]]  # of no text
    for context in contexts:
        first, last, match = store.find(context)
        expected, places = matches(tokens, context)
        assert match == expected
        found = store.positions[first:last].tolist()
        assert len(found) == len(set(found))
        assert set(found) == places


def test_no_match_goes_over_the_end_of_a_text(
    tmp_path: Path, home: Path, tokenizer: Tokenizer
) -> None:
    store, _ = build([write(tmp_path / "n", {"1": "xyz", "2": "uvw"})], tokenizer, "tiny")
    assert store.find(tokenizer.encode("xyz"))[2] == 0  # nothing follows it
    assert store.find(tokenizer.encode("yzuv"))[2] == 2


@pytest.mark.parametrize("chunk", [1 << 16, 7])
def test_holds_the_texts(
    chunk: int, folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are tokenized in pieces, and where a text names a special token."""
    monkeypatch.setattr(indexing, "_CHUNK", chunk)
    monkeypatch.setattr(indexing, "_BATCH", 3 * chunk)
    texts = {**TEXTS, "d": "a line\nwithout an end", "e": "<|im_end|> is not parsed\r\n"}
    store, skipped = build([write(folder, {**texts})], tokenizer, "tiny")
    assert texts_in(store, tokenizer) == [texts[name] for name in ("a.txt", "d", "e", "b/c.md")]
    assert not skipped
    assert (store.facts.files, store.facts.text_bytes) == (4, sum(map(len, texts.values())))
    assert store.facts.name == "notes"
    assert store.facts.paths == [str(folder)]
    store.check()


def test_tokenizes_as_the_tokenizer_does(smollm2: Path, tmp_path: Path, home: Path) -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile(smollm2))
    text = Path(__file__).read_text(encoding="utf-8")
    store, _ = build([write(tmp_path / "n", {"1": text})], tokenizer, "smollm2")
    assert store.tokens.tolist()[DEPTH:-1] == tokenizer.encode(text)


@pytest.mark.parametrize("prefix", ["never", "always"])
def test_tokens_that_are_found_before_others(prefix: str, tmp_path: Path, home: Path) -> None:
    """As "or" is here; and a space that a tokenizer puts before a text."""
    file = GGUFFile(tiny_gguf(tmp_path / "tiny.gguf"))
    names = file.metadata["tokenizer.ggml.tokens"]
    file.metadata["tokenizer.ggml.token_type"][names.index("or")] = USER_DEFINED
    tokenizer = Tokenizer.from_gguf(file)
    tokenizer.space_prefix = prefix  # type: ignore[assignment]
    texts = ["hello world", "a world"]
    store, _ = build([write(tmp_path / "n", dict(zip("12", texts, strict=True)))], tokenizer, "")
    expected = [tokenizer.encode(text) for text in texts]
    assert names.index("or") in expected[0]
    assert (expected[0][0] == names.index("Ġ")) == (prefix == "always")
    assert store.tokens.tolist()[DEPTH:] == [*expected[0], SEPARATOR, *expected[1], SEPARATOR]


def test_skips_what_is_no_text_and_says_why(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "MAX_FILE", 1 << 20)
    odd: dict[str, str | bytes] = {
        "latin": "Grüße".encode("latin-1"),
        "utf16": "hello".encode("utf-16"),
        "late": b"a" * 9000 + b"\xff",
        "bom": b"\xef\xbb\xbfwith a mark",
        "binary": b"MZ\0\0",
        "empty": b" \n",
        "large": b"a" * ((1 << 20) + 1),
        "copy": TEXTS["a.txt"],
        ".git/config": "hidden",
        ".env": "hidden",
    }
    write(folder, odd)
    store, skipped = build([folder], tokenizer, "tiny")
    assert texts_in(store, tokenizer) == [TEXTS["a.txt"], "with a mark", TEXTS["b/c.md"]]
    assert skipped == {
        "not UTF-8 text": 4,
        "hidden": 2,
        "empty": 1,
        "over 1 MiB": 1,
        "copies of others": 1,
    }
    assert skipped_line(skipped).startswith("skipped 4 not UTF-8 text, 2 hidden, 1 ")


@pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")
def test_follows_no_links(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "loop").symlink_to(folder)
    (folder / "elsewhere").symlink_to(Path(__file__))
    os.mkfifo(folder / "pipe")
    (folder.parent / "link").symlink_to(folder)
    store, skipped = build([folder.parent / "link"], tokenizer, "tiny")  # but what was named
    assert texts_in(store, tokenizer) == list(TEXTS.values())
    assert skipped == {"links": 2, "pipes or devices": 1}
    assert store.facts.name == "link"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nobody is refused")
def test_skips_what_may_not_be_read(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "a.txt").chmod(0)
    (folder / "b").chmod(0)
    try:
        with pytest.raises(UserError, match=r"there is no text in .* \(skipped 2 unreadable\)"):
            build([folder], tokenizer, "tiny")
    finally:
        (folder / "b").chmod(0o700)


def test_files_that_change_meanwhile(folder: Path, tokenizer: Tokenizer) -> None:
    """What is read is what is there when its turn comes."""

    def change(what: str, done: int, total: int, /) -> None:
        (folder / "a.txt").unlink(missing_ok=True)
        write(folder, {"b/c.md": "changed"})

    store, skipped = build([folder], tokenizer, "tiny", progress=change)
    assert texts_in(store, tokenizer) == ["changed"]
    assert skipped == {"unreadable": 1}


def test_reports_how_far_it_is(folder: Path, tokenizer: Tokenizer) -> None:
    reports: list[tuple[str, int, int]] = []
    store, _ = build([folder], tokenizer, "tiny", progress=lambda *report: reports.append(report))
    sizes = [len(text) for text in TEXTS.values()]
    assert reports[:2] == [
        ("reading and tokenizing", 0, sum(sizes)),
        ("reading and tokenizing", sizes[0], sum(sizes)),
    ]
    assert reports[2:] == [("sorting", 0, store.facts.positions)]


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_is_private(folder: Path, tokenizer: Tokenizer) -> None:
    store, _ = build([folder], tokenizer, "tiny")
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert indexes_dir().stat().st_mode & 0o777 == 0o700


# -- building again ----------------------------------------------------------------------------


def files() -> set[str]:
    return {path.name for path in indexes_dir().iterdir() if path.suffix != ".lock"}


@pytest.mark.skipif(os.name != "posix", reason="what is open cannot be replaced elsewhere")
def test_replaces_what_was_there(folder: Path, tokenizer: Tokenizer) -> None:
    old, _ = build([folder], tokenizer, "tiny")
    write(folder, {"a.txt": "other words"})
    new, _ = build([folder], tokenizer, "tiny")
    assert new.path == old.path
    assert files() == {new.path.name}
    assert texts_in(new, tokenizer)[0] == "other words"
    assert texts_in(old, tokenizer)[0] == TEXTS["a.txt"]  # for whoever has it open


def test_another_folder_of_the_same_name(
    folder: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    build([folder], tokenizer, "tiny")
    other = write(tmp_path / "other" / "Notes", {"1": "other words"})
    with pytest.raises(UserError, match=r"there is an index notes of .*notes; give .* --name"):
        build([other], tokenizer, "tiny")
    build([other], tokenizer, "tiny", "my.notes")
    assert len(kept()) == 2
    store, _ = build([other], tokenizer, "tiny", "NOTES")  # said by name
    assert texts_in(store, tokenizer) == ["other words"]
    assert len(kept()) == 2


@pytest.mark.parametrize("stage", ["reading and tokenizing", "sorting"])
def test_an_interrupted_build_leaves_the_old_index(
    stage: str, folder: Path, tokenizer: Tokenizer
) -> None:
    def interrupt(what: str, done: int, total: int, /) -> None:
        if what == stage:
            raise KeyboardInterrupt

    store, _ = build([folder], tokenizer, "tiny")
    before = store.path.read_bytes()
    write(folder, {"a.txt": "other words"})
    with pytest.raises(KeyboardInterrupt):
        build([folder], tokenizer, "tiny", progress=interrupt)
    assert files() == {store.path.name}
    assert store.path.read_bytes() == before


def test_a_full_disk_leaves_the_old_index(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store, _ = build([folder], tokenizer, "tiny")
    before = store.path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        build([folder], tokenizer, "tiny")
    assert files() == {store.path.name}
    assert store.path.read_bytes() == before


def test_what_a_killed_build_left(folder: Path, tokenizer: Tokenizer) -> None:
    path = build([folder], tokenizer, "tiny")[0].path
    path.with_suffix(".partial").write_bytes(b"left" * 100_000)
    assert kept() == [path]
    store, _ = build([folder], tokenizer, "tiny")
    assert files() == {store.path.name}
    store.check()


def test_nothing_to_index(folder: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    store, _ = build([folder], tokenizer, "tiny", "kept")
    write(tmp_path / "none", {"x": b"\0"})
    with pytest.raises(UserError, match=r"no text in .*none \(skipped 1 not UTF-8 text\)"):
        build([tmp_path / "none"], tokenizer, "tiny", "kept")
    with pytest.raises(UserError, match=r"there is no file or folder .*nowhere"):
        build([folder, tmp_path / "nowhere"], tokenizer, "tiny", "kept")
    write(tmp_path / "short", {"x": "h"})  # a single token: nothing follows anything
    with pytest.raises(UserError, match=r"no text in .*short"):
        build([tmp_path / "short"], tokenizer, "tiny", "kept")
    assert files() == {store.path.name}


def test_too_much_text(folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "_MAX_TOKENS", 30)
    with pytest.raises(UserError, match="there is more text than"):
        build([folder], tokenizer, "tiny")
    assert files() == set()


@pytest.mark.parametrize("name", ["a/b", "../x", "", "-x", "é", "x" * 65, "a*"])
def test_names(name: str, folder: Path, tokenizer: Tokenizer) -> None:
    if not name:
        with pytest.raises(UserError, match="has no name"):
            build([Path("/")], tokenizer, "tiny")
        return
    with pytest.raises(UserError, match="an index cannot be called"):
        build([folder], tokenizer, "tiny", name)


def test_remove(folder: Path, tokenizer: Tokenizer) -> None:
    build([folder], tokenizer, "tiny")
    build([folder], tokenizer, "tiny", "other.notes")
    assert remove("Notes") == 1
    assert [Datastore(path).facts.name for path in kept()] == ["other.notes"]
    with pytest.raises(UserError, match="there is no index 'notes'"):
        remove("notes")


# -- whose tokens ------------------------------------------------------------------------------


def test_a_tokenizer_is_known_by_its_tokens(smollm2: Path, tmp_path: Path) -> None:
    ours = Tokenizer.from_gguf(GGUFFile(smollm2))
    tiny = Tokenizer.from_gguf(GGUFFile(tiny_gguf(tmp_path / "tiny.gguf")))
    assert tokenizer_key(ours) != tokenizer_key(tiny)
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    assert tokenizer_key(Tokenizer.from_file(tmp_path / "saved")) == tokenizer_key(ours)


# -- files that are not as they should be ------------------------------------------------------


def flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "short": lambda data: data[-20:],
    "cut off": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "beginning lost": lambda data: data[4:],
    "longer": lambda data: data + b"\0",
    "doubled": lambda data: data + data,
    "foreign": lambda data: b"GGUF" + b"\0" * 4000,
    "facts": lambda data: flip(data, -100),
    "length": lambda data: flip(data, -17),
    "version": lambda data: flip(data, -16),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_not_whole_is_refused(how: str, folder: Path, tokenizer: Tokenizer) -> None:
    path = build([folder], tokenizer, "tiny")[0].path
    data = path.read_bytes()
    path.write_bytes(BROKEN[how](data))
    with pytest.raises(ValueError, match=r"it is|it has|its size|empty file"):
        Datastore(path)


LIES: dict[str, object] = {
    "tokens": 10**12,
    "positions": -1,
    "starts": 0,
    "files": True,
    "name": 3,
    "paths": [1],
    "tokenizer": "0" * 16,
    "byteorder": "middle",
    "more": 1,
}


@pytest.mark.parametrize("field", LIES)
def test_facts_are_not_believed(field: str, folder: Path, tokenizer: Tokenizer) -> None:
    """Not even where their hash is right."""
    store, _ = build([folder], tokenizer, "tiny")
    path, facts = store.path, store.facts
    del store  # Windows does not let an open file be changed
    data = path.read_bytes()[: 4 * (facts.tokens + facts.positions + facts.starts)]
    text = json.dumps(asdict(facts) | {field: LIES[field]}).encode()
    for lie in (text, b"[" * 100_000, b"null"):
        trailer = datastore._TRAILER.pack(
            hashlib.sha256(lie).digest(), len(lie), 1, b"edgespec index"
        )
        path.write_bytes(data + lie + trailer)
        with pytest.raises(ValueError, match=r"it is|it does|its size|Expecting"):
            Datastore(path)


@pytest.mark.parametrize("seed", range(5))
def test_flipped_bits_break_nothing(seed: int, folder: Path, tokenizer: Tokenizer) -> None:
    store, _ = build([folder], tokenizer, "tiny")
    facts, path, data = store.facts, store.path, bytearray(store.path.read_bytes())
    del store
    random = np.random.default_rng(seed)
    for at in random.integers(0, 4 * (facts.tokens + facts.positions + facts.starts), 100):
        data[at] ^= 1 << random.integers(8)
    path.write_bytes(data)
    store = Datastore(path)
    with pytest.raises(ValueError, match="damaged"):
        store.check()
    for text in TEXTS.values():
        words = tokenizer.encode(text)
        for end in range(len(words)):
            first, last, match = store.find(words[:end])
            assert 0 <= first < last <= facts.positions
            assert match <= DEPTH
