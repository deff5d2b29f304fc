"""GGUF files whose head has only some tokens' rows: the format that the exporter writes and the runtimes read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile

TOKEN_IDS = "edgespec.token_ids"
"""Metadata of a model whose head was trimmed: the token that each of its rows is for, ascending."""
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
VOCAB_SIZE = "edgespec.vocab_size"
"""Metadata of a trimmed GGUF file: the tokens of the whole vocabulary, as many as embedding rows."""


def whole_embedding(file: GGUFFile) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint8]]:
    """Of a file that ``write_trimmed_gguf`` wrote: the row of each token, and the mapped rows.

    Raises ``UserError`` where the file does not have as many.
    """
    info, size = file.tensors.get(EMBEDDING), file.metadata.get(VOCAB_SIZE)
    if info is None or not isinstance(size, int):
        raise UserError(f"{file.path} is trimmed, but not by edgespec; export it again")
    rest = os.path.getsize(file.path) - info.offset
    if not info.rows <= size <= rest // info.row_bytes:
        raise UserError(f"{file.path} ends before its embedding does; export it again")
    kept = check_token_ids(file.metadata[TOKEN_IDS], size, file.path)
    if len(kept) != info.rows:
        raise UserError(f"{file.path} has {info.rows} rows for {len(kept)} tokens; export it again")
    rows = np.empty(size, np.intp)
    rows[kept_first(kept, size)] = np.arange(size)
    mapped = np.memmap(file.path, np.uint8, "r", info.offset, (size, info.row_bytes))
    return rows, mapped.view(np.ndarray)


def kept_first(kept: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Every token: those kept, ascending, then the others, ascending."""
    return np.concatenate([kept, np.setdiff1d(np.arange(size), kept, assume_unique=True)])


def check_token_ids(ids: Any, size: int, path: Path) -> npt.NDArray[np.int64]:
    """``ids`` as an array, if they ascend and are tokens of a vocabulary of ``size``."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise UserError(f"{path}: the tokens to keep are not a list of ids")
    array = array.astype(np.int64)
    if (np.diff(array) <= 0).any() or array[0] < 0 or array[-1] >= size:
        raise UserError(f"{path}: the tokens to keep must ascend, from 0 to {size - 1}")
    return array
