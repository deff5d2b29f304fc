"""Datastores: the user's own files as tokens, sorted so that what followed any text is found at once.

A file has tokens, positions and starts (uint32), then facts in JSON, then ``_TRAILER``. The tokens are those of all
texts, with ``SEPARATOR`` after each and ``DEPTH`` of them at the start. The positions are of tokens that follow
another one of their text, sorted by the ``DEPTH`` tokens before them read backwards (a suffix array of the reversed
text). So all places where a context's end occurs are neighbours. The starts are where the positions after each token
begin, so that a search has a short range and touches few pages.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgespec.errors import UserError
from edgespec.models import store
from edgespec.models.vocabulary import NORMAL
from edgespec.progress import silent

if TYPE_CHECKING:
    from edgespec.models.tokenizer import Tokenizer

DEPTH = 16
"""Longer matches are not distinguished."""
SEPARATOR = 0xFFFFFFFF
"""Comes after each text; it is no token."""
_VERSION = 1
_MAGIC = b"edgespec index"
_TRAILER = struct.Struct("<32s I H 14s")
"""SHA-256 and length of the facts, version, magic."""
_MAX_FACTS = 1 << 20
_MAX_LISTED = 1000
_COMPARED = 31
"""One of so many tokens goes into ``tokenizer_key``."""


@dataclass(frozen=True)
class Facts:
    """The description in a datastore's file."""

    name: str
    tokenizer: str
    """``tokenizer_key`` of the tokenizer."""
    model: str
    """The name of a model with this tokenizer."""
    paths: list[str]
    """The files and folders that were indexed."""
    files: int
    text_bytes: int
    created: str
    """ISO 8601, UTC."""
    tokens: int
    positions: int
    starts: int
    sha256: str
    """Of tokens, positions and starts."""
    byteorder: str


class Datastore:
    """An index mapped into memory: opening it reads a page, a lookup some dozens of pages."""

    def __init__(self, path: Path) -> None:
        """Raises ``OSError``, and ``ValueError`` for anything but a complete index."""
        self.path = path
        with path.open("rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self.facts = _read_facts(mapped)
        if path.name != file_name(self.facts.name, self.facts.tokenizer):
            raise ValueError("it is of another name or tokenizer")
        self._data = mapped[: 4 * (self.facts.tokens + self.facts.positions + self.facts.starts)]
        words = self._data.cast("I")
        self.tokens = words[: self.facts.tokens]
        self.positions = words[self.facts.tokens : -self.facts.starts]
        self._starts = words[-self.facts.starts :]

    def find(self, context: Sequence[int]) -> tuple[int, int, int]:
        """``first``, ``last`` and ``match`` of the longest end of ``context`` that occurs.

        ``positions[first:last]`` are those of the tokens after it; ``match`` is its length, at most ``DEPTH``.
        """
        tokens, size = self.tokens, len(self.tokens)
        first, last, match = 0, len(self.positions), 0
        for back in range(1, min(DEPTH, len(context)) + 1):
            token = context[-back]
            if back == 1:
                start, end = self._after(token)
            else:

                def before(position: int, back: int = back) -> int:
                    # modulo: a position with a flipped bit may point anywhere
                    return tokens[(position - back) % size]

                start = bisect_left(self.positions, token, first, last, key=before)
                end = bisect_right(self.positions, token, start, last, key=before)
            if start == end:
                break
            first, last, match = start, end, back
        return first, last, match

    def _after(self, token: int) -> tuple[int, int]:
        """The range of positions after ``token``; bounded, because a bit may have flipped."""
        if token + 1 >= len(self._starts):
            return 0, 0
        end = min(self._starts[token + 1], len(self.positions))
        return min(self._starts[token], end), end

    def check(self) -> None:
        """Read all of it. Raises ``ValueError`` if a bit has changed."""
        if hashlib.sha256(self._data).hexdigest() != self.facts.sha256:
            raise ValueError("it is damaged")


def indexes_dir() -> Path:
    """The folder of datastores."""
    return store.data_dir("indexes")


def tokenizer_key(tokenizer: Tokenizer) -> str:
    """Identifies a tokenizer, whatever file it came from; takes some milliseconds."""
    ids = range(0, tokenizer.vocab_size, _COMPARED)
    spelled = [tokenizer.token_text(id) for id in ids if tokenizer.kinds[id] == NORMAL]
    parts = [tokenizer.kinds.count(NORMAL), *spelled]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def index_paths(tokenizer: str = "*") -> list[Path]:
    """The files of all datastores, or of those for one ``tokenizer_key``."""
    return sorted(indexes_dir().glob(f"{tokenizer}.*.index"))[:_MAX_LISTED]


def file_name(name: str, tokenizer: str) -> str:
    """The file name of the datastore ``name`` for a ``tokenizer_key``."""
    return f"{tokenizer}.{name}.index"


def remove(name: str) -> int:
    """Delete the datastores called ``name`` for all tokenizers; returns how many there were.

    Raises ``UserError`` if there is none, or if one cannot be deleted.
    """
    found = [
        path for path in index_paths() if path.name.split(".", 1)[1] == f"{name.lower()}.index"
    ]
    if not found:
        raise UserError(f"there is no index {name!r}; `edgespec index --list` shows all")
    for path in found:
        try:
            with store.locked(path.with_suffix(".lock"), f"index {name}", silent):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {path}: {store.reason(error)}") from error
    return len(found)


def facts_bytes(facts: Facts) -> bytes:
    """The end of a datastore's file. Raises ``UserError`` if there are too many paths."""
    text = json.dumps(asdict(facts)).encode()
    if len(text) > _MAX_FACTS:
        raise UserError("these are too many files to name; give the folders that they are in")
    return text + _TRAILER.pack(hashlib.sha256(text).digest(), len(text), _VERSION, _MAGIC)


def _read_facts(data: memoryview) -> Facts:
    """The facts in the file ``data``. Raises ``ValueError`` if it is not complete."""
    trailer = bytes(data[-_TRAILER.size :])
    if len(trailer) < _TRAILER.size or not trailer.endswith(_MAGIC):
        raise ValueError("it is incomplete, or no index")
    digest, length, version, _ = _TRAILER.unpack(trailer)
    if version != _VERSION:
        raise ValueError(f"it has version {version} of the format, not {_VERSION}")
    end = len(data) - _TRAILER.size
    text = bytes(data[max(end - min(length, _MAX_FACTS), 0) : end])
    if hashlib.sha256(text).digest() != digest:
        raise ValueError("it is damaged")
    facts = _parse(text)
    if facts.byteorder != sys.byteorder:
        raise ValueError("it is of a machine with another byte order")
    counts = (facts.tokens, facts.positions, facts.starts)
    if min(counts) < 1 or 4 * sum(counts) + len(text) != end:
        raise ValueError("its size does not match its facts")
    return facts


def _parse(text: bytes) -> Facts:
    try:
        found: Any = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    types = {"int": int, "str": str, "list[str]": list}
    expected = {field.name: types[str(field.type)] for field in fields(Facts)}
    if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != expected:
        raise ValueError("its facts are not valid")
    if not all(isinstance(path, str) for path in found["paths"]):
        raise ValueError("its paths are not valid")
    return Facts(**found)
