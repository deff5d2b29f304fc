"""The source that looks into the user's files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgespec.drafting import retrieval
from edgespec.drafting.retrieval import Retrieval, open_datastores
from edgespec.drafting.stores.datastore import DEPTH, indexes_dir
from edgespec.drafting.stores.indexing import build
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from tests.tiny import tiny_gguf


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")))


@pytest.fixture
def source(tmp_path: Path, home: Path, tokenizer: Tokenizer) -> Retrieval:
    return indexed(tmp_path / "notes", tokenizer, "abcx-abcy-abcx-abcx", "zabc", "abcz")


def indexed(folder: Path, tokenizer: Tokenizer, *texts: str) -> Retrieval:
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i:04}").write_text(text, encoding="utf-8")
    return Retrieval(build([folder], tokenizer, "tiny")[0], tokenizer.vocab_size)


def after(source: Retrieval, tokenizer: Tokenizer, text: str, count: int = 8) -> list[str]:
    """What may follow ``text``, the likeliest first."""
    guesses = source.successors(source.start(tokenizer.encode(text)), count)
    assert all(0 <= kind < len(source.priors) for _, kind in guesses)
    return [tokenizer.decode([token]) for token, _ in guesses]


def rates(source: Retrieval, tokenizer: Tokenizer, text: str) -> list[float]:
    found = source.successors(source.start(tokenizer.encode(text)), 8)
    return [source.priors[kind] for _, kind in found]


def test_what_follows_most_often_comes_first(source: Retrieval, tokenizer: Tokenizer) -> None:
    assert after(source, tokenizer, "say: abc") == ["x", "y", "z"]
    assert after(source, tokenizer, "say: abc", 1) == ["x"]
    assert after(source, tokenizer, "-abc") == ["x", "y"]  # a longer match
    assert after(source, tokenizer, "zabc") == ["x", "y", "z"]  # "zabc" is not followed by anything


def test_short_matches_are_no_guesses(source: Retrieval, tokenizer: Tokenizer) -> None:
    assert after(source, tokenizer, "b") == []
    assert after(source, tokenizer, "qqq") == []
    assert after(source, tokenizer, "") == []
    assert after(source, tokenizer, "ab") == ["c"]


def test_priors_rise_with_length_and_agreement() -> None:
    constants = retrieval.CONSTANTS
    table, shares = np.array(constants.priors), len(constants.shares)
    assert table.shape == (len(constants.lengths), shares + len(constants.unanimous))
    assert ((table > 0) & (table < 1)).all()
    assert (np.diff(table[:, :shares], axis=1) > 0).all()
    assert (np.diff(table[:, shares:], axis=1) > 0).all()
    assert (np.diff(table[:, shares]) > 0).all()


def test_kinds_depend_on_length_and_agreement(
    tmp_path: Path, home: Path, tokenizer: Tokenizer
) -> None:
    source = indexed(tmp_path / "n", tokenizer, "abcdefghij", "uvk", "uvk.", "mnp mnq")
    [two], [nine] = rates(source, tokenizer, "ab"), rates(source, tokenizer, "abcdefghi")
    assert two < nine
    [twice] = rates(source, tokenizer, "uv")
    assert two < twice
    assert all(source.priors[0] < rate < two + 0.5 for rate in rates(source, tokenizer, "mn"))
    first, second = rates(source, tokenizer, "mn")
    assert first == second < twice


def test_rare_continuations_are_pruned(tmp_path: Path, home: Path, tokenizer: Tokenizer) -> None:
    source = indexed(tmp_path / "n", tokenizer, "uvx " * 50 + "uvy " + "uvz " * 10)
    assert after(source, tokenizer, "uv") == ["x", "z"]


def test_many_places_are_sampled_evenly(tmp_path: Path, home: Path, tokenizer: Tokenizer) -> None:
    source = indexed(tmp_path / "n", tokenizer, "auvx" * 600 + "buvy" * 300 + "cuvz" * 100)
    place = source.start(tokenizer.encode("quv"))
    assert len(place.positions) == len(set(place.positions)) == 64
    assert not place.complete
    assert after(source, tokenizer, "quv") == ["x", "y", "z"]


@pytest.mark.parametrize("letters", ["ab", "abcdef"])
def test_a_walk_finds_what_a_search_does(
    letters: str, tmp_path: Path, home: Path, tokenizer: Tokenizer
) -> None:
    """``advance`` leads where ``start`` would after the same tokens, whoever guessed them."""
    random = np.random.default_rng(1)
    texts = ["".join(random.choice(list(letters), 300)) for _ in range(3)]
    source = indexed(tmp_path / "n", tokenizer, *texts)
    words = [*set(tokenizer.encode(texts[0])), 5]  # the last one is in no text
    longest = 0
    for i in range(300):
        context = tokenizer.encode(texts[0][i % 100 :][:20])
        if i % 2:
            context = random.choice(words, 20).tolist()
        place = source.start(context)
        for _ in range(6):
            guesses = source.successors(place, 4)
            tokens = source._datastore.tokens
            counted = Counter(tokens[position] for position in place.positions)
            assert [counted[token] for token, _ in guesses] == sorted(
                (counted[token] for token, _ in guesses), reverse=True
            )
            token = int(random.choice([*(token for token, _ in guesses), *words]))
            place, context = source.advance(place, token), [*context, token]
            again = source.start(context)
            if place.match < DEPTH:
                assert sorted(place.positions) == sorted(again.positions)
            else:  # those of them that match even longer
                assert set(place.positions) <= set(again.positions)
                longest += 1
            assert (place.tail, place.match, place.complete) == (
                again.tail,
                again.match,
                again.complete,
            )
            matching = context[len(context) - place.match :]
            assert all(tokens[at - place.match : at].tolist() == matching for at in place.positions)
    assert longest


def test_an_end_of_a_text_is_no_guess(tmp_path: Path, home: Path, tokenizer: Tokenizer) -> None:
    source = indexed(tmp_path / "n", tokenizer, "abc", "uvw", "bcd")
    place = source.start(tokenizer.encode("ab"))
    place = source.advance(place, tokenizer.encode("c")[0])
    assert place.match == 2  # where "abc" ends nothing follows
    assert after(source, tokenizer, "abc") == ["d"]
    place = source.advance(source.start(tokenizer.encode("xuv")), tokenizer.encode("w")[0])
    assert place.match == 0
    assert source.successors(place, 8) == ()


def test_flipped_bits_are_never_guesses_beyond_the_vocabulary(
    tmp_path: Path, home: Path, tokenizer: Tokenizer
) -> None:
    text = "the world is in order and so on. " * 3
    source = indexed(tmp_path / "n", tokenizer, text)
    path, facts = source._datastore.path, source._datastore.facts
    whole = path.read_bytes()
    del source
    words, found = tokenizer.encode(text), 0
    for seed in range(20):
        random, data = np.random.default_rng(seed), bytearray(whole)
        for at in random.integers(0, 4 * (facts.tokens + facts.positions + facts.starts), 150):
            data[at] ^= 1 << random.integers(8)
        copy = path.with_name(f"{seed}")
        copy.write_bytes(data)
        copy.replace(path)
        [source] = open_datastores(tokenizer)
        place = source.start([])
        for word in words:
            guesses = source.successors(place, 8)
            assert all(0 <= token < tokenizer.vocab_size for token, _ in guesses)
            place, found = source.advance(place, word), found + len(guesses)
    assert found


def test_opens_what_is_of_the_same_tokens(
    source: Retrieval, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    indexed(tmp_path / "more", tokenizer, "more words")
    assert [found.name for found in open_datastores(tokenizer)] == [
        "retrieval:more",
        "retrieval:notes",
    ]
    other = tiny_gguf(tmp_path / "other.gguf", pre_tokenizer="qwen2")  # the same tokens
    assert len(open_datastores(Tokenizer.from_gguf(GGUFFile(other)))) == 2


def test_opens_nothing_of_other_tokens(source: Retrieval, smollm2: Path) -> None:
    assert open_datastores(Tokenizer.from_gguf(GGUFFile(smollm2))) == []


def test_opens_nothing_where_there_is_nothing(home: Path, tokenizer: Tokenizer) -> None:
    assert open_datastores(tokenizer) == []
    assert not home.exists()


def test_a_damaged_index_is_reported(
    source: Retrieval, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    indexed(tmp_path / "more", tokenizer, "more words")
    [path] = indexes_dir().glob("*.notes.index")
    path.write_bytes(path.read_bytes()[:-1])
    notices: list[str] = []
    assert [found.name for found in open_datastores(tokenizer, notices.append)] == [
        "retrieval:more"
    ]
    [notice] = notices
    assert notice == f"the index {path} is not used: it is incomplete, or no index; " + (
        "`edgespec index` builds it again"
    )
