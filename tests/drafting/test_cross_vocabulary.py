"""A draft model with another tokenizer: what it reads, what its text becomes, and that nothing changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgespec.drafting import cross_vocabulary as module
from edgespec.drafting.cross_vocabulary import CrossVocabulary, between
from edgespec.models.tokenizer import Tokenizer
from tests.models.corpus import CORPUS, INVALID, random_texts
from tests.models.test_tokenizer import FakeFile
from tests.tiny import MERGES, _byte_characters

NORMAL, CONTROL, BYTE, UNUSED = 1, 3, 6, 5


def tokenizer(
    tokens: Sequence[str],
    merges: Sequence[str] = (),
    controls: Sequence[str] = (),
    kinds: Sequence[int] | None = None,
    **roles: object,
) -> Tokenizer:
    """A byte-level BPE."""
    every = [*tokens, *controls]
    kinds = [*(kinds or [NORMAL] * len(tokens)), *[CONTROL] * len(controls)]
    file = FakeFile(
        model="gpt2", pre="qwen2", tokens=every, token_type=kinds, merges=list(merges), **roles
    )
    return Tokenizer.from_gguf(file)  # type: ignore[arg-type]


def whole(merges: Sequence[str], controls: Sequence[str], **roles: object) -> Tokenizer:
    """One with a token for every byte, the last byte first."""
    tokens = [*_byte_characters()[::-1], *(merge.replace(" ", "") for merge in merges)]
    return tokenizer(tokens, merges, controls, **roles)


OURS = whole(
    [*MERGES.replace("\n", "|").split("|"), ". Ċ", ".Ċ Ċ"],
    ["<s>", "<|end|>", "<|user|>", "<stop>"],
    eos_token_id=256 + len(MERGES.replace("\n", "|").split("|")) + 3,
)
THEIRS = whole(
    [
        "t h",
        "th e",
        "Ġ the",
        "i n",
        "in g",
        "l l",
        "e ll",
        "h ell",
        "o r",
        "w or",
        "Ġ w",
        "Ġw or",
        "Ċ Ċ",
        "Ġ Ġ",
        "Ã ©",
        "ð Ł",
    ],
    ["<|user|>", "<b>", "</s>"],
    bos_token_id=256 + 16 + 1,
    eos_token_id=256 + 16 + 2,
    add_bos_token=True,
)
TEXT = "hello world, the thing in the world is well.\n\nThe end of the thing, hello.\n\nthe theing in it"


def names(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [tokenizer.token_text(id) for id in ids]


def spelled(vocabulary: CrossVocabulary, tokens: Sequence[int]) -> list[int]:
    return [token for token, _, _ in vocabulary.spell(tokens)]


def text_of(tokenizer: Tokenizer, ids: Sequence[int]) -> bytes:
    return b"".join(map(tokenizer.token_bytes, ids))


@pytest.mark.parametrize("name", CORPUS)
def test_the_context_is_read_in_the_drafts_tokens_however_it_comes(name: str) -> None:
    """Bit by bit it becomes what the draft's tokenizer makes of the whole."""
    text = CORPUS[name]
    output = OURS.encode(text)
    vocabulary, context = CrossVocabulary(OURS, THEIRS), list[int]()
    for token in output:
        context.append(token)
        own, _, ready = vocabulary.read(context)
        spoken = text_of(OURS, context)
        assert ready == (spoken.decode("utf-8", "ignore").encode() == spoken)
        assert text_of(THEIRS, own[1:]) == spoken.decode("utf-8", "ignore").encode()
    if output:
        at_once, _, _ = CrossVocabulary(OURS, THEIRS).read(output)
        assert own == at_once == [THEIRS.bos, *THEIRS.encode(text)]


def test_stable_tokens_do_not_change() -> None:
    for text in random_texts(60, ["<|user|>"]):
        vocabulary, context = CrossVocabulary(OURS, THEIRS), list[int]()
        before: list[int] = []
        for token in OURS.encode(text, special=True):
            context.append(token)
            own, stable, _ = vocabulary.read(context)
            assert own[:stable] == before[:stable]
            before = list(own)


@pytest.mark.parametrize("text", ["a word or two, ", "没有空格的文字", "x"])
def test_only_the_end_of_the_context_is_read_again(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    encode = module._encode
    monkeypatch.setattr(
        module, "_encode", lambda t, text: read.append(len(text)) or encode(t, text)
    )
    vocabulary, context = CrossVocabulary(OURS, THEIRS), list[int]()
    for token in OURS.encode(text * 100):
        context.append(token)
        vocabulary.read(context)
    assert len(read) >= 90
    assert max(read) <= 40


def test_another_context_and_an_interrupted_one_are_read_from_the_start() -> None:
    vocabulary = CrossVocabulary(OURS, THEIRS)
    first, second = OURS.encode("hello world"), OURS.encode("hello there")
    vocabulary.read(first)
    own, stable, _ = vocabulary.read(second)
    assert (own[1:], stable) == (THEIRS.encode("hello there"), 0)

    class Growing(list[int]):
        broken = False

        def __iter__(self) -> Iterator[int]:
            yield from self[: -1 if self.broken else None]
            if self.broken:
                raise KeyboardInterrupt

    context = Growing(OURS.encode("hello"))
    vocabulary.read(context)
    context.extend(OURS.encode(" or world"))
    context.broken = True
    with pytest.raises(KeyboardInterrupt):
        vocabulary.read(context)
    context.broken = False
    own, stable, _ = vocabulary.read(context)
    assert (own[1:], stable) == (THEIRS.encode("hello or world"), 0)


@pytest.mark.parametrize("data", INVALID.values(), ids=list(INVALID))
def test_bytes_that_are_no_text_break_nothing(data: bytes) -> None:
    byte = {OURS.token_bytes(id): id for id in range(256)}
    vocabulary, context = CrossVocabulary(OURS, THEIRS), list[int]()
    for value in (*data, *b" and on"):
        context.append(byte[bytes([value])])
        own, _, _ = vocabulary.read(context)
    known = (data + b" and on").decode("utf-8", "replace").encode()
    assert text_of(THEIRS, own[1:]) == known


def test_control_tokens_are_those_of_the_same_name_or_the_end() -> None:
    vocabulary = CrossVocabulary(OURS, THEIRS)
    own, _, ready = vocabulary.read(OURS.encode("<s><|user|>hello<|end|><|user|>", special=True))
    assert ready
    assert names(THEIRS, own) == ["<b>", "<|user|>", "hell", "o", "</s>", "<|user|>"]
    ids = {name: id for id, name in enumerate(names(THEIRS, range(THEIRS.vocab_size)))}
    end = [ids["hell"], ids["o"], ids["</s>"], ids["hell"]]
    assert names(OURS, spelled(vocabulary, end)) == [
        *names(OURS, OURS.encode("hello")),
        names(OURS, [OURS.eos or 0])[0],
    ]
    assert names(OURS, spelled(vocabulary, [ids["<|user|>"]])) == ["<|user|>"]
    assert spelled(vocabulary, [ids["<b>"], ids["hell"]]) == [], "it has none such"
    with_bos = tokenizer([*_byte_characters()], controls=["<b>"])
    own, _, _ = CrossVocabulary(with_bos, THEIRS).read(with_bos.encode("<b>a<b>", special=True))
    assert names(THEIRS, own) == ["<b>", "a", "<b>"], "it begins but once"
    # a text never becomes one
    assert "<|user|>" not in names(OURS, spelled(vocabulary, THEIRS.encode("<|user|>")))


@pytest.mark.parametrize("name", CORPUS)
def test_a_drafts_text_becomes_what_the_targets_tokenizer_makes_of_it(name: str) -> None:
    text = CORPUS[name][:200]
    found = CrossVocabulary(OURS, THEIRS).spell(THEIRS.encode(text))
    assert [token for token, _, _ in found] == OURS.encode(text)
    ends = [end for _, end, _ in found]
    assert ends == sorted(ends)
    for i, end in enumerate(
        ends
    ):  # the tokens so far end within so many of the draft's, not one less
        size = len(text_of(OURS, [token for token, _, _ in found[: i + 1]]))
        drafted = THEIRS.encode(text)
        assert len(text_of(THEIRS, drafted[:end])) >= size
        assert len(text_of(THEIRS, drafted[: end - 1])) < size


def test_an_incomplete_character_is_not_spelled() -> None:
    vocabulary = CrossVocabulary(OURS, THEIRS)
    tokens = THEIRS.encode("a 👍")
    for count in range(2, len(tokens)):
        assert text_of(OURS, spelled(vocabulary, tokens[:count])) == b"a "
    assert text_of(OURS, spelled(vocabulary, tokens)) == "a 👍".encode()


def test_a_token_of_the_target_is_learnt_for_its_run_of_draft_tokens() -> None:
    odd = tokenizer([*_byte_characters(), "xqz"])  # which no merge makes
    x, q, z, a = (THEIRS.encode(letter)[0] for letter in "xqza")
    vocabulary = CrossVocabulary(odd, THEIRS)
    assert names(odd, spelled(vocabulary, [a, x, q, z, a])) == ["a", "x", "q", "z", "a"]
    vocabulary.read([odd.encode("a")[0], 256])
    found = vocabulary.spell([a, x, q, z, a])
    assert [(odd.token_text(token), end) for token, end, _ in found] == [
        ("a", 1),
        ("xqz", 4),
        ("a", 5),
    ]
    assert names(odd, spelled(vocabulary, [a, x, q, a])) == ["a", "x", "q", "a"]
    vocabulary.read(odd.encode("xqzxqz"))  # half of the time it is cut differently
    assert names(odd, spelled(vocabulary, [x, q, z])) == ["xqz"]


def test_a_last_token_that_is_often_only_a_beginning_is_less_certain() -> None:
    vocabulary = CrossVocabulary(OURS, THEIRS)
    full_stop = THEIRS.encode(".")
    assert vocabulary.spell(full_stop)[0][2] == 1.0
    context: list[int] = []
    chances = []
    for _ in range(6):
        context += OURS.encode("hello.\n\n")
        vocabulary.read(context)
        chances.append(vocabulary.spell(full_stop)[0][2])
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < 0.5
    assert vocabulary.spell(THEIRS.encode(". a"))[0][2] == 1.0, "what follows shows it"
    for text in (".\n\n", "hello.\n\n the end"):
        assert spelled(vocabulary, THEIRS.encode(text)) == OURS.encode(text)
    context += OURS.encode("hello. " * 50)
    vocabulary.read(context)
    assert vocabulary.spell(full_stop)[0][2] > 0.8


def test_what_is_learnt_is_bounded() -> None:
    vocabulary = CrossVocabulary(OURS, THEIRS)
    rng = np.random.default_rng(0)
    for run in rng.integers(0, THEIRS.vocab_size, (2000, 6)).tolist():
        vocabulary._learn(tuple(run), 7)
    assert len(vocabulary._runs) == module.CONSTANTS.runs
    assert vocabulary._runs[tuple(run)].complete == 1
    for _ in range(1000):
        vocabulary._learn((1, 2), 3)
    assert vocabulary._runs[1, 2].complete <= 64


def test_shared_tokens_have_the_same_bytes_and_count_once() -> None:
    target = tokenizer(["a", "b", "", "ab", "c", "a"], ["a b"], ["<x>", "<e>"])
    draft = tokenizer(["ab", "", "a", "a", "d", "<x>"])
    assert CrossVocabulary(target, draft).shared.tolist() == [3, -1, 0, 0, -1, -1]
    # a token with the name of a control token is a text


def test_a_text_that_the_target_cannot_spell_ends_there() -> None:
    vocabulary = CrossVocabulary(tokenizer(["a", "b"]), THEIRS)
    assert spelled(vocabulary, THEIRS.encode("abxab")) == [0, 1]


def test_a_byte_token_comes_after_a_token_of_the_same_character() -> None:
    file = FakeFile(
        model="llama",
        tokens=["<unk>", "<0x61>", "a", "▁a", "b", "▁"],
        token_type=[2, BYTE, NORMAL, NORMAL, NORMAL, NORMAL],
        scores=[0.0, 0.0, -1.0, -2.0, -3.0, -4.0],
    )
    target = Tokenizer.from_gguf(file)  # type: ignore[arg-type]
    draft = tokenizer(["Ġa", "a", "b"])
    vocabulary = CrossVocabulary(target, draft)
    assert vocabulary.shared.tolist() == [3, 2, 4]
    assert spelled(vocabulary, [1, 2, 0]) == [2, 4, 3], "no space is put before what goes on"
    own, _, _ = CrossVocabulary(draft, target).read([1, 2])
    assert own[-2:] == [2, 4]


def test_vocabularies_that_are_alike_need_no_translation(smollm2: Path) -> None:
    file = tokenizer(names(THEIRS, range(272)))
    assert between(file, tokenizer([*names(THEIRS, range(270)), "x", "y"])) is None
    assert between(file, OURS) is not None
    assert between(file, tokenizer(names(THEIRS, range(100)))) is not None
