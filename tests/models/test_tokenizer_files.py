from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.models.pretokenizers import PRE_TOKENIZERS, family_of
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
    description["model"]["merges"].append(["<s", ">"])  # as transformers' conversion writes them
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


def to_gguf(tokenizer: Tokenizer, folder: Path, size: int) -> FakeFile:
    """What a GGUF file gets of a tokenizer that was saved as a folder."""
    metadata = saved(tokenizer, folder).to_gguf(size)
    return FakeFile(**{key.removeprefix("tokenizer.ggml."): v for key, v in metadata.items()})


def test_gguf_metadata_comes_back(smollm2: Path, tmp_path: Path) -> None:
    """Through a folder, to the token: ids, types, merges and the family of the pre-tokenizer."""
    file = GGUFFile(smollm2)
    Tokenizer.from_gguf(file).save(tmp_path)
    metadata = Tokenizer.from_file(tmp_path).to_gguf(49152)
    lost = {"add_space_prefix", "unknown_token_id", "padding_token_id"}
    for key, value in file.metadata.items():
        if key.startswith("tokenizer.") and key.removeprefix("tokenizer.ggml.") not in lost:
            assert metadata[key] == value, key


@pytest.mark.slow
def test_big_tokenizers_come_back_from_gguf(big: Path, tmp_path: Path) -> None:
    """As llama.cpp has them: Gemma's scores are made of the merges."""
    file = GGUFFile(big)
    tokenizer = Tokenizer.from_gguf(file)
    size = len(file.metadata["tokenizer.ggml.tokens"])
    same = Tokenizer.from_gguf(to_gguf(tokenizer, tmp_path, size))  # type: ignore[arg-type]
    names = [special.text for special in tokenizer.specials]
    for text in [*CORPUS.values(), *random_texts(1500, names)]:
        for special in (False, True):
            assert same.encode(text, special=special) == tokenizer.encode(text, special=special)
    assert same.vocab_size == tokenizer.vocab_size
    assert same.stop_tokens == tokenizer.stop_tokens
    assert same.special_ids == tokenizer.special_ids
    assert all(same.token_bytes(i) == tokenizer.token_bytes(i) for i in range(size))


@pytest.mark.parametrize("changes", [{}, {"add_space_prefix": False}, {"add_bos_token": False}])
def test_sentencepiece_comes_back_from_gguf(changes: dict[str, object], tmp_path: Path) -> None:
    tokenizer = made_up(**changes)
    same = Tokenizer.from_gguf(to_gguf(tokenizer, tmp_path, tokenizer.vocab_size))  # type: ignore[arg-type]
    assert_same(tokenizer, same, ["ab", " ab", "aba<s>ab", "ab</s> ba", *random_texts(50, ["<s>"])])


def test_rows_without_a_token_are_unused(tmp_path: Path) -> None:
    tokenizer = made_up()
    size = tokenizer.vocab_size
    metadata = to_gguf(tokenizer, tmp_path, size + 2).metadata
    assert metadata["tokenizer.ggml.tokens"][size:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert metadata["tokenizer.ggml.token_type"][size:] == [5, 5]  # unused


def test_stop_tokens_that_no_name_tells_are_declared(tmp_path: Path) -> None:
    tokenizer = saved(made_up(), tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 260]}')
    tokenizer = Tokenizer.from_file(tmp_path)
    same = Tokenizer.from_gguf(to_gguf(tokenizer, tmp_path, tokenizer.vocab_size))  # type: ignore[arg-type]
    assert same.stop_tokens == tokenizer.stop_tokens == {2, 260}


# As the authors' tokenizer.json files have them.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("patterns", "ignore_merges", "family"),
    [
        ([_LLAMA3], True, "llama-bpe"),
        ([_LLAMA3.replace("{1,3}", "")], False, "qwen2"),
        ([_O200K], False, "gpt-4o"),
        ([_O200K.replace("{1,3}", "").replace(f"{_CONTRACTIONS}?", "")], True, "tekken"),
        ([], False, "gpt-2"),
        (["digits"], False, "smollm"),
        (["digits"], True, None),
        ([r"\w+"], False, None),
    ],
)
def test_families_of_published_pre_tokenizers(
    patterns: list[str], ignore_merges: bool, family: str | None
) -> None:
    import tokenizers
    from tokenizers import pre_tokenizers

    plain = not patterns or patterns == ["digits"]
    parts = [
        pre_tokenizers.Digits(individual_digits=True)
        if pattern == "digits"
        else pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        for pattern in patterns
    ]
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain))
    assert family_of(pre_tokenizers.Sequence(parts), ignore_merges) == family


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_family_is_told_from_the_others(name: str) -> None:
    family = PRE_TOKENIZERS[name]
    found = family_of(family.build(), family.ignore_merges)
    if "bailing" in name or name == "llada-moe":  # written otherwise, but the same
        assert found == "qwen2"
    else:
        assert found is not None
        assert PRE_TOKENIZERS[found].patterns == family.patterns
        assert PRE_TOKENIZERS[found].ignore_merges == family.ignore_merges


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts words"),
        ({"normalizer": {"type": "Lowercase"}}, "reads text in a way"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}, "Unigram"),
    ],
)
def test_what_gguf_cannot_describe_is_a_user_error(
    change: dict[str, object], expected: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    if "model" in change:
        description["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(description | change), encoding="utf-8")
    with pytest.raises(UserError, match=expected) as error:
        Tokenizer.from_file(tmp_path).to_gguf(49152)
    assert "--format onnx" in str(error.value)
    assert "\n" not in str(error.value)
