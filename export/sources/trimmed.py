"""Drafts with the head's rows of some tokens only (VocabTrim, FR-Spec); the input embedding stays whole."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError
from edgespec.export.quants import dequantize
from edgespec.export.source import Source
from edgespec.export.to_gguf import with_tokenizer, write_gguf
from edgespec.files import move_into_place
from edgespec.models.gguf import GGUFFile, TensorInfo
from edgespec.models.store import reason
from edgespec.models.trimmed import (
    EMBEDDING,
    HEAD,
    TOKEN_IDS,
    VOCAB_SIZE,
    checked_token_ids,
    kept_first,
    whole_embedding,
    whole_metadata,
)
from edgespec.progress import Progress, silent

_PART_ROWS = 8192


class TrimmedHead:
    """``source`` with the rows of ``token_ids`` alone in ``output.weight``, as they are stored.

    ``token_ids`` ascend. A tied head becomes one of its own. Raises ``UserError`` where the source
    has no such rows, or is trimmed already.
    """

    def __init__(self, source: Source, token_ids: Sequence[int] | npt.NDArray[np.int64]) -> None:
        self._head = _head_of(source)
        info = source.tensors[self._head]
        self._ids = checked_token_ids(token_ids, info.rows, source.path)
        self._source = source
        self.path = source.path
        self.metadata: Mapping[str, Any] = {**source.metadata, TOKEN_IDS: self._ids.tolist()}
        shape = (len(self._ids), *info.shape[1:])
        self.tensors: Mapping[str, TensorInfo] = {
            **source.tensors,
            HEAD: replace(info, name=HEAD, shape=shape),
        }

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        return (
            self._source.tensor(self._head)[self._ids]
            if name == HEAD
            else self._source.tensor(name)
        )


def head_rows(source: Source) -> FloatArray:
    """The rows of the head, float32 ``[vocab_size, hidden]``."""
    name = _head_of(source)
    info, raw = source.tensors[name], source.tensor(name)
    rows = np.empty(info.shape, np.float32)
    for start in range(0, info.rows, _PART_ROWS):
        part = slice(start, start + _PART_ROWS)
        rows[part] = dequantize(raw[part], info.type, info.shape[-1])
    return rows


def write_trimmed_gguf(source: Source, path: Path, progress: Progress = silent) -> None:
    """Write a source with a trimmed head (``TrimmedHead``) as a GGUF file that llama.cpp runs.

    llama.cpp wants embedding and head to have the vocabulary's size. So its vocabulary shrinks to
    the kept tokens, without names: token i of llama.cpp is ``token_ids[i]``, and a tied head stays
    tied. The embedding's other rows follow the last tensor, ``token_embd.weight``, where llama.cpp
    does not look: ``whole_embedding`` reads them, and ``LlamaCppRuntime`` feeds every token as its
    embedding. The tokenizer is kept under ``edgespec.tokenizer.…``. The file appears when it is
    whole. Raises ``UserError`` where it cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists; remove it or choose another name")
    shrunken = _Shrunken(with_tokenizer(source))
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            partial = Path(folder) / path.name
            write_gguf(shrunken, partial, progress)
            _append(source.tensor(EMBEDDING), shrunken.others, partial, progress)
            move_into_place(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def _append(
    rows: npt.NDArray[np.uint8], others: npt.NDArray[np.int64], path: Path, progress: Progress
) -> None:
    """Write the embedding's ``others`` behind those that ``path`` ends with."""
    tensors = GGUFFile(path).tensors
    info = tensors[EMBEDDING]
    assert info.offset == max(tensor.offset for tensor in tensors.values())
    with open(path, "r+b") as file:
        file.seek(info.offset + info.nbytes)
        for start in range(0, len(others), _PART_ROWS):
            file.write(rows[others[start : start + _PART_ROWS]].tobytes())
            progress("writing", min(start + _PART_ROWS, len(others)), len(others))
        file.truncate()


class TrimmedGGUF:
    """A file that ``write_trimmed_gguf`` wrote, as the source that it was made of."""

    def __init__(self, file: GGUFFile) -> None:
        self._file, self.path = file, file.path
        self._row_of, self._rows = whole_embedding(file)
        metadata = whole_metadata(file.metadata)
        metadata[f"{metadata['general.architecture']}.vocab_size"] = metadata.pop(VOCAB_SIZE)
        self.metadata: Mapping[str, Any] = metadata
        embedding = file.tensors[EMBEDDING]
        self._head = HEAD if HEAD in file.tensors else EMBEDDING
        self.tensors: Mapping[str, TensorInfo] = {
            **file.tensors,
            EMBEDDING: replace(embedding, shape=(len(self._rows), *embedding.shape[1:])),
            HEAD: replace(file.tensors[self._head], name=HEAD),
        }

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        if name == EMBEDDING:
            return self._rows[self._row_of]
        return self._file.tensor(self._head if name == HEAD else name)


class _Shrunken:
    """A source with a trimmed head as llama.cpp loads it."""

    def __init__(self, source: Source) -> None:
        self._source, self.path = source, source.path
        ids = source.metadata[TOKEN_IDS]
        embedding, head = source.tensors[EMBEDDING], source.tensors[HEAD]
        order = kept_first(np.array(ids), embedding.rows)
        self._kept, self.others = np.split(order, [len(ids)])
        tokenizer = {k: v for k, v in source.metadata.items() if k.startswith("tokenizer.")}
        self.metadata: Mapping[str, Any] = {
            **{k: v for k, v in source.metadata.items() if k not in tokenizer},
            **{f"edgespec.{k}": v for k, v in tokenizer.items()},
            "tokenizer.ggml.model": "none",
            f"{source.metadata['general.architecture']}.vocab_size": len(ids),
            VOCAB_SIZE: embedding.rows,
        }
        tensors = {k: v for k, v in source.tensors.items() if k != EMBEDDING}
        if head.type == embedding.type and np.array_equal(
            source.tensor(HEAD), source.tensor(EMBEDDING)[self._kept]
        ):
            del tensors[HEAD]
        shape = (len(ids), *embedding.shape[1:])
        tensors[EMBEDDING] = replace(embedding, shape=shape)  # the last one
        self.tensors: Mapping[str, TensorInfo] = tensors

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        raw = self._source.tensor(name)
        return raw[self._kept] if name == EMBEDDING else raw


def _head_of(source: Source) -> str:
    """The tensor that the head's rows are in. Raises ``UserError`` where there is none."""
    name = HEAD if HEAD in source.tensors else EMBEDDING
    if name not in source.tensors:
        raise UserError(f"{source.path} has no tensor {EMBEDDING}; is it a language model?")
    if TOKEN_IDS in source.metadata:
        raise UserError(f"{source.path} is trimmed already; trim the model that it was made of")
    return name
