"""Which rows of a cache are committed and which the last pass appended: the same checks for every runtime."""

from __future__ import annotations

from collections.abc import Sequence

from edgespec.core.runtime import ContextOverflow, FloatArray, ModelInfo


class RowTracker:
    """The bookkeeping of a ``Runtime``; a runtime derives from it and calls ``_append`` in ``forward``."""

    info: ModelInfo

    def __init__(self) -> None:
        self.length = 0
        self.features: FloatArray | None = None
        self._parents: Sequence[int] = ()
        """Parents of the rows that the last pass appended, until they are kept or forgotten."""

    def keep(self, rows: Sequence[int]) -> None:
        """See ``Runtime``."""
        appended, before = len(self._parents), -1
        for row in rows:
            if not 0 <= row < appended or self._parents[row] != before:
                raise ValueError(f"rows {list(rows)} are not a path of the last pass")
            before = row
        self.length += len(rows)
        self._parents = ()

    def truncate(self, length: int) -> None:
        """See ``Runtime``."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} tokens to {length}")
        self.length, self._parents = length, ()

    def _append(
        self, rows: int, parents: Sequence[int] | None, features: bool = False
    ) -> Sequence[int] | None:
        """Note the rows of a pass before it runs; returns the parents of a tree, ``None`` for a chain.

        Raises what ``Runtime.forward`` documents.
        """
        chain = range(-1, rows - 1)
        tree = None if parents is None or list(parents) == list(chain) else list(parents)
        if tree is not None:
            if not self.info.trees:
                raise ValueError(f"{self.info.name} runs chains here, no trees")
            if len(tree) != rows or not all(-1 <= p < row for row, p in enumerate(tree)):
                raise ValueError(f"{tree} are not the parents of {rows} rows")
        if features and not self.info.hidden_size:
            raise ValueError(f"{self.info.runtime} has no features of {self.info.name}")
        if not rows:
            raise ValueError("a pass needs a token")
        if self.length + rows > self.info.context:
            raise ContextOverflow(
                f"{rows} more tokens do not fit after {self.length} in {self.info.context}"
            )
        self._parents, self.features = chain if tree is None else tree, None
        return tree
