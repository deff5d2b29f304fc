"""Builds datastores: reads texts, tokenizes them, and sorts the positions in them."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from edgespec.drafting.stores.datastore import (
    DEPTH,
    SEPARATOR,
    Datastore,
    Facts,
    facts_bytes,
    file_name,
    indexes_dir,
    tokenizer_key,
)
from edgespec.errors import UserError
from edgespec.files import replacing
from edgespec.models import store
from edgespec.progress import Progress, silent

if TYPE_CHECKING:
    from edgespec.models.tokenizer import Tokenizer

MAX_FILE = 64 << 20
"""Bytes of the largest file that is indexed; larger files are data rather than text."""
_MAX_TOKENS = 1 << 27
"""Tokens of the largest index, about 500 MB of text: a gigabyte on disk, and 700 MB of memory while it is sorted."""
_HEAD = 8192
"""Bytes of a file's start; with a zero byte among them the file is not text."""
_CHUNK, _BATCH = 1 << 16, 1 << 20
"""Characters of a text that are tokenized in one piece, and of all pieces tokenized in parallel."""
_PART = 1 << 21
"""Positions sorted at once: 40 bytes of memory for each."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Tokens = npt.NDArray[np.uint32]


def roots_of(paths: Sequence[Path]) -> list[Path]:
    """``paths`` made absolute. Raises ``UserError`` if one is no file or folder."""
    roots = [Path(os.path.abspath(path)) for path in paths]
    for path, root in zip(paths, roots, strict=True):
        if not (root.is_dir() or root.is_file()):
            raise UserError(f"there is no file or folder {path}; check the path")
    return roots


def build(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    model: str,
    name: str | None = None,
    progress: Progress = silent,
) -> tuple[Datastore, Counter[str]]:
    """Index the text files under ``paths``; also returns how many files were skipped, by reason.

    ``name`` is by default that of the first path. A datastore of that name is replaced; without ``name`` only if it is
    of the same paths. The file is written under a temporary name and renamed when it is complete. A second process that
    builds the same one waits. Raises ``UserError`` if there is nothing to index, or no space for it.
    """
    roots = roots_of(paths)
    key = tokenizer_key(tokenizer)
    final = indexes_dir() / file_name(_checked(name) if name else _name_of(roots[0]), key)
    skipped = Counter[str]()
    try:
        indexes_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
        with store.locked(final.with_suffix(".lock"), f"index {final.name}", progress):
            if name is None:
                _refuse_other(final, roots)
            with (
                replacing(final, partial=final.with_suffix(".partial"), private=True) as partial,
                partial.open("rb+") as file,
            ):
                texts = _Texts(roots, skipped, progress)
                digest = hashlib.sha256()
                tokens = _write_tokens(file, texts, tokenizer, digest)
                positions, starts = _write_positions(file, tokens, digest, progress)
                if not positions:
                    raise UserError(_nothing(paths, skipped))
                facts = Facts(
                    name=final.name.split(".", 1)[1].removesuffix(".index"),
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
                )
                file.write(facts_bytes(facts))
            return Datastore(final), skipped
    except OSError as error:
        raise UserError(f"cannot write {final}: {store.reason(error)}") from error


def skipped_line(skipped: Counter[str]) -> str:
    """How many files were skipped, and why."""
    return "skipped " + ", ".join(f"{count:,} {why}" for why, count in skipped.most_common())


# -- names -------------------------------------------------------------------------------------


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
    """Raises ``UserError`` if ``final`` is a datastore of other paths."""
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
    """The different texts of the files under folders; counts them, and the files skipped."""

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
        """Files and their sizes, in order. Links are not followed, except for a root."""
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
    """The file's bytes. Raises ``ValueError`` with the reason if it is not a text."""
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
    """Pieces of texts, cut at ends of lines if possible, each with whether a text ends there."""
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
    """As ``tokenizer.encode``, in parallel where that only calls the library."""
    specials = [special.text for special in tokenizer.specials if not special.control]
    single = [
        tokenizer.space_prefix != "never" or any(special in text for special in specials)
        for text in texts
    ]
    together = [text for text, apart in zip(texts, single, strict=True) if not apart]
    encoded = iter(tokenizer.model.encode_batch_fast(together, add_special_tokens=False))
    return [
        tokenizer.encode(text) if apart else next(encoded).ids
        for text, apart in zip(texts, single, strict=True)
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

    Sorts by as many tokens as fit into 64 bits, then those that are still equal by the next ones (like prefix doubling,
    but without ranks of the whole text).
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
