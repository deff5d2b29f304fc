"""A runtime of another package, in one file: its logits depend on the last two tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgespec.core.runtime import FloatArray, Logits, ModelInfo, Runtime, capacity
from edgespec.core.runtime_spec import (
    Form,
    LoadOptions,
    ModelDimensions,
    RunConfiguration,
    RuntimeMemory,
    RuntimeSpec,
)
from edgespec.models.gguf import GGUFFile
from edgespec.runtimes.rows import RowTracker

HIDDEN = 8


class ToyRuntime(RowTracker):
    """A ``Runtime``: hidden states are seeded by the last two tokens, logits are their products."""

    def __init__(self, path: Path, context: int | None) -> None:
        super().__init__()
        file = GGUFFile(path)
        vocab_size = len(file.metadata["tokenizer.ggml.tokens"])
        self.info = ModelInfo(
            name="toy",
            architecture=file.architecture,
            vocab_size=vocab_size,
            layers=1,
            context=capacity(context, int(file.metadata["llama.context_length"])),
            weight_bytes=1,
            device="cpu",
            runtime="toy",
            trees=True,
            hidden_size=HIDDEN,
        )
        self._head = np.random.default_rng(0).normal(0, 1, (HIDDEN, vocab_size)).astype(np.float32)
        self._cached: list[int] = []
        self._rows: list[list[int]] = []

    def forward(
        self,
        tokens: Sequence[int],
        parents: Sequence[int] | None = None,
        *,
        logits: Logits = "all",
        features: bool = False,
    ) -> FloatArray:
        self._append(len(tokens), parents, features)
        self._rows = []
        for token, parent in zip(tokens, self._parents, strict=True):
            before = self._rows[parent] if parent >= 0 else self._cached[: self.length]
            self._rows.append([*before, token])
        asked = {"all": self._rows, "last": self._rows[-1:], "none": []}[logits]
        states = [np.random.default_rng(row[-2:]).normal(0, 1, HIDDEN) for row in asked]
        hidden = np.array(states, np.float32).reshape(len(states), HIDDEN)
        self.features = hidden if features else None
        return hidden @ self._head

    def keep(self, rows: Sequence[int]) -> None:
        before = self._cached[: self.length]
        super().keep(rows)
        self._cached = self._rows[rows[-1]] if rows else before

    def close(self) -> None:
        pass


class ToySpec(RuntimeSpec):
    """What the engine knows of it."""

    name = "toy"
    title = "Toy"
    forms = ("gguf",)
    install = "it is a test"

    def why_not_here(self) -> str | None:
        return None

    def version(self) -> str:
        return "1"

    def device(self, device: str, provider: str | None) -> str:
        return "cpu"

    def memory(self, model: ModelDimensions, run: RunConfiguration) -> RuntimeMemory:
        return RuntimeMemory(1 << 20, 0, model.stored_bytes, 4 * run.context, 0, 0, 0)

    def load(self, path: Path, form: Form, options: LoadOptions) -> Runtime:
        return ToyRuntime(path, options.context)


SPEC = ToySpec()
