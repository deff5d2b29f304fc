from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgespec.errors import UserError
from edgespec.models import store
from edgespec.models.catalogue import load_catalogue
from edgespec.models.gguf import GGUFFile
from edgespec.models.pretokenizers import PRE_TOKENIZERS
from edgespec.models.tokenizer import Tokenizer
from tests.conftest import TEST_MODELS
from tests.models.corpus import CORPUS, INVALID, random_texts
from tests.models.llama_reference import LlamaVocabulary

GOLDEN = json.loads(Path(__file__).with_name("golden_ids.json").read_text(encoding="utf-8"))
BIG_MODELS = ["qwen2.5-coder-0.5b-instruct", "gemma-3-270m"]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(smollm2))


@pytest.fixture(scope="module", params=BIG_MODELS)
def big(request: pytest.FixtureRequest) -> Path:
    return store.pull(load_catalogue()[request.param], directory=TEST_MODELS)


@pytest.fixture
def llama() -> Iterator[list[LlamaVocabulary]]:
    """Collects what is to be closed; skips where llama.cpp is not installed."""
    pytest.importorskip("llama_cpp", reason="compares with llama.cpp live: pip install .[llama]")
    opened: list[LlamaVocabulary] = []
    yield opened
    for vocabulary in opened:
        vocabulary.close()


def assert_equal_ids(tokenizer: Tokenizer, reference: LlamaVocabulary, texts: list[str]) -> None:
    for text in texts:
        for special in (False, True):
            assert tokenizer.encode(text, special=special) == reference.encode(
                text, special=special
            ), (text, special)


class FakeFile:
    """What ``from_gguf`` reads of a file."""

    path = Path("made-up.gguf")

    def __init__(self, **metadata: object) -> None:
        self.metadata = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


def made_up(**changes: object) -> Tokenizer:
    """A SentencePiece vocabulary small enough to follow by hand."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = {"▁": -9, "a": -9, "b": -9, "ab": -1, "▁ab": -2, "ba": -3, "<": -9, "s": -9, ">": -9}
    words |= {"<s": -4, "s>": -5}
    metadata = {
        "model": "llama",
        "tokens": [*tokens, *words],
        "scores": [0.0] * len(tokens) + [float(score) for score in words.values()],
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
    }
    return Tokenizer.from_gguf(FakeFile(**metadata | changes))  # type: ignore[arg-type]


def test_ids_equal_those_of_llama_cpp(tokenizer: Tokenizer) -> None:
    assert {name: tokenizer.encode(text) for name, text in CORPUS.items()} == GOLDEN["text"]


def test_special_ids_equal_those_of_llama_cpp(tokenizer: Tokenizer) -> None:
    ids = {name: tokenizer.encode(text, special=True) for name, text in CORPUS.items()}
    assert ids == GOLDEN["special"]
    assert ids != GOLDEN["text"]


def test_bytes_that_are_not_utf8_equal_llama_cpp(tokenizer: Tokenizer) -> None:
    texts = {name: data.decode("utf-8", "surrogateescape") for name, data in INVALID.items()}
    assert {name: tokenizer.encode(text) for name, text in texts.items()} == GOLDEN["invalid"]
    assert tokenizer.encode("\ud800") == tokenizer.encode("\ufffd")


def test_stop_tokens_equal_those_of_llama_cpp(tokenizer: Tokenizer) -> None:
    assert tokenizer.stop_tokens == set(GOLDEN["stop_tokens"])
    assert tokenizer.eos in tokenizer.stop_tokens


def test_live_against_llama_cpp(
    tokenizer: Tokenizer, smollm2: Path, llama: list[LlamaVocabulary]
) -> None:
    reference = LlamaVocabulary(smollm2)
    llama.append(reference)
    names = [special.text for special in tokenizer.specials]
    assert_equal_ids(tokenizer, reference, [*CORPUS.values(), *random_texts(1000, names)])
    assert [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)] == [
        reference.token_bytes(id) for id in range(reference.size)
    ]


@pytest.mark.slow
def test_big_vocabularies_against_llama_cpp(big: Path, llama: list[LlamaVocabulary]) -> None:
    tokenizer, reference = Tokenizer.from_gguf(GGUFFile(big)), LlamaVocabulary(big)
    llama.append(reference)
    assert tokenizer.vocab_size == reference.size
    assert tokenizer.stop_tokens == reference.stop_tokens()
    names = [special.text for special in tokenizer.specials]
    assert_equal_ids(tokenizer, reference, [*CORPUS.values(), *random_texts(5000, names)])
    assert [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)] == [
        reference.token_bytes(id) for id in range(reference.size)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_against_llama_cpp(
    family: str, smollm2: Path, tmp_path: Path, llama: list[LlamaVocabulary]
) -> None:
    import gguf

    metadata = GGUFFile(smollm2).metadata
    path = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(family)
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer, reference = Tokenizer.from_gguf(GGUFFile(path)), LlamaVocabulary(path)
    llama.append(reference)
    assert_equal_ids(tokenizer, reference, [*CORPUS.values(), *random_texts(500, ["<|im_end|>"])])


def test_user_text_never_makes_a_control_token(tokenizer: Tokenizer) -> None:
    names = [special.text for special in tokenizer.specials]
    for text in [*names, "".join(names), *random_texts(200, names, seed=1)]:
        assert not tokenizer.special_ids & set(tokenizer.encode(text))
    for name in names:
        assert tokenizer.encode(name, special=True) == [
            special.id for special in tokenizer.specials if special.text == name
        ]
        assert tokenizer.decode(tokenizer.encode(name)) == name


def test_merges_cannot_make_a_control_token() -> None:
    tokenizer = made_up()
    ids = tokenizer.encode("<s>")  # "<s" + ">" and "<" + "s>" are merges to "<s>"
    assert 1 not in ids
    assert tokenizer.decode(ids) == "<s>"
    assert tokenizer.encode("<s>", special=True)[-1] == 1


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_stream_equals_decode_whatever_the_cuts(tokenizer: Tokenizer, name: str) -> None:
    ids = tokenizer.encode(CORPUS[name])
    random_ = random.Random(name)
    whole = tokenizer.decode(ids)
    for _ in range(5):
        stream, parts, rest = tokenizer.stream(), [], ids
        while rest:
            size = random_.randint(1, 4)
            parts.append(stream.push(rest[:size]))
            rest = rest[size:]
        assert "".join([*parts, stream.flush()]) == whole
    # SmolLM2 has no token for some control characters, noncharacters and rare plains.
    if name not in ("controls", "noncharacters", "private use", "emoji", "wide spaces"):
        assert whole == CORPUS[name]


def test_stream_holds_back_half_a_character(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    by_byte = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size)}
    face = [by_byte[bytes([byte])] for byte in "😀".encode()]
    assert [stream.push([id]) for id in face] == ["", "", "", "😀"]
    assert stream.push(face[:2]) == ""
    assert stream.push([by_byte[b"a"]]) == "\ufffda"  # two bytes that can no longer become one
    assert stream.push([face[1]]) == "\ufffd"
    assert stream.push(face[:3]) == ""
    assert stream.flush() == "\ufffd"


def test_control_tokens_are_printed_only_on_request(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>a<|im_end|>", special=True)
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>a<|im_end|>"


def test_sentencepiece_by_hand() -> None:
    tokenizer = made_up()

    def pieces(text: str) -> list[str]:
        return [tokenizer.token_text(id) for id in tokenizer.encode(text)]

    assert pieces("ab") == ["▁ab"]  # a space is put before the text
    assert pieces("aba") == ["▁ab", "a"]  # "ab" scores better than "ba"
    assert pieces(" ab") == ["▁", "▁ab"]
    assert pieces("é") == ["▁", "<0xC3>", "<0xA9>"]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.stop_tokens == {2}


@pytest.mark.parametrize("text", ["ab", " ab", "  ab  ", "", " ", "é\n", "ab😀"])
def test_sentencepiece_space_comes_off_again(text: str) -> None:
    tokenizer = made_up()
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    assert tokenizer.decode(ids) == text
    assert "".join([*(stream.push([id]) for id in ids), stream.flush()]) == text


def test_text_that_continues_keeps_its_space() -> None:
    tokenizer = made_up()
    assert tokenizer.stream(continues=True).push(tokenizer.encode("ab")) == " ab"


def test_missing_character_does_not_join_its_neighbours() -> None:
    tokens = ["a", "b", "ab"]
    tokenizer = Tokenizer.from_gguf(
        FakeFile(model="gpt2", pre="gpt-2", tokens=tokens, merges=["a b"])  # type: ignore[arg-type]
    )
    assert tokenizer.encode("ab") == [2]
    assert tokenizer.encode("a\x01b") == tokenizer.encode("acb") == [0, 1]


def test_tokens_that_are_not_utf8_are_kept() -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "\udce2\udc82"]
    tokenizer = made_up(tokens=tokens, scores=[0.0] * 5, token_type=[2, 3, 3, 1, 1])
    assert tokenizer.token_bytes(4) == b"\xe2\x82"
    assert tokenizer.decode([4, 3]) == "\ufffda"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "rwkv"}, "rwkv"),
        ({"model": None}, "None"),
        ({"tokens": []}, "0 tokens"),
        ({"tokens": "abc"}, "not a list"),
        ({"tokens": [1, 2]}, "not a list"),
        ({"scores": [1.0]}, "1 scores"),
        ({"token_type": [1]}, "1 token types"),
        ({"token_type": [6] * 400}, "not named like one"),
        ({"model": "gpt2", "pre": "klingon", "merges": []}, "klingon"),
        ({"model": "gpt2", "merges": ["a nothing"]}, "do not fit"),
        ({"model": "gpt2", "merges": ["ab"]}, "do not fit"),
        ({"model": "gpt2", "merges": ["\udc80 b"]}, "do not fit"),
    ],
)
def test_malformed_metadata_is_a_user_error(changes: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        made_up(**changes)
    assert "\n" not in str(error.value)
