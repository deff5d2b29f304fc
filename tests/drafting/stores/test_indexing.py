"""Indexing: what is read and skipped, and what an interruption leaves."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgespec.drafting.stores import indexing
from edgespec.drafting.stores.datastore import (
    DEPTH,
    SEPARATOR,
    Datastore,
    index_paths,
    indexes_dir,
)
from edgespec.drafting.stores.indexing import build, skipped_line
from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from edgespec.models.vocabulary import USER_DEFINED
from tests.drafting.stores.conftest import TEXTS, write
from tests.tiny import tiny_gguf


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


def test_skips_what_is_no_text_and_gives_the_reason(
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
    assert len(index_paths()) == 2
    store, _ = build([other], tokenizer, "tiny", "NOTES")  # names ignore case
    assert texts_in(store, tokenizer) == ["other words"]
    assert len(index_paths()) == 2


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
    assert index_paths() == [path]
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
