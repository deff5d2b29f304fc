"""A model's vocabulary: text to token ids and back.

The reference is llama.cpp's own tokenizer (``src/llama-vocab.cpp``): ids are equal to those of
``llama_tokenize(add_special=False, parse_special=special)``. The merging is done by Hugging Face's
``tokenizers``; special tokens are found here, because the two libraries find them differently.

Text that came from bytes that are not UTF-8 may hold lone surrogates (Python's
``surrogateescape``); each is read as one U+FFFD, as llama.cpp reads each invalid byte.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from edgespec.models.marked_text import TEMPLATE, MarkedText, marked, marked_like, marks_of, plain
from edgespec.models.reasoning import find_marks

if TYPE_CHECKING:
    import tokenizers

# tokenizer.ggml.token_type
_KINDS = range(1, 7)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = _KINDS

# Where a space is put before a text: nowhere, before its start, or also after each special token;
# "bare": only where there is none yet.
SpacePrefix = Literal["never", "always", "bare first", "bare always"]

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
SPACE = "\u2581"  # SentencePiece's visible space
ASCII_SPACES = " \t\n\v\f\r"
"""``isspace()`` of C's locale, as llama.cpp strips them."""
UNICODE_SPACES = (
    ASCII_SPACES
    + "\u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
"""Unicode's White_Space, as ``tokenizers`` strips them."""
_WORD = frozenset(["Lu", "Ll", "Lt", "Lm", "Lo", "Nl", "Nd", "Mn", "Mc", "Me", "Pc"])
_PREFIX_LENGTH = 4  # special tokens are looked up by this many first characters


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    pairs = [(chr(byte), byte) for byte in printable]
    pairs += [(chr(256 + i), byte) for i, byte in enumerate(hidden)]
    return {char: bytes([byte]) for char, byte in pairs}


_BYTES = _byte_alphabet()


class TokenizerError(Exception):
    """A tokenizer's description is not usable; the message is the reason."""


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
    single_word: bool = False
    """Whether it is only found between characters that are of no word."""
    spaces: str = ASCII_SPACES
    """What is stripped beside it."""


class Detokenizer:
    """Turns a stream of ids into text, each character once and only when all its bytes are there.

    Bytes that can never become a character come out as U+FFFD, as from Python's incremental
    decoder. All that ``push`` returned plus ``flush`` is what ``Vocabulary.decode`` gives.
    """

    def __init__(self, vocabulary: Vocabulary, *, skip_special: bool, continues: bool) -> None:
        self._vocabulary = vocabulary
        self._skip = vocabulary.silent_ids if skip_special else frozenset()
        self._strip_space = vocabulary.space_prefix != "never" and not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """Take more ids; return the text that is now certain (possibly none)."""
        data = b"".join(self._vocabulary.token_bytes(id) for id in ids if id not in self._skip)
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """End the stream; return what was held back."""
        return self._decoder.decode(b"", final=True)


class Vocabulary:
    """A model's tokens, how text is split into them, and which of them are special.

    ``stop_tokens`` are the ids that end an answer; ``special_ids`` those that have no text of
    their own; ``add_bos`` is whether the model expects ``bos`` before every text; ``reasoning`` are
    the marks around the model's reasoning, if it has any.
    """

    def __init__(
        self,
        model: tokenizers.Tokenizer,
        tokens: Sequence[str],
        kinds: Sequence[int],
        specials: Iterable[SpecialToken],
        *,
        byte_level: bool,
        space_prefix: SpacePrefix,
        bos: int | None,
        eos: int | None,
        add_bos: bool,
        stop_tokens: Iterable[int],
        chat_template: str | None,
    ) -> None:
        self.model = model
        self.vocab_size = len(tokens)
        # The library has nearly all names, so a list of them would only cost memory (Qwen: 13 MB).
        name = model.id_to_token
        self._other_names = {id: text for id, text in enumerate(tokens) if name(id) != text}
        self.kinds = bytes(kind if kind in _KINDS else UNUSED for kind in kinds)
        self.byte_level = byte_level
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
        self._bare_prefix = space_prefix.startswith("bare")
        self.bos = bos
        self.eos = eos
        self.add_bos = add_bos and bos is not None
        self.stop_tokens = frozenset(stop_tokens)
        self.chat_template = chat_template
        names = {special.text: special for special in self.specials}
        controls = {text for text, special in names.items() if special.control}
        self.reasoning = find_marks(chat_template or "", names, controls)
        marks = (self.reasoning.open, self.reasoning.close) if self.reasoning else ()
        self.silent_ids = self.special_ids - {
            names[text].id for text in controls if any(text in mark for mark in marks)
        }
        """The special ids that a text leaves out: all but those in the marks of the reasoning."""

    def token_text(self, id: int) -> str:
        """The token as the vocabulary spells it."""
        text = self._other_names.get(id)
        return str(self.model.id_to_token(id)) if text is None else text

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; a special token's are its name.

        An id beyond the vocabulary, as heads with padded rows have them, stands for nothing.
        """
        if id >= self.vocab_size:
            return b""
        text, kind = self.token_text(id), self.kinds[id]
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) or id in self.special_ids:
            return _utf8(text)
        if kind == BYTE:
            return bytes([int(text[3:5], 16)])
        if kind != NORMAL:
            return b""
        if not self.byte_level:
            return _utf8(text.replace(SPACE, " "))
        return b"".join(_BYTES.get(c) or _utf8(c) for c in text)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of ``text``, without ``bos``.

        ``special=True`` parses control tokens, except in characters of ``MarkedText`` that came from
        a message: only for text that no user wrote, or that is marked.
        """
        ids: list[int] = []
        prefix = self.space_prefix != "never"
        clean = LONE_SURROGATE.sub("\ufffd", text)
        if isinstance(text, MarkedText):
            clean = marked_like(clean, text)
        for piece in self._cut_specials(clean, special):
            if isinstance(piece, int):
                ids.append(piece)
                prefix = self.space_prefix.endswith("always")
                continue
            piece = plain(piece)
            if prefix and not (self._bare_prefix and piece.startswith((" ", SPACE))):
                piece = " " + piece
            found = self.model.encode(piece, add_special_tokens=False).ids
            ids += [id for id in found if id < self.vocab_size]
            prefix = False
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ``ids``; a leading space that the tokenizer itself adds is taken off."""
        stream = self.stream(skip_special=skip_special)
        return stream.push(ids) + stream.flush()

    def stream(self, *, skip_special: bool = True, continues: bool = False) -> Detokenizer:
        """A detokenizer for ids as they come.

        ``continues``: the text continues other text, so a leading space is kept.
        """
        return Detokenizer(self, skip_special=skip_special, continues=continues)

    def _specials_in(self, text: str, control: bool) -> Iterator[SpecialToken]:
        """The special tokens in ``text``, longest first; without ``control`` only the others."""
        ranks = [rank for start, ranks in self._ranks.items() if start in text for rank in ranks]
        for special in map(self.specials.__getitem__, sorted(ranks)):
            if (control or not special.control) and special.text in text:
                yield special

    def _cut_specials(self, text: str, control: bool) -> list[str | int]:
        """Cut ``text`` at its special tokens: the longest token first, each from left to right."""
        pieces: list[str | int] = [text] if text else []
        for special in self._specials_in(text, control):
            pieces = [
                part
                for piece in pieces
                for part in (_cut(piece, special) if isinstance(piece, str) else [piece])
            ]
        return pieces


def _cut(text: str, special: SpecialToken) -> list[str | int]:
    """``text`` split at a special token, its id between the parts."""
    first, *rest = _split(text, special)
    # As if a user wrote it: a shorter control token in it must not be found.
    name = marked(special.text, "\1") if isinstance(text, MarkedText) else special.text
    parts = [first]
    for part in rest:
        if special.single_word and (_is_of_word(parts[-1][-1:]) or _is_of_word(part[:1])):
            parts[-1] += name + part
            continue
        if special.strip_left:
            parts[-1] = parts[-1].rstrip(special.spaces)
        parts.append(part.lstrip(special.spaces) if special.strip_right else part)
    pieces: list[str | int] = []
    for part in parts:
        pieces += [part, special.id] if part else [special.id]
    return pieces[:-1]


def _split(text: str, special: SpecialToken) -> list[str]:
    """``text`` split at a special token; at a control token only where the template wrote it."""
    name = special.text
    if not (special.control and isinstance(text, MarkedText)):
        return list(text.split(name))
    parts: list[str] = []
    marks = marks_of(text)
    start = at = 0
    while (at := text.find(name, at)) >= 0:
        end = at + len(name)
        if marks[at:end].strip(TEMPLATE):
            at += 1
            continue
        parts.append(text[start:at])
        start = at = end
    return [*parts, text[start:]]


def _is_of_word(char: str) -> bool:
    r"""Whether ``\w`` of Unicode's TR18 matches a character, as in the library ``tokenizers``."""
    return bool(char) and (
        unicodedata.category(char) in _WORD
        or char in "\u200c\u200d"
        or "\u24b6" <= char <= "\u24e9"
    )


VocabularyT = TypeVar("VocabularyT", bound=Vocabulary)
