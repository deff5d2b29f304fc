"""Text to token ids and back, from what a model file says: GGUF metadata or a ``tokenizer.json``.

The reference is llama.cpp's own tokenizer (``src/llama-vocab.cpp``): ids are equal to those of
``llama_tokenize(add_special=False, parse_special=special)``. The merging is done by Hugging Face's
``tokenizers``; special tokens are found here, because the two libraries find them differently.

Text that came from bytes that are not UTF-8 may hold lone surrogates (Python's
``surrogateescape``); each is read as one U+FFFD, as llama.cpp reads each invalid byte.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgespec.errors import UserError
from edgespec.models.pretokenizers import PRE_TOKENIZERS

if TYPE_CHECKING:
    import tokenizers

    from edgespec.models.gguf import GGUFFile

# tokenizer.ggml.token_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

# Tokens that end an answer whatever the file says of them, as in llama.cpp.
_END_NAMES = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> "
    "<|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> "
    "<eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[".split()
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

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = "\u2581"  # SentencePiece's visible space
_PREFIX_LENGTH = 4  # special tokens are looked up by this many first characters


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    pairs = [(chr(byte), byte) for byte in printable]
    pairs += [(chr(256 + i), byte) for i, byte in enumerate(hidden)]
    return {char: bytes([byte]) for char, byte in pairs}


_BYTES = _byte_alphabet()


def _utf8(text: str) -> bytes:
    """The bytes of a vocabulary's string, those that were not UTF-8 as they were."""
    return text.encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class SpecialToken:
    """A token found in the text before anything else. ``control``: never in a user's text."""

    text: str
    id: int
    control: bool
    strip_left: bool = False
    strip_right: bool = False


class Detokenizer:
    """Turns a stream of ids into text, each character once and only when all its bytes are there.

    Bytes that can never become a character come out as U+FFFD, as Python's incremental decoder
    has it. All that ``push`` returned plus ``flush`` is what ``Tokenizer.decode`` gives.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool, continues: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids if skip_special else frozenset()
        self._strip_space = tokenizer.space_prefix != "never" and not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Take more ids; return the text that is now certain (possibly none)."""
        data = b"".join(self._tokenizer.token_bytes(id) for id in ids if id not in self._skip)
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """End the stream; return what was held back."""
        return self._decoder.decode(b"", final=True)


class Tokenizer:
    """A model's vocabulary: make one with ``from_gguf`` or ``from_file``.

    ``stop_tokens`` are the ids that end an answer; ``special_ids`` those that have no text of
    their own; ``add_bos`` says whether the model expects ``bos`` before every text.
    """

    def __init__(
        self,
        model: tokenizers.Tokenizer,
        tokens: Sequence[str],
        kinds: Sequence[int],
        specials: Iterable[SpecialToken],
        *,
        byte_level: bool,
        space_prefix: Literal["never", "first", "always"],
        bos: int | None,
        eos: int | None,
        add_bos: bool,
        stop_tokens: Iterable[int],
        chat_template: str | None,
    ) -> None:
        self._model = model
        self._tokens = tokens
        self._kinds = kinds
        self._byte_level = byte_level
        # Longest first, as llama.cpp looks for them (in bytes; ties by id).
        self.specials = sorted(specials, key=lambda s: (-len(_utf8(s.text)), s.id))
        self._ranks: dict[str, list[int]] = {}  # into specials, by the first characters
        for rank, special in enumerate(self.specials):
            self._ranks.setdefault(special.text[:_PREFIX_LENGTH], []).append(rank)
        self.special_ids = frozenset(
            [s.id for s in self.specials if s.control]
            + [id for id, kind in enumerate(kinds) if kind in (UNKNOWN, CONTROL)]
        )
        self.space_prefix = space_prefix
        self.bos = bos
        self.eos = eos
        self.add_bos = add_bos and bos is not None
        self.stop_tokens = frozenset(stop_tokens)
        self.chat_template = chat_template

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def token_text(self, id: int) -> str:
        """The token as the vocabulary spells it."""
        return self._tokens[id]

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; a special token's are its name."""
        text, kind = self._tokens[id], self._kinds[id]
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) or id in self.special_ids:
            return _utf8(text)
        if kind == BYTE:
            return bytes([int(text[3:5], 16)])
        if kind != NORMAL:
            return b""
        if not self._byte_level:
            return _utf8(text.replace(_SPACE, " "))
        return b"".join(_BYTES.get(c) or _utf8(c) for c in text)

    def encode(
        self, text: str, *, special: bool = False, stand_ins: Mapping[int, str] | None = None
    ) -> list[int]:
        """The ids of ``text``, without ``bos``.

        ``special=True`` parses control tokens: only for text that no user wrote. ``stand_ins``
        (a ``str.translate`` table) gives characters that stand for text never to be parsed; it is
        put back once the special tokens around it have been found.
        """
        ids: list[int] = []
        prefix = self.space_prefix != "never"
        for piece in self._cut_specials(_LONE_SURROGATE.sub("\ufffd", text), special):
            if isinstance(piece, int):
                ids.append(piece)
                prefix = self.space_prefix == "always"
                continue
            if stand_ins:
                piece = piece.translate(stand_ins)
            found = self._model.encode(" " * prefix + piece, add_special_tokens=False).ids
            ids += [id for id in found if id < len(self._tokens)]
            prefix = False
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ``ids``; a leading space that the tokenizer itself adds is taken off."""
        stream = self.stream(skip_special=skip_special)
        return stream.push(ids) + stream.flush()

    def stream(self, *, skip_special: bool = True, continues: bool = False) -> Detokenizer:
        """A detokenizer for ids as they come.

        ``continues`` says that the text goes on from other text, so that a leading space belongs.
        """
        return Detokenizer(self, skip_special=skip_special, continues=continues)

    def _cut_specials(self, text: str, control: bool) -> list[str | int]:
        """Cut ``text`` at its special tokens: the longest token first, each from left to right."""
        ranks = [rank for start, ranks in self._ranks.items() if start in text for rank in ranks]
        pieces: list[str | int] = [text] if text else []
        for special in map(self.specials.__getitem__, sorted(ranks)):
            if (control or not special.control) and special.text in text:
                pieces = [
                    part
                    for piece in pieces
                    for part in (_cut(piece, special) if isinstance(piece, str) else [piece])
                ]
        return pieces

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Tokenizer:
        """The tokenizer that a GGUF file carries.

        Raises ``UserError`` where it carries none, or one of a kind that is not known here.
        """
        metadata = file.metadata
        kind = metadata.get("tokenizer.ggml.model")
        if kind not in ("gpt2", "llama"):
            raise UserError(
                f"{file.path} has a tokenizer of kind {kind!r}, which edgespec cannot read "
                "(it reads gpt2 and llama); choose another model"
            )
        try:
            return _from_metadata(cls, metadata, byte_level=kind == "gpt2")
        except _Unusable as error:
            raise UserError(f"the tokenizer in {file.path} is not usable: {error}") from error

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a folder with ``tokenizer.json`` and its configuration files.

        Raises ``UserError`` where a file is missing or malformed.
        """
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        try:
            return _from_folder(cls, folder)
        except _Unusable as error:
            raise UserError(f"the tokenizer in {folder} is not usable: {error}") from error


class _Unusable(Exception):
    """What is wrong with a tokenizer's description."""


def _cut(text: str, special: SpecialToken) -> list[str | int]:
    """``text`` split at a special token, its id between the parts."""
    first, *rest = text.split(special.text)
    parts = [first]
    for part in rest:
        # isspace() of C's locale: ASCII only.
        if special.strip_left:
            parts[-1] = parts[-1].rstrip(" \t\n\v\f\r")
        parts.append(part.lstrip(" \t\n\v\f\r") if special.strip_right else part)
    pieces: list[str | int] = []
    for part in parts:
        pieces += [part, special.id] if part else [special.id]
    return pieces[:-1]


def _list(metadata: Mapping[str, Any], key: str, item: type | tuple[type, ...]) -> list[Any]:
    """A list of the metadata, its first and last items checked (arrays have one type)."""
    value = metadata.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(value, list) or not all(isinstance(i, item) for i in value[:1] + value[-1:]):
        raise _Unusable(f"tokenizer.ggml.{key} is not a list as it should be")
    return value


def _from_metadata(
    cls: type[Tokenizer], metadata: Mapping[str, Any], *, byte_level: bool
) -> Tokenizer:
    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    def token_id(role: str, default: int | None = None) -> int | None:
        id = get(f"{role}_token_id", default)
        return id if isinstance(id, int) and 0 <= id < len(tokens) else None

    tokens = _list(metadata, "tokens", str)
    kinds = _list(metadata, "token_type", int) or [NORMAL] * len(tokens)
    scores = _list(metadata, "scores", (int, float))
    if not tokens or len(kinds) < len(tokens):
        raise _Unusable(f"it has {len(tokens)} tokens and {len(kinds)} token types")
    # Control tokens are left out of the model, so no merge of a user's text can make one.
    vocabulary = {
        text: id
        for id, (text, kind) in enumerate(zip(tokens, kinds, strict=False))
        if text and kind not in (CONTROL, UNKNOWN)
    }
    if _LONE_SURROGATE.search("".join(tokens)):  # tokens that are not UTF-8: no text has them
        vocabulary = {t: id for t, id in vocabulary.items() if not _LONE_SURROGATE.search(t)}
    if byte_level:
        family = get("pre", "default")
        if family not in PRE_TOKENIZERS:
            raise _Unusable(
                f"it cuts words in a way named {family!r}, which edgespec does not know; "
                "choose another model"
            )
        model = _byte_level_bpe(vocabulary, _list(metadata, "merges", str), len(tokens), family)
        add_bos = PRE_TOKENIZERS[family].add_bos
    else:
        if len(scores) < len(tokens):
            raise _Unusable(f"it has {len(tokens)} tokens and {len(scores)} scores")
        model = _sentencepiece(vocabulary, kinds, scores, len(tokens))
        add_bos = True
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    roles = ["eos", "eot", "eom", *(role for role, _, _ in _CODE_ROLES)]
    stop_tokens, named = _stop_tokens(ids, {role: token_id(role) for role in roles})
    controls = {id for id, kind in enumerate(kinds) if kind in (CONTROL, UNKNOWN)} | named
    users = {id for id, kind in enumerate(kinds) if kind == USER_DEFINED} - controls
    # Phi-3's special tokens swallow the white space after them; the file does not say so.
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
        space_prefix="always" if get("add_space_prefix", not byte_level) else "never",
        bos=token_id("bos", None if byte_level else 1),
        eos=token_id("eos", None if byte_level else 2),
        add_bos=bool(get("add_bos_token", add_bos)),
        stop_tokens=stop_tokens,
        chat_template=template if isinstance(template, str) else None,
    )


def _stop_tokens(
    ids: Mapping[str, int], declared: Mapping[str, int | None]
) -> tuple[set[int], set[int]]:
    """The ids that end an answer, and the ids that are control tokens for their names alone.

    llama.cpp's rules (``llama_vocab::impl::load``). Where a vocabulary has several names of one
    role it takes whichever its hash table has first; here it is the first in the table above.
    """
    named = {ids[name] for name in _END_NAMES if name in ids}
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


def _byte_level_bpe(
    vocabulary: dict[str, int], merges: list[str], unknown: int, family: str
) -> tokenizers.Tokenizer:
    """GPT-2's BPE over the stand-ins of bytes. Bytes without a token come out as ``unknown``."""
    import tokenizers
    from tokenizers import pre_tokenizers

    pre = PRE_TOKENIZERS[family]
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    model = tokenizers.Tokenizer(_bpe(vocabulary, pairs, unknown, ignore_merges=pre.ignore_merges))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in pre.patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return model


def _sentencepiece(
    vocabulary: dict[str, int], kinds: Sequence[int], scores: Sequence[float], unknown: int
) -> tokenizers.Tokenizer:
    """SentencePiece's merging as BPE: the pair whose union scores best merges first.

    SentencePiece merges any two neighbours whose union is a token, so every split of every token
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
    model.normalizer = normalizers.Replace(" ", _SPACE)
    return model


def _bpe(vocabulary: dict[str, int], merges: list[Any], unknown: int, **options: bool) -> Any:
    from tokenizers import models

    name = "<missing>"
    while name in vocabulary:
        name += ">"
    # An explicit unknown token: without one, what lies around a missing character would merge.
    vocabulary = vocabulary | {name: unknown}
    try:
        return models.BPE(vocabulary, merges, unk_token=name, **options)
    except Exception as error:  # the library raises nothing more particular
        raise _Unusable(f"its merges do not fit its vocabulary ({error})") from error


def _from_folder(cls: type[Tokenizer], folder: Path) -> Tokenizer:
    import tokenizers

    description = _read_json(folder / "tokenizer.json")
    config = _read_json(folder / "tokenizer_config.json", {})
    generation = _read_json(folder / "generation_config.json", {})
    try:
        original = tokenizers.Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library raises nothing more particular
        raise _Unusable(f"tokenizer.json does not load ({error})") from error
    added = description.get("added_tokens") or []
    space_prefix = _take_space_prefix(description)
    model = tokenizers.Tokenizer.from_str(
        json.dumps(description | {"added_tokens": [], "post_processor": None})
    )
    ids = original.get_vocab(with_added_tokens=True)
    tokens = [""] * (max(ids.values(), default=-1) + 1)
    for text, id in ids.items():
        tokens[id] = text
    byte_level = '"ByteLevel"' in json.dumps(description.get("decoder"))
    kinds = [NORMAL if text else UNUSED for text in tokens]
    if not byte_level:
        for byte in range(256):
            if (id := ids.get(f"<0x{byte:02X}>")) is not None:
                kinds[id] = BYTE
    for token in added:
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    named = {role: ids.get(_token_name(config.get(f"{role}_token"))) for role in ("bos", "eos")}
    ends = generation.get("eos_token_id", [])
    stop_tokens, _ = _stop_tokens(ids, {"eos": named["eos"]})
    starts = original.encode("").ids  # what the post-processor puts around a text
    return cls(
        model,
        tokens,
        kinds,
        [
            SpecialToken(t["content"], t["id"], t["special"], t["lstrip"], t["rstrip"])
            for t in added
            if t["content"]
        ],
        byte_level=byte_level,
        space_prefix=space_prefix,
        bos=named["bos"],
        eos=named["eos"],
        add_bos=bool(config.get("add_bos_token", starts[:1] == [named["bos"]])),
        stop_tokens=stop_tokens | set(ends if isinstance(ends, list) else [ends]),
        chat_template=_folder_template(folder, config),
    )


def _read_json(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if default is not None and not path.exists():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _Unusable(f"cannot read {path.name} ({error})") from error
    if not isinstance(value, dict):
        raise _Unusable(f"{path.name} holds no JSON object")
    return value


def _token_name(value: Any) -> str:
    """A token in tokenizer_config.json is its text, or an object that has the text."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _take_space_prefix(description: dict[str, Any]) -> Literal["never", "first", "always"]:
    """Find out where the tokenizer puts a space before a text, and stop it: ``encode`` does it."""
    normalizer = description.get("normalizer") or {}
    parts = normalizer.get("normalizers", [normalizer])
    kept = [part for part in parts if part.get("type") != "Prepend"]
    if len(kept) < len(parts):
        description["normalizer"] = {"type": "Sequence", "normalizers": kept}
        return "always"
    cutter = description.get("pre_tokenizer") or {}
    for part in cutter.get("pretokenizers", [cutter]):
        if part.get("type") == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            scheme: Literal["first", "always"] = (
                "first" if part.get("prepend_scheme") == "first" else "always"
            )
            part["prepend_scheme"] = "never"
            return scheme
    return "never"


def _folder_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: a file of its own, or in the configuration, alone or the one "default"."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None
