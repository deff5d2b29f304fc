"""Files that are replaced as a whole (a reader sees the old contents or the new, never a part), and sizes."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, partial: Path | None = None, private: bool = False) -> Iterator[Path]:
    """Yield the path of an empty file beside ``path``; it replaces ``path`` when the block succeeds.

    After an error the new file is deleted and ``path`` is unchanged. ``partial`` is the new file's
    name (default: a random one); give a fixed one under a lock, so that killed processes leave one
    file at most. ``private`` lets only the user read it. Raises ``OSError``.
    """
    partial = partial or path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # no link that somebody else put there is followed
    partial.unlink(missing_ok=True)
    try:
        os.close(os.open(partial, flags, 0o600 if private else 0o666))
        yield partial
        move_into_place(partial, path)
    finally:
        with contextlib.suppress(OSError):  # renamed, or never created
            partial.unlink()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in ``folder`` and below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def move_into_place(partial: Path, path: Path) -> None:
    """Rename ``partial``, in the same folder or on the same disk, to ``path``. Raises ``OSError``."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())  # else a power cut could leave the name without the contents
    os.replace(partial, path)
