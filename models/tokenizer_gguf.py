"""A tokenizer from and to GGUF metadata (``tokenizer.ggml.*``), by llama.cpp's rules."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgespec.models.pretokenizers import PLAIN_PROBE, PRE_TOKENIZERS, PreTokenizer, family_of
from edgespec.models.vocabulary import (
    BYTE,
    CONTROL,
    LONE_SURROGATE,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SpecialToken,
    TokenizerError,
    Vocabulary,
    VocabularyT,
)

if TYPE_CHECKING:
    import tokenizers

# Tokens that end an answer whatever their kind in the file, as in llama.cpp.
_END_NAMES = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> "
    "<|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> "
    "<eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~["
)
# Tokens of code models that are known by name where the metadata does not declare them: the role,
# whether such a token ends an answer, and its names.
_CODE_ROLES = (
    ("fim_pre", False, "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE>"),
    ("fim_suf", False, "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF>"),
    ("fim_mid", False, "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID>"),
    ("fim_pad", True, "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]"),
    ("fim_rep", True, "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>"),
    ("fim_sep", True, "<|file_sep|>"),
)

_WITHOUT_MERGES = ("kimi-k2",)
_BYTE_NAME = re.compile("<0x[0-9A-Fa-f]{2}>")


def from_metadata(cls: type[VocabularyT], metadata: Mapping[str, Any]) -> VocabularyT:
    """The tokenizer that ``tokenizer.ggml.*`` describes. Raises ``TokenizerError``."""

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    def token_id(role: str, default: int | None = None) -> int | None:
        id = get(f"{role}_token_id", default)
        return id if isinstance(id, int) and 0 <= id < len(tokens) else None

    kind = get("model")
    if kind is None:
        raise TokenizerError("tokenizer.ggml.model is None; is the file a language model?")
    if kind not in ("gpt2", "gemma4", "llama"):
        raise TokenizerError(
            f"it is of kind {str(kind)[:64]!r}, and edgespec reads gpt2, gemma4 and llama; choose another model"
        )
    family = "gemma4" if kind == "gemma4" else get("pre", "default")
    pre = PRE_TOKENIZERS.get(family) if isinstance(family, str) else None
    byte_level = kind != "llama" and not (pre and pre.raw)
    tokens = _list(metadata, "tokens", str)
    kinds = _list(metadata, "token_type", int) or [NORMAL] * len(tokens)
    scores = _list(metadata, "scores", (int, float))
    if not tokens or len(kinds) < len(tokens):
        raise TokenizerError(f"it has {len(tokens)} tokens and {len(kinds)} token types")
    kinds = kinds[: len(tokens)]
    if not all(
        _BYTE_NAME.fullmatch(text) for text, kind in zip(tokens, kinds, strict=True) if kind == BYTE
    ):
        raise TokenizerError("a token for a byte is not named like one")
    # Control tokens are left out of the model, so no merge of a user's text can make one.
    vocabulary = {
        text: id
        for id, (text, kind) in enumerate(zip(tokens, kinds, strict=True))
        if text and kind not in (CONTROL, UNKNOWN)
    }
    if LONE_SURROGATE.search("".join(tokens)):  # tokens that are not UTF-8: no text has them
        vocabulary = {t: id for t, id in vocabulary.items() if not LONE_SURROGATE.search(t)}
    if kind != "llama":
        if not pre:
            raise TokenizerError(
                f"it cuts words in a way named {str(family)[:64]!r}, which edgespec does not know; "
                "choose another model"
            )
        if get("merges") is None and family not in _WITHOUT_MERGES:
            raise TokenizerError(
                "the file has no tokenizer.ggml.merges; convert the model again, or download another file"
            )
        model = _pre_tokenized_bpe(vocabulary, _list(metadata, "merges", str), len(tokens), pre)
        add_bos = pre.add_bos
    else:
        if len(scores) < len(tokens):
            raise TokenizerError(f"it has {len(tokens)} tokens and {len(scores)} scores")
        model = _sentencepiece(vocabulary, kinds, scores, len(tokens))
        add_bos = True
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    roles = ["eos", "eot", "eom", *(role for role, _, _ in _CODE_ROLES)]
    stop_tokens, named = stop_tokens_of(ids, {role: token_id(role) for role in roles})
    controls = {id for id, kind in enumerate(kinds) if kind in (CONTROL, UNKNOWN)} | named
    users = {id for id, kind in enumerate(kinds) if kind == USER_DEFINED} - controls
    # Phi-3's special tokens swallow the white space after them; the file does not state it.
    name = str(metadata.get("general.name", "")).lower()
    greedy = "phi-3" in name or "phi3" in name
    specials = [
        SpecialToken(
            tokens[id],
            id,
            control=id in controls,
            strip_right=greedy and tokens[id] not in ("<unk>", "<s>", "<|endoftext|>"),
        )
        for id in controls | users
        if tokens[id]
    ]
    template = metadata.get("tokenizer.chat_template")
    return cls(
        model,
        tokens,
        kinds,
        specials,
        byte_level=byte_level,
        space_prefix="always" if kind == "llama" and get("add_space_prefix", True) else "never",
        bos=token_id("bos", 1 if kind == "llama" else None),
        eos=token_id("eos", 2 if kind == "llama" else None),
        add_bos=bool(get("add_bos_token", add_bos)),
        stop_tokens=stop_tokens,
        chat_template=template if isinstance(template, str) else None,
    )


def to_metadata(tokenizer: Vocabulary, size: int) -> dict[str, Any]:
    """``tokenizer.*`` for a model with ``size`` rows in its embedding. Raises ``TokenizerError``.

    It is read back and tried on a text, since GGUF has fewer ways to cut and merge than there are.
    """
    if tokenizer.vocab_size > size:
        raise TokenizerError(
            f"it has {tokenizer.vocab_size} tokens and the model's embedding {size} rows; "
            "they do not belong together"
        )
    model = json.loads(tokenizer.model.to_str())["model"]
    if "merges" not in model:
        raise TokenizerError(f"GGUF has no way to describe a {model.get('type')} tokenizer")
    texts = [tokenizer.token_text(id) for id in range(tokenizer.vocab_size)]
    texts = [text or f"[PAD{id}]" for id, text in enumerate(texts)]
    pairs = list(merges_of(model))
    values: dict[str, Any] = {
        "model": "gpt2" if tokenizer.byte_level else "llama",
        "pre": "default",
        "tokens": texts + [f"[PAD{id}]" for id in range(len(texts), size)],
        "token_type": [*tokenizer.kinds, *[UNUSED] * (size - len(texts))],
    }
    if tokenizer.byte_level:
        family = family_of(tokenizer.model.pre_tokenizer, bool(model.get("ignore_merges")))
        if family is None:
            raise TokenizerError("it cuts words in a way that GGUF has no name for")
        values |= {"pre": family, "merges": [f"{left} {right}" for left, right in pairs]}
    else:
        # The earlier a token is merged, the better its score.
        ranks = {text: -rank for rank, text in enumerate(dict.fromkeys(a + b for a, b in pairs))}
        values["scores"] = [float(ranks.get(text, -len(pairs))) for text in values["tokens"]]
        values["add_space_prefix"] = tokenizer.space_prefix != "never"
    stops, _ = stop_tokens_of({text: id for id, text in enumerate(texts)}, {"eos": tokenizer.eos})
    others = sorted(tokenizer.stop_tokens - stops)  # known neither as eos nor by name
    roles = zip(("bos", "eos", "eot", "eom"), (tokenizer.bos, tokenizer.eos, *others), strict=False)
    values |= {f"{role}_token_id": id for role, id in roles if id is not None}
    values["add_bos_token"] = tokenizer.add_bos
    metadata = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    written = from_metadata(type(tokenizer), metadata)
    if written.encode(PLAIN_PROBE) != tokenizer.encode(PLAIN_PROBE):
        raise TokenizerError("it reads text in a way that GGUF cannot describe")
    return metadata


def merges_of(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The merges of a BPE in ``tokenizer.json``, where they are written in one of two ways."""
    for merge in model.get("merges") or []:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        yield left, right


def _list(metadata: Mapping[str, Any], key: str, item: type | tuple[type, ...]) -> list[Any]:
    """A list of the metadata, its first and last items checked (arrays have one type)."""
    value = metadata.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(value, list) or not all(isinstance(i, item) for i in value[:1] + value[-1:]):
        raise TokenizerError(f"tokenizer.ggml.{key} is not a list as it should be")
    return value


def stop_tokens_of(
    ids: Mapping[str, int], declared: Mapping[str, int | None]
) -> tuple[set[int], set[int]]:
    """The ids that end an answer, and the ids that are control tokens for their names alone.

    llama.cpp's rules (``llama_vocab::impl::load``). Where a vocabulary has several names of one
    role it takes whichever its hash table has first; here it is the first in the table above.
    """
    named = {ids[name] for name in _END_NAMES.split() if name in ids}
    stops = {id for role in ("eos", "eot", "eom") if (id := declared.get(role)) is not None} | named
    for role, ends, names in _CODE_ROLES:
        role_id = declared.get(role)
        if role_id is None:
            role_id = next((ids[name] for name in names.split() if name in ids), None)
            if role_id is None:
                continue
            named.add(role_id)
        if ends:
            stops.add(role_id)
    # Where "<|end|>" only ends a part of an answer (gpt-oss, Solar), or "</s>" is a plain token.
    calls = {"<|call|>", "<|calls|>"} & ids.keys()
    if calls and ("<|return|>" in ids or "<|flush|>" in ids):
        stops.discard(ids.get("<|end|>", -1))
    if "<|tool_response>" in ids:
        stops.discard(ids.get("</s>", -1))
        named.discard(ids.get("</s>", -1))
    return stops, named


def _pre_tokenized_bpe(
    vocabulary: dict[str, int], merges: list[str], unknown: int, pre: PreTokenizer
) -> tokenizers.Tokenizer:
    """GPT-2's BPE over the stand-ins of bytes, or over text as it is. What has no token comes out as ``unknown``."""
    import tokenizers
    from tokenizers import normalizers

    pairs = [_pair(merge) for merge in merges]
    options = {"ignore_merges": pre.ignore_merges, "byte_fallback": pre.raw}
    model = tokenizers.Tokenizer(_bpe(vocabulary, pairs, unknown, **options))
    if pre.raw:
        model.normalizer = normalizers.Replace(" ", SPACE)
    model.pre_tokenizer = pre.build()
    return model


def _pair(merge: str) -> tuple[str, ...]:
    """A merge's two sides; the left one may be a space, never empty."""
    cut = merge.find(" ", 1)
    return (merge[:cut], merge[cut + 1 :]) if cut > 0 else (merge,)


def _sentencepiece(
    vocabulary: dict[str, int], kinds: Sequence[int], scores: Sequence[float], unknown: int
) -> tokenizers.Tokenizer:
    """SentencePiece's merging as BPE: the pair with the best-scoring union merges first.

    SentencePiece merges any two neighbours if their union is a token, so every split of every token
    is a merge, ranked by the token's score. Characters without a token fall back to bytes.
    """
    import tokenizers
    from tokenizers import normalizers

    # Llama's runs of spaces share one score: there the leftmost run grows first, so longest first.
    mergeable = [
        (-scores[id], -len(text), text)
        for text, id in vocabulary.items()
        if len(text) > 1 and kinds[id] != BYTE
    ]
    mergeable.sort()
    pairs = [
        (left, right)
        for _, _, text in mergeable
        for cut in range(len(text) - 1, 0, -1)
        if (left := text[:cut]) in vocabulary and (right := text[cut:]) in vocabulary
    ]
    model = tokenizers.Tokenizer(_bpe(vocabulary, pairs, unknown, byte_fallback=True))
    model.normalizer = normalizers.Replace(" ", SPACE)
    return model


def _bpe(vocabulary: dict[str, int], merges: list[Any], unknown: int, **options: bool) -> Any:
    from tokenizers import models

    name = missing_name(vocabulary)
    # An explicit unknown token: without one, what lies around a missing character would merge.
    vocabulary = vocabulary | {name: unknown}
    try:
        return models.BPE(vocabulary, merges, unk_token=name, **options)
    except Exception as error:  # the library raises nothing more particular
        reason = str(error).splitlines()[0]
        raise TokenizerError(f"its merges do not fit its vocabulary ({reason})") from error


def missing_name(vocabulary: Container[str]) -> str:
    """The unknown token's name, for characters without a token: no other token has it."""
    name = "<missing>"
    while name in vocabulary:
        name += ">"
    return name
