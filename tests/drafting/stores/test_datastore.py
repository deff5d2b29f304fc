"""Datastores: what is read, what is found, and what happens to files that are not as they should be."""

from __future__ import annotations

import hashlib
import json
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
    index_paths,
    remove,
    tokenizer_key,
)
from edgespec.drafting.stores.indexing import build
from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from tests.drafting.stores.conftest import TEXTS, write
from tests.tiny import tiny_gguf


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


def test_remove(folder: Path, tokenizer: Tokenizer) -> None:
    build([folder], tokenizer, "tiny")
    build([folder], tokenizer, "tiny", "other.notes")
    assert remove("Notes") == 1
    assert [Datastore(path).facts.name for path in index_paths()] == ["other.notes"]
    with pytest.raises(UserError, match="there is no index 'notes'"):
        remove("notes")


# -- tokenizers -------------------------------------------------------------------------------


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
def test_an_incomplete_file_is_refused(how: str, folder: Path, tokenizer: Tokenizer) -> None:
    path = build([folder], tokenizer, "tiny")[0].path
    data = path.read_bytes()
    path.write_bytes(BROKEN[how](data))
    with pytest.raises(ValueError, match=r"it is|it has|its size|empty file"):
        Datastore(path)


WRONG_FACTS: dict[str, object] = {
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


@pytest.mark.parametrize("field", WRONG_FACTS)
def test_wrong_facts_are_refused(field: str, folder: Path, tokenizer: Tokenizer) -> None:
    """Even if their hash is right."""
    store, _ = build([folder], tokenizer, "tiny")
    path, facts = store.path, store.facts
    del store  # Windows does not let an open file be changed
    data = path.read_bytes()[: 4 * (facts.tokens + facts.positions + facts.starts)]
    text = json.dumps(asdict(facts) | {field: WRONG_FACTS[field]}).encode()
    for wrong in (text, b"[" * 100_000, b"null"):
        trailer = datastore._TRAILER.pack(
            hashlib.sha256(wrong).digest(), len(wrong), 1, b"edgespec index"
        )
        path.write_bytes(data + wrong + trailer)
        with pytest.raises(ValueError, match=r"it is|its facts|its paths|its size|Expecting"):
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
