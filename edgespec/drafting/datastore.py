"""Datastores: the user's own files as tokens, sorted so that what followed any words is found at once.

A file holds tokens, positions and starts (uint32), then facts in JSON, then ``_TRAILER``. The tokens are
those of all texts, ``SEPARATOR`` after each and ``DEPTH`` of them at the start. The positions are those of
tokens that follow another one of their text, sorted by the ``DEPTH`` tokens before them read backwards (a
suffix array of the reversed text): all places where a context's end occurs are neighbours. The starts are
where the positions after each token begin, so that a search begins among few, and touches few pages.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.models import store
from edgespec.models.tokenizer import NORMAL
from edgespec.progress import Progress, silent

if TYPE_CHECKING:
    from edgespec.models.tokenizer import Tokenizer

DEPTH = 16
"""Longer matches are not told apart."""
SEPARATOR = 0xFFFFFFFF
"""Stands after each text; no token."""
MAX_FILE = 64 << 20
"""Bytes; larger files are data rather than text."""
_MAX_TOKENS = 1 << 27
"""About 500 MB of text: a gigabyte on disk, and 700 MB of memory while it is sorted."""
_VERSION = 1
_MAGIC = b"edgespec index"
_TRAILER = struct.Struct("<32s I H 14s")
"""SHA-256 and length of the facts, version, magic."""
_MAX_FACTS = 1 << 20
_MAX_LISTED = 1000
_HEAD = 8192
"""A file with a zero byte among its first so many is not read further."""
_CHUNK, _BATCH = 1 << 16, 1 << 20
"""Characters of a text that are tokenized in one piece, and of pieces at once on all cores."""
_PART = 1 << 21
"""Positions sorted at once: 40 bytes of memory for each."""
_COMPARED = 31
"""Of so many tokens one tells which tokenizer it is."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Tokens = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Facts:
    """What a datastore says of itself."""

    name: str
    tokenizer: str
    """``tokenizer_key`` of whose tokens they are."""
    model: str
    """The name of a model that has this tokenizer."""
    paths: list[str]
    """What was indexed."""
    files: int
    text_bytes: int
    created: str
    """ISO 8601, UTC."""
    tokens: int
    positions: int
    starts: int
    sha256: str
    """Of all of these."""
    byteorder: str


class Datastore:
    """An index that is mapped into memory: opening it reads a page, a lookup some dozens."""

    def __init__(self, path: Path) -> None:
        """Raises ``OSError``, and ``ValueError`` for anything but a whole index."""
        self.path = path
        with path.open("rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self.facts = _read_facts(mapped)
        if path.name != _file_name(self.facts.name, self.facts.tokenizer):
            raise ValueError("it is of another name or tokenizer")
        self._data = mapped[: 4 * (self.facts.tokens + self.facts.positions + self.facts.starts)]
        words = self._data.cast("I")
        self.tokens = words[: self.facts.tokens]
        self.positions = words[self.facts.tokens : -self.facts.starts]
        self._starts = words[-self.facts.starts :]

    def find(self, context: Sequence[int]) -> tuple[int, int, int]:
        """Where the longest end of ``context`` that occurs does: ``positions[first:last]`` are what
        follows it, and how many tokens match, at most ``DEPTH``."""
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
        """Where the positions after ``token`` are; bounded, for a bit may have flipped."""
        if token + 1 >= len(self._starts):
            return 0, 0
        end = min(self._starts[token + 1], len(self.positions))
        return min(self._starts[token], end), end

    def check(self) -> None:
        """Read all of it. Raises ``ValueError`` where a bit is not as it was written."""
        if hashlib.sha256(self._data).hexdigest() != self.facts.sha256:
            raise ValueError("it is damaged")


def indexes_dir() -> Path:
    """The folder of datastores."""
    return store.data_dir("indexes")


def tokenizer_key(tokenizer: Tokenizer) -> str:
    """Which tokenizer it is, whatever file it came from; takes some milliseconds."""
    ids = range(0, tokenizer.vocab_size, _COMPARED)
    spelled = [tokenizer.token_text(id) for id in ids if tokenizer.kinds[id] == NORMAL]
    parts = [tokenizer.kinds.count(NORMAL), *spelled]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def kept(tokenizer: str = "*") -> list[Path]:
    """The files of all datastores, or of those with the tokens of one ``tokenizer_key``."""
    return sorted(indexes_dir().glob(f"{tokenizer}.*.index"))[:_MAX_LISTED]


def remove(name: str) -> int:
    """Delete the datastores called ``name``, of whatever tokenizer; returns how many there were.

    Raises ``UserError`` where there is none, or it cannot be deleted.
    """
    found = [path for path in kept() if path.name.split(".", 1)[1] == f"{name.lower()}.index"]
    if not found:
        raise UserError(f"there is no index {name!r}; `edgespec index --list` shows all")
    for path in found:
        try:
            with store.locked(path.with_suffix(".lock"), f"index {name}", silent):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {path}: {store.reason(error)}") from error
    return len(found)


def roots_of(paths: Sequence[Path]) -> list[Path]:
    """``paths`` as they are from anywhere. Raises ``UserError`` where one is no file or folder."""
    roots = [Path(os.path.abspath(path)) for path in paths]
    for path, root in zip(paths, roots, strict=True):
        if not (root.is_dir() or root.is_file()):
            raise UserError(f"there is no file or folder {path}")
    return roots


def build(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    model: str,
    name: str | None = None,
    progress: Progress = silent,
) -> tuple[Datastore, Counter[str]]:
    """Index the text files under ``paths``; also returns how many were skipped, by why.

    ``name`` is by default that of the first path; a datastore of that name is replaced, by default only
    if it is of the same paths. It is written beside its place and renamed when it is whole; another
    process that builds the same one is waited for. Raises ``UserError`` where there is nothing to index,
    or no room for it.
    """
    roots = roots_of(paths)
    key = tokenizer_key(tokenizer)
    final = indexes_dir() / _file_name(_checked(name) if name else _name_of(roots[0]), key)
    partial, skipped = final.with_suffix(".partial"), Counter[str]()
    try:
        indexes_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
        with store.locked(final.with_suffix(".lock"), f"index {final.name}", progress):
            if name is None:
                _refuse_other(final, roots)
            partial.unlink(missing_ok=True)  # of a process that was killed
            try:
                with open(partial, "xb+", opener=_private) as file:
                    texts = _Texts(roots, skipped, progress)
                    digest = hashlib.sha256()
                    tokens = _write_tokens(file, texts, tokenizer, digest)
                    positions, starts = _write_positions(file, tokens, digest, progress)
                    if not positions:
                        raise UserError(_nothing(paths, skipped))
                    name = final.name.split(".", 1)[1].removesuffix(".index")
                    _write_facts(
                        file,
                        Facts(
                            name=name,
                            tokenizer=key,
                            model=model,
                            paths=[str(root) for root in roots],
                            files=texts.files,
                            text_bytes=texts.bytes,
                            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                            tokens=tokens,
                            positions=positions,
                            starts=starts,
                            sha256=digest.hexdigest(),
                            byteorder=sys.byteorder,
                        ),
                    )
                os.replace(partial, final)
            finally:
                partial.unlink(missing_ok=True)
            return Datastore(final), skipped
    except OSError as error:
        raise UserError(f"cannot write {final}: {store.reason(error)}") from error


def skipped_line(skipped: Counter[str]) -> str:
    """How many files are not in an index, and why."""
    return "skipped " + ", ".join(f"{count:,} {why}" for why, count in skipped.most_common())


# -- names -------------------------------------------------------------------------------------


def _file_name(name: str, tokenizer: str) -> str:
    return f"{tokenizer}.{name}.index"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name.lower()):
        raise UserError(
            f"an index cannot be called {name!r}; take letters, digits, dots, dashes and underscores"
        )
    return name.lower()


def _name_of(path: Path) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", path.name.lower()).strip("-._")[:64]
    if not name:
        raise UserError(f"{path} has no name to call its index by; give one with --name")
    return name


def _refuse_other(final: Path, roots: Sequence[Path]) -> None:
    """A datastore that has by chance the same name is not replaced."""
    try:
        facts = Datastore(final).facts
    except (FileNotFoundError, ValueError):
        return
    if facts.paths != [str(root) for root in roots]:
        raise UserError(
            f"there is an index {facts.name} of {', '.join(facts.paths)}; "
            f"give this one another --name, or replace that with --name {facts.name}"
        )


# -- texts -------------------------------------------------------------------------------------


class _Texts:
    """The texts of files under folders, each once; counts them, and what is skipped."""

    def __init__(self, roots: Sequence[Path], skipped: Counter[str], progress: Progress) -> None:
        self.files = self.bytes = 0
        self._skipped, self._progress = skipped, progress
        self._found = [file for root in roots for file in self._walk(root)]

    def __iter__(self) -> Iterator[str]:
        seen: set[bytes] = set()
        done, total = 0, sum(size for _, size in self._found)
        for path, size in self._found:
            self._progress("reading and tokenizing", done, total)
            done += size
            try:
                data = _read(path)
            except OSError:
                self._skipped["unreadable"] += 1
                continue
            except ValueError as error:
                self._skipped[str(error)] += 1
                continue
            digest = hashlib.sha256(data).digest()
            if digest in seen:
                self._skipped["copies of others"] += 1
                continue
            seen.add(digest)
            try:
                text = data.decode("utf-8-sig")
            except UnicodeDecodeError:
                self._skipped["not UTF-8 text"] += 1
                continue
            self.files += 1
            self.bytes += len(data)
            yield text

    def _walk(self, root: Path) -> Iterator[tuple[Path, int]]:
        """Files and their sizes, in order. Links are not followed, but a root may be one."""
        if root.is_file():
            yield root, root.stat().st_size
            return
        folders = [root]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    inside = sorted(entries, key=lambda entry: entry.name)
            except OSError:
                self._skipped["unreadable"] += 1
                continue
            deeper = []
            for entry in inside:
                try:
                    if entry.name.startswith("."):
                        self._skipped["hidden"] += 1
                    elif entry.is_symlink():
                        self._skipped["links"] += 1
                    elif entry.is_dir(follow_symlinks=False):
                        deeper.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        yield Path(entry.path), entry.stat(follow_symlinks=False).st_size
                    else:
                        self._skipped["pipes or devices"] += 1
                except OSError:
                    self._skipped["unreadable"] += 1
            folders += reversed(deeper)


def _read(path: Path) -> bytes:
    """Raises ``ValueError`` that says what else than a text it is."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if b"\0" in head:
            raise ValueError("not UTF-8 text")
        data = head + file.read(MAX_FILE + 1 - len(head))
    if not data.strip():
        raise ValueError("empty")
    if len(data) > MAX_FILE:
        raise ValueError(f"over {MAX_FILE >> 20} MiB")
    return data


def _nothing(paths: Sequence[Path], skipped: Counter[str]) -> str:
    where = ", ".join(map(str, paths))
    why = f" ({skipped_line(skipped)})" if skipped else ""
    return f"there is no text in {where}{why}; give files or folders with UTF-8 text"


# -- building ----------------------------------------------------------------------------------


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write_tokens(
    file: BinaryIO, texts: _Texts, tokenizer: Tokenizer, digest: hashlib._Hash
) -> int:
    """Write the tokens of all texts; returns how many there are."""
    count = 0

    def write(tokens: Tokens) -> None:
        nonlocal count
        count += len(tokens)
        if count > _MAX_TOKENS:
            raise UserError(
                f"there is more text than the {_MAX_TOKENS >> 20} million tokens of an index; "
                "index fewer folders together"
            )
        data = tokens.tobytes()
        digest.update(data)
        file.write(data)

    write(np.full(DEPTH, SEPARATOR, np.uint32))
    for batch in _batches(texts):
        ids = _encode(tokenizer, [piece for piece, _ in batch])
        for found, (_, ends) in zip(ids, batch, strict=True):
            write(np.array([*found, SEPARATOR] if ends else found, np.uint32))
    return count


def _batches(texts: _Texts) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of texts, cut at ends of lines where there are any, and whether a text ends there."""
    batch: list[tuple[str, bool]] = []
    waiting = 0
    for text in texts:
        start = 0
        while start < len(text):
            end = start + _CHUNK
            if end < len(text):
                end = text.rfind("\n", start, end) + 1 or end
            batch.append((text[start:end], end >= len(text)))
            waiting += end - start
            start = end
            if waiting >= _BATCH:
                yield batch
                batch, waiting = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """As ``tokenizer.encode``, all at once where it does nothing but what the library does."""
    specials = [special.text for special in tokenizer.specials if not special.control]
    alone = [
        tokenizer.space_prefix != "never" or any(special in text for special in specials)
        for text in texts
    ]
    together = [text for text, own in zip(texts, alone, strict=True) if not own]
    encoded = iter(tokenizer.model.encode_batch_fast(together, add_special_tokens=False))
    return [
        tokenizer.encode(text) if own else next(encoded).ids
        for text, own in zip(texts, alone, strict=True)
    ]


def _write_positions(
    file: BinaryIO, count: int, digest: hashlib._Hash, progress: Progress
) -> tuple[int, int]:
    """Sort the positions of the ``count`` tokens in ``file``; write them, and their starts.

    Returns how many there are of each.
    """

    def write(numbers: npt.NDArray[np.int64]) -> None:
        data = numbers.astype(np.uint32).tobytes()
        digest.update(data)
        file.write(data)

    file.flush()
    file.seek(0)
    tokens: Tokens = np.fromfile(file, np.uint32, count)
    file.seek(0, os.SEEK_END)
    separator = int(tokens.max(initial=0, where=tokens != SEPARATOR)) + 1  # few bits to sort by
    np.minimum(tokens, separator, out=tokens)
    before, follows = tokens[:-1], tokens[1:] < separator
    starts = np.zeros(separator + 1, np.int64)  # of positions after each token
    for start in range(0, len(before), _PART):
        part = slice(start, start + _PART)
        starts[1:] += np.bincount(before[part][follows[part]], minlength=separator)[:separator]
    np.cumsum(starts, out=starts)
    total, first = int(starts[-1]), 0
    while first < separator:
        done = int(starts[first])
        progress("sorting", done, total)
        last = max(first + 1, int(np.searchsorted(starts, done + _PART, "right")) - 1)
        chosen = (before >= first) & (before < last) & follows
        positions = np.flatnonzero(chosen) + 1
        _sort(positions, tokens, separator.bit_length())
        write(positions)
        first = last
    write(starts)
    return total, len(starts)


def _sort(positions: npt.NDArray[np.int64], tokens: Tokens, bits: int) -> None:
    """Sort in place by the ``DEPTH`` tokens of ``bits`` bits before each, the nearest first.

    Sorts by as many tokens as fit into 64 bits, then those that are still equal by the next ones
    (as prefix doubling does, without ranks of all the text).
    """
    tied, places = positions, np.arange(len(positions))
    groups = np.zeros(len(positions), np.int64)  # which of them are equal so far
    depth = 0
    while depth < DEPTH and len(tied):
        fitting = (63 - int(groups[-1]).bit_length()) // bits
        key = groups
        for _ in range(min(fitting, DEPTH - depth)):
            depth += 1
            key = key << bits | tokens[tied - depth]
        order = np.argsort(key)
        key, tied = key[order], tied[order]
        positions[places] = tied
        differs = np.concatenate(([True], key[1:] != key[:-1], [True]))
        equal = ~(differs[:-1] & differs[1:])
        groups = np.cumsum(differs[:-1])[equal]
        tied, places = tied[equal], places[equal]


# -- the facts: the file may come from anywhere ------------------------------------------------


def _write_facts(file: BinaryIO, facts: Facts) -> None:
    text = json.dumps(asdict(facts)).encode()
    if len(text) > _MAX_FACTS:
        raise UserError("these are too many files to name; give the folders that they are in")
    file.write(text)
    file.write(_TRAILER.pack(hashlib.sha256(text).digest(), len(text), _VERSION, _MAGIC))
    file.flush()
    os.fsync(file.fileno())  # else a power cut could leave the name without the contents


def _read_facts(data: memoryview) -> Facts:
    """Raises ``ValueError`` where the file that is ``data`` is not whole."""
    trailer = bytes(data[-_TRAILER.size :])
    if len(trailer) < _TRAILER.size or not trailer.endswith(_MAGIC):
        raise ValueError("it is cut off, or no index")
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
        raise ValueError("its size is not what it says")
    return facts


def _parse(text: bytes) -> Facts:
    try:
        found: Any = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    types = {"int": int, "str": str, "list[str]": list}
    expected = {field.name: types[str(field.type)] for field in fields(Facts)}
    if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != expected:
        raise ValueError("it does not say what it is")
    if not all(isinstance(path, str) for path in found["paths"]):
        raise ValueError("it does not say what it is of")
    return Facts(**found)
