from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from tests.models.corpus import CORPUS, random_texts
from tests.models.test_tokenizer import FakeFile, big, made_up, tokenizer

__all__ = ["big", "tokenizer"]  # fixtures

FILES = ["chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


def assert_same(first: Tokenizer, second: Tokenizer, texts: list[str]) -> None:
    for text in texts:
        for special in (False, True):
            ids = first.encode(text, special=special)
            assert second.encode(text, special=special) == ids, (text, special)
            for skip in (False, True):
                assert second.decode(ids, skip) == first.decode(ids, skip), (text, special)
    for name in ("bos", "eos", "add_bos", "stop_tokens", "special_ids", "specials"):
        assert getattr(second, name) == getattr(first, name)
    assert second.space_prefix == first.space_prefix
    assert second.chat_template == first.chat_template
    for id in range(first.vocab_size):
        assert second.token_bytes(id) == first.token_bytes(id)


def saved(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    tokenizer.save(folder)
    return Tokenizer.from_file(folder)


def test_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    same = saved(tokenizer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    names = [special.text for special in tokenizer.specials]
    assert_same(tokenizer, same, [*CORPUS.values(), *random_texts(300, names)])
    assert same.vocab_size == tokenizer.vocab_size


@pytest.mark.slow
def test_big_saved_tokenizers_are_the_same(big: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile(big))
    names = [special.text for special in tokenizer.specials]
    texts = [*CORPUS.values(), *random_texts(1500, names)]
    assert_same(tokenizer, saved(tokenizer, tmp_path), texts)


def test_saving_again_gives_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    saved(tokenizer, folders[0]).save(folders[1])
    for name in FILES:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.parametrize("changes", [{}, {"add_space_prefix": False}, {"add_bos_token": False}])
def test_saved_sentencepiece_is_the_same(changes: dict[str, object], tmp_path: Path) -> None:
    tokenizer = made_up(**changes)
    texts = ["ab", " ab", "aba<s>ab", "ab</s> ba", "é", "<s>", "", " ", *random_texts(50, ["<s>"])]
    assert_same(tokenizer, saved(tokenizer, tmp_path), texts)


def test_saved_control_tokens_stay_out_of_a_users_text(tmp_path: Path) -> None:
    tokenizer = saved(made_up(), tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    description["model"]["merges"].append(["<", "s>"])  # as transformers' conversion writes them
    (tmp_path / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    unguarded = Tokenizer.from_file(tmp_path)
    assert unguarded.encode("<s>") == tokenizer.encode("<s>")
    assert 1 not in unguarded.encode("<s>")


def test_missing_characters_keep_their_neighbours_apart(tmp_path: Path) -> None:
    metadata = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"]}
    tokenizer = saved(Tokenizer.from_gguf(FakeFile(**metadata)), tmp_path)  # type: ignore[arg-type]
    assert tokenizer.encode("ab") == [2]
    assert tokenizer.encode("acb") == [0, 1]


def test_names_of_unused_ids_are_left_out(tmp_path: Path) -> None:
    tokens = ["a", "b", "[PAD2]"]
    metadata = {"model": "gpt2", "tokens": tokens, "merges": [], "token_type": [1, 1, 5]}
    tokenizer = Tokenizer.from_gguf(FakeFile(**metadata))  # type: ignore[arg-type]
    same = saved(tokenizer, tmp_path)
    assert same.vocab_size == 2
    assert same.decode([0, 2, 1, 99]) == tokenizer.decode([0, 2, 1, 99]) == "ab"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_transformers_reads_the_same(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install .[torch]")
    tokenizer = tokenizer if kind == "gpt2" else made_up()
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    # Without a token for every character, transformers lets the neighbours of a missing one merge.
    skipped = {"controls", "noncharacters", "private use", "emoji", "wide spaces"}
    texts = [text for name, text in CORPUS.items() if name not in skipped]
    for text in texts if kind == "gpt2" else ["ab aba", "<s>ab", "é"]:
        ids = tokenizer.encode(text, special=True)
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert theirs.decode(ids) == tokenizer.decode(ids, skip_special=False), text
    bos = [tokenizer.bos] if tokenizer.add_bos else []
    assert theirs.encode("ab") == bos + tokenizer.encode("ab")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos, tokenizer.eos)
    assert theirs.chat_template == tokenizer.chat_template


def test_configuration_in_its_other_forms(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = {"bos_token": None, "eos_token": {"content": "<|im_end|>"}, "chat_template": "{{ 1 }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}', encoding="utf-8")
    same = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert (same.bos, same.eos, same.add_bos) == (None, 2, False)
    assert same.stop_tokens == {0, 2, 4, 5}
    assert same.chat_template == "{{ 1 }}"


@pytest.mark.parametrize("scheme", ["prepend", "always", "first", "never"])
def test_tokenizer_json_in_sentencepiece_style(tmp_path: Path, scheme: str) -> None:
    """The ids equal those of the library itself, wherever it puts its space."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    words = ["<unk>", "<s>", "▁", "a", "b", "ab", "▁ab"]
    vocabulary = {word: id for id, word in enumerate(words)}
    original = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "b"), ("▁", "ab")]))
    if scheme == "prepend":
        original.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        original.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    original.add_special_tokens([tokenizers.AddedToken("<s>", normalized=False)])
    original.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path)
    for text in ["ab", " ab", "ab ab", "<s>ab", "ab<s>ab ab<s>", ""]:
        expected = original.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, special=True) == expected, text
    assert tokenizer.decode(tokenizer.encode("ab ab")) == "ab ab"


BPE = '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"model": 1}',
        "\x00",
        '{"model": {"vocab": 1}}',
        '{"model": {"vocab": {"a": 4000000000000}}}',
        '{"model": {"vocab": {"a": "b"}}}',
        '{"model": {"vocab": {"a": 0}, "merges": [["a", "a"]]}}',
        '{"model": {"vocab": {"a": 0}, "merges": [["a"]]}}',
        BPE + ', "added_tokens": [{"id": -1, "content": "b"}]}',
        BPE + ', "added_tokens": [{"id": 1, "content": "b"}]}',
        BPE + ', "added_tokens": 7}',
        BPE + ', "normalizer": 7}',
    ],
)
def test_malformed_tokenizer_json_is_a_user_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="not usable") as error:
        Tokenizer.from_file(tmp_path)
    assert "\n" not in str(error.value)


def test_missing_tokenizer_json_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.from_file(tmp_path)
