"""The format of a GGUF file with a trimmed head: fewer rows in the head than the vocabulary has tokens.

``edgespec.export.sources.trimmed`` writes such files. Runtimes read them with ``whole_embedding``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile

TOKEN_IDS = "edgespec.token_ids"
"""Metadata of a source with a trimmed head: the token of each row, ascending."""
VOCAB_SIZE = "edgespec.vocab_size"
"""Metadata of a trimmed GGUF file: the tokens of the whole vocabulary, as many as embedding rows."""
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def whole_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A GGUF file's metadata with its ``tokenizer.…``, where a trimmed draft keeps that under
    ``edgespec.tokenizer.…``."""
    aside = any(key.startswith("edgespec.tokenizer.") for key in metadata)
    return {
        key.removeprefix("edgespec.") if key.startswith("edgespec.tokenizer.") else key: value
        for key, value in metadata.items()
        if not (aside and key.startswith("tokenizer."))
    }


def whole_embedding(file: GGUFFile) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint8]]:
    """The input embedding of a trimmed GGUF file.

    Returns the row of each token, ``[vocab_size]``, and the mapped rows, ``[vocab_size, bytes of a
    row]``. Raises ``UserError`` where the file has fewer rows than tokens.
    """
    info, size = file.tensors.get(EMBEDDING), file.metadata.get(VOCAB_SIZE)
    if info is None or not isinstance(size, int):
        raise UserError(f"{file.path} is trimmed, but not by edgespec; export it again")
    rest = os.path.getsize(file.path) - info.offset
    if not info.rows <= size <= rest // info.row_bytes:
        raise UserError(f"{file.path} ends before its embedding does; export it again")
    kept = checked_token_ids(file.metadata[TOKEN_IDS], size, file.path)
    if len(kept) != info.rows:
        raise UserError(f"{file.path} has {info.rows} rows for {len(kept)} tokens; export it again")
    rows = np.empty(size, np.intp)
    rows[kept_first(kept, size)] = np.arange(size)
    mapped = np.memmap(file.path, np.uint8, "r", info.offset, (size, info.row_bytes))
    return rows, mapped.view(np.ndarray)


def kept_first(kept: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """The tokens in the order of a trimmed file's embedding rows: those kept, then the others.

    Both parts ascend.
    """
    return np.concatenate([kept, np.setdiff1d(np.arange(size), kept, assume_unique=True)])


def checked_token_ids(ids: Any, size: int, path: Path) -> npt.NDArray[np.int64]:
    """``ids`` as an array, if they ascend and are tokens of a vocabulary of ``size``.

    Raises ``UserError`` that names ``path`` where they are not.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise UserError(f"{path}: the tokens to keep are not a list of ids")
    array = array.astype(np.int64)
    if (np.diff(array) <= 0).any() or array[0] < 0 or array[-1] >= size:
        raise UserError(f"{path}: the tokens to keep must ascend, from 0 to {size - 1}")
    return array
