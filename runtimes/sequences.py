"""What llama.cpp and its forks have in common: a cache of sequences, and passes over batches.

A chain is one sequence, number 0. In a tree, every leaf is a sequence and a row belongs to the
sequences of the leaves below it, which is how attention in llama.cpp separates branches.
"""

from __future__ import annotations

import ctypes
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgespec.core.runtime import FloatArray, Logits, ModelInfo, logit_rows
from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.runtimes.llama_refusals import damage, why_not
from edgespec.runtimes.rows import RowTracker

MAX_LEAVES = 64
"""Sequences of a context, the most that older llama.cpp versions allow."""
MAX_PASS = 512
"""Rows that are computed at once; a longer pass is split by the library itself."""
CACHE_TYPES = {"float16": 1, "q8_0": 8}
"""Of keys and values, as ggml numbers them (``ggml_type``)."""
_ERROR, _CONTINUED = 4, 5
"""Levels of ggml's log (``ggml_log_level``)."""


class ErrorLog:
    """The errors that a library's log callback receives; nothing of it reaches the terminal."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=20)

    def __call__(self, level: int, text: bytes, _: Any) -> None:
        """``ggml_log_callback``."""
        if level == _ERROR or (level == _CONTINUED and self._errors):
            self._errors.append(" ".join(text.decode("utf-8", "replace").split()))

    def clear(self) -> None:
        """Forget earlier errors."""
        self._errors.clear()

    @property
    def cause(self) -> str:
        """The first error since, without the names of the library's functions."""
        if not self._errors:
            return "it does not say why"
        return self._errors[0].partition(": ")[2] or self._errors[0]


class SequenceRuntime(RowTracker, ABC):
    """A ``Runtime`` over a library with llama.cpp's functions, which a subclass calls."""

    _close: weakref.finalize[..., Any]
    """Frees the model; set by the subclass."""

    def __init__(
        self, info: ModelInfo, max_leaves: int, batch: type[ctypes.Structure], cells: int
    ) -> None:
        """``batch``: the library's ``llama_batch``; ``cells``: of the cache, as many as the context or more."""
        super().__init__()
        self.info, self._max_leaves = info, max_leaves
        # The C batch points into these arrays, so a pass only fills them.
        self._tokens = np.zeros(cells, np.int32)
        self._positions = np.zeros(cells, np.int32)
        self._sequence_counts = np.ones(cells, np.int32)
        self._sequences = np.zeros((cells, max_leaves), np.int32)
        self._wanted = np.zeros(cells, np.int8)
        row_bytes = self._sequences.strides[0]
        self._pointers = self._sequences.ctypes.data + row_bytes * np.arange(cells, dtype=np.uintp)
        self._batch: Any = batch()
        self._batch.token = pointer(self._tokens, ctypes.c_int32)
        self._batch.pos = pointer(self._positions, ctypes.c_int32)
        self._batch.n_seq_id = pointer(self._sequence_counts, ctypes.c_int32)
        self._batch.seq_id = pointer(self._pointers, ctypes.POINTER(ctypes.c_int32))
        self._batch.logits = pointer(self._wanted, ctypes.c_int8)
        self._arange = np.arange(cells, dtype=np.int32)
        self._cached = 0  # rows of the library's cache; those after ``length`` are uncommitted
        self._leaf_of_row: list[int] | None = None  # the first leaf below each row of a tree
        self._views: dict[tuple[int, int, int], FloatArray] = {}
        self._has_features = False

    @abstractmethod
    def _decode(self) -> None:
        """Run the batch. Raises ``RuntimeError`` where the library fails."""

    @abstractmethod
    def _remove(self, sequence: int, start: int) -> None:
        """Forget ``sequence`` from position ``start`` on."""

    @abstractmethod
    def _copy(self, source: int, target: int, start: int, end: int) -> None:
        """Let positions of ``source`` be ``target``'s, too."""

    @abstractmethod
    def _buffer(self) -> Any:
        """A pointer to the logits of the last batch."""

    def _set_features(self, wanted: bool) -> None:
        """Whether the next batch has features; called where that changes, if ``info.hidden_size``."""
        raise NotImplementedError

    def _feature_buffer(self) -> Any:
        """A pointer to the features of the last batch."""
        raise NotImplementedError

    def forward(
        self,
        tokens: Sequence[int],
        parents: Sequence[int] | None = None,
        *,
        logits: Logits = "all",
        features: bool = False,
    ) -> FloatArray:
        """See ``Runtime``.

        The logits are the library's own buffer: the next pass overwrites it and ``close`` frees it.
        """
        if not self._close.alive:
            raise RuntimeError("the model has been closed")
        length, rows = self.length, len(tokens)
        tree = self._append(rows, parents, features)
        if features != self._has_features:
            self._set_features(features)
            self._has_features = features
        self._forget_uncommitted()
        self._cached = length + rows
        self._feed(tokens)
        if tree is None:
            self._positions[:rows] = self._arange[length : length + rows]
        else:
            self._lay_out_tree(tree)
        # llama.cpp has features of all rows or of none.
        self._wanted[:rows] = logits == "all" or features
        if logits == "last":
            self._wanted[rows - 1] = 1
        self._batch.n_tokens = rows
        self._decode()
        count = logit_rows(logits, rows)
        if not features:
            return self._view(self._buffer, count, self.info.vocab_size)
        asked = slice(rows - count, rows)
        self.features = self._view(self._feature_buffer, rows, self.info.hidden_size)[asked]
        return self._view(self._buffer, rows, self.info.vocab_size)[asked]

    def keep(self, rows: Sequence[int]) -> None:
        """See ``Runtime``."""
        start = self.length
        super().keep(rows)
        if self._leaf_of_row and rows and (leaf := self._leaf_of_row[rows[-1]]):
            self._remove(0, start)
            self._copy(leaf, 0, start, self.length)

    def close(self) -> None:
        """See ``Runtime``."""
        self._views.clear()
        self._close()

    def _feed(self, tokens: Sequence[int]) -> None:
        """Put the tokens into the batch."""
        self._tokens[: len(tokens)] = tokens

    def _forget_uncommitted(self) -> None:
        if self._cached > self.length:
            self._remove(0, self.length)
        if self._leaf_of_row is not None:
            for sequence in range(1, max(self._leaf_of_row) + 1):
                self._remove(sequence, 0)
            self._leaf_of_row = None
            self._sequence_counts[:] = 1
            self._sequences[:, 0] = 0

    def _lay_out_tree(self, parents: Sequence[int]) -> None:
        """Positions and sequences of a tree's rows; the committed rows join every sequence."""
        rows = len(parents)
        depths = [0] * rows
        for row, parent in enumerate(parents):
            depths[row] = depths[parent] + 1 if parent >= 0 else 0
        leaves = sorted(set(range(rows)) - set(parents))
        if len(leaves) > self._max_leaves:
            raise ValueError(
                f"a tree of {len(leaves)} leaves; the runtime takes {self._max_leaves}"
            )
        below: list[list[int]] = [[] for _ in range(rows)]
        for sequence, leaf in enumerate(leaves):
            row = leaf
            while row >= 0:
                below[row].append(sequence)
                row = parents[row]
        for row, sequences in enumerate(below):
            self._sequence_counts[row] = len(sequences)
            self._sequences[row, : len(sequences)] = sequences
        self._leaf_of_row = [sequences[0] for sequences in below]
        for sequence in range(1, len(leaves)):
            self._copy(0, sequence, 0, self.length)
        self._positions[:rows] = np.add(depths, self.length)

    def _view(self, buffer_of: Callable[[], Any], rows: int, width: int) -> FloatArray:
        """The first rows of a buffer of the library's. Views are kept: making one costs 20 µs."""
        if rows == 0:
            return np.empty((0, width), np.float32)
        buffer = buffer_of()
        key = (ctypes.addressof(buffer.contents), rows, width)
        if key not in self._views:
            self._views[key] = np.ctypeslib.as_array(buffer, (rows, width))
        return self._views[key]


def refuse_what_would_abort(file: GGUFFile) -> None:
    """Most damage makes llama.cpp fail to load; on some it ends the process instead."""
    if reason := damage(file):
        raise UserError(f"{file.path} {reason}; download it again")
    if reason := why_not(file):
        raise UserError(f"{file.path} {reason}; try --runtime onnx, or another file of the model")


def pointer(array: np.ndarray[Any, Any], kind: Any) -> Any:
    """Of C, to where the array lies, which must live as long."""
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))


def weight_bytes(file: GGUFFile) -> int:
    """What a pass reads: everything, but for an embedding that is not the head too."""
    unread = "token_embd.weight" if "output.weight" in file.tensors else None
    return sum(info.nbytes for name, info in file.tensors.items() if name != unread)
