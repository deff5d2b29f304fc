"""Added tokens and stop tokens of a folder are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec.models.tokenizer import Tokenizer
from tests.models.test_tokenizer import FakeFile


def with_added(folder: Path, *flags: dict[str, object]) -> tuple[Tokenizer, int]:
    """A saved tokenizer with added tokens <0>, <1> …, and the id of the first of them."""
    bpe(["a", "b", "x", "y", "Ġ", "Ġa"], ["Ġ a"]).save(folder)
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    first = 6
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    description["added_tokens"] += [
        {"id": first + i, "content": f"<{i}>", "special": True} | plain | flag
        for i, flag in enumerate(flags)
    ]
    path.write_text(json.dumps(description), encoding="utf-8")
    return Tokenizer.from_file(folder), first


def bpe(tokens: list[str], merges: list[str]) -> Tokenizer:
    described = FakeFile(model="gpt2", pre="gpt-2", tokens=tokens, merges=merges)
    return Tokenizer.from_gguf(described)  # type: ignore[arg-type]


FLAGS: tuple[dict[str, object], ...] = (
    {"lstrip": True},
    {"rstrip": True},
    {"single_word": True},
    {"lstrip": True, "rstrip": True, "single_word": True},
)
SPACES = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"
BESIDE = (
    *SPACES,
    "\x1c",
    "\u200b",
    "\u2060",
    "_",
    "-",
    "½",
    "é",
    "\u0301",
    "१",
    "Ⅻ",
    "Ⓐ",
    "\u200d",
)


def test_added_tokens_are_found_as_transformers_finds_them(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    own, first = with_added(tmp_path, *FLAGS)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    for number in range(len(FLAGS)):
        for char in BESIDE:
            for text in (f"a{char}<{number}>b", f"a<{number}>{char}b", f"{char}<{number}>{char}"):
                expected = reference.encode(text, add_special_tokens=False)
                found = own.encode(text, special=True)
                assert [id for id in found if id >= first] == [
                    id for id in expected if id >= first
                ], repr(text)
                if char in SPACES:
                    assert found == expected, repr(text)


def test_flags_of_added_tokens_survive_saving(tmp_path: Path) -> None:
    own, _ = with_added(tmp_path, *FLAGS)
    (tmp_path / "again").mkdir()
    own.save(tmp_path / "again")
    assert Tokenizer.from_file(tmp_path / "again").specials == own.specials


# generation_config.json, config.json, and the ids that end an answer.
ENDS: list[tuple[object, object, set[int]]] = [
    (None, {"eos_token_id": 3}, {3}),
    (None, {"eos_token_id": [3, 5]}, {3, 5}),
    (None, {"eos_token_id": None}, set()),
    (None, {"text_config": {"eos_token_id": [4]}}, {4}),
    (None, {"eos_token_id": 2, "text_config": {"eos_token_id": 4}}, {2}),
    (None, {}, set()),
    ({"eos_token_id": None}, {"eos_token_id": 3}, set()),
    ({"eos_token_id": [None, 3]}, {}, {3}),
    ({"eos_token_id": 4}, {"eos_token_id": 3}, {4}),
    ({"eos_token_id": [True, "3", -1, 2]}, {}, {2}),
    ({}, {"eos_token_id": 3}, set()),
]


@pytest.mark.parametrize(("generation", "config", "expected"), ENDS)
def test_what_ends_an_answer(
    tmp_path: Path, generation: object, config: object, expected: set[int]
) -> None:
    with_added(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = Tokenizer.from_file(tmp_path)
    assert own.stop_tokens == expected
    (tmp_path / "again").mkdir()
    own.save(tmp_path / "again")
    assert Tokenizer.from_file(tmp_path / "again").stop_tokens == expected
