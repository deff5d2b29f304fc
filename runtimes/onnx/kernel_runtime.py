"""ONNX Runtime with ``edgespec.kernels``: runs a decoder graph over packed matrices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgespec import kernels
from edgespec.core.runtime import (
    MAX_ROWS,
    FloatArray,
    Logits,
    ModelInfo,
    capacity,
    logit_rows,
)
from edgespec.device.machine import physical_cores
from edgespec.errors import UserError
from edgespec.models.onnx_folder import MODEL_FILE, PACKED_FILE, read_manifest
from edgespec.progress import Progress, silent
from edgespec.runtimes.onnx import PREFILL_CHUNK
from edgespec.runtimes.onnx.session import (
    REBUILT,
    loading,
    map_constants,
    session_options,
    share_threads,
    start_session,
)
from edgespec.runtimes.rows import RowTracker

CPU = "CPUExecutionProvider"


class _Pass(NamedTuple):
    """Inputs and outputs of one shape of pass, bound once: ``n`` tokens and ``m`` rows of logits.

    ONNX Runtime reads and writes the arrays where they are, and does not keep them alive.
    """

    binding: Any
    tokens: npt.NDArray[np.int64]
    parents: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]
    logits: FloatArray
    features: FloatArray | None


class KernelRuntime(RowTracker):
    """A model built for the kernels; see ``edgespec.runtimes.Runtime`` for the protocol.

    ``folder`` holds ``edgespec.json``, ``model.onnx``, its constants and ``model.packed``. ``context`` is
    the cache's capacity in tokens (default: the model's, at most 4096). Keys and values are float16.
    ``profile`` begins the name of a JSON file that has every operator's time once the model is closed.

    A row's bits depend on neither the size of the pass nor its place in a tree (``kernels/LAYOUT.md``), so
    every size of pass agrees with every other. The rows of a tree lie one after the other in the cache;
    ``keep`` moves those of a path together.

    Raises ``UserError`` for a model that is incomplete, and where the kernels are not here.
    """

    def __init__(
        self,
        folder: Path,
        *,
        context: int | None = None,
        threads: int | None = None,
        rows: int = MAX_ROWS,
        profile: Path | None = None,
        progress: Progress = silent,
    ) -> None:
        manifest = read_manifest(folder)
        if reason := kernels.why_not():
            raise UserError(
                f"{folder} needs edgespec's kernels: {reason}; install edgespec again, or export the "
                "model with --format onnx"
            )
        context = capacity(context, int(manifest["context"]))
        super().__init__()
        self._passes: dict[tuple[int, int, bool], _Pass] = {}
        kernels.set_threads(share_threads(threads or physical_cores()))
        progress("loading the model", 0, 1)
        options = session_options(profile)
        with loading(folder, REBUILT):
            packed = kernels.open_packed(folder / PACKED_FILE, manifest.get("packed"))
            kernels.register(options)
            self._constants = [
                *kernels.share(options, packed),
                *map_constants(options, folder, manifest),
            ]
            self._session = start_session(folder / MODEL_FILE, options, CPU, "cpu")
        progress("loading the model", 1, 1)
        shapes = {node.name: node.shape for node in self._session.get_inputs()}
        layers, heads, _, dim, _ = shapes["keys"]
        blocks = -(-context // 16)
        # The system gives them memory when they are first written.
        self._keys = np.zeros((layers, heads, blocks, dim, 16), np.float16)
        self._values = np.zeros((layers, heads, -(-dim // 16), 16 * blocks, 16), np.float16)
        self._bound = {
            name: ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in (("keys", self._keys), ("values", self._values))
        }
        self._length = np.zeros(1, np.int32)
        # Of every pass with so few rows.
        self._logits = np.empty((rows, int(manifest["vocab_size"])), np.float32)
        hidden = next(n.shape[-1] for n in self._session.get_outputs() if n.name == "features")
        self.info = ModelInfo(
            name=str(manifest["name"]),
            architecture=str(manifest["architecture"]),
            vocab_size=self._logits.shape[-1],
            layers=int(manifest["layers"]),
            context=context,
            weight_bytes=int(manifest["weight_bytes"]),
            device="cpu",
            runtime="onnx",
            token_ids=tuple(kept) if (kept := manifest["token_ids"]) else None,
            pass_sizes=tuple(range(1, rows + 1)),
            max_rows=rows,
            prefill_chunk=PREFILL_CHUNK,
            trees=True,
            hidden_size=int(hidden),
            isa=kernels.isa(),
        )

    def forward(
        self,
        tokens: Sequence[int],
        parents: Sequence[int] | None = None,
        *,
        logits: Logits = "all",
        features: bool = False,
    ) -> FloatArray:
        rows = len(tokens)
        self._append(rows, parents, features)
        step = self._pass(rows, logit_rows(logits, rows), features)
        step.tokens[0] = tokens
        step.parents[:] = self._parents
        self._length[0] = self.length
        self._session.run_with_iobinding(step.binding)
        self.features = step.features
        return step.logits

    def keep(self, rows: Sequence[int]) -> None:
        start = self.length
        super().keep(rows)
        if (first := next((i for i, row in enumerate(rows) if row != i), None)) is not None:
            old, new = np.add(rows[first:], start), np.arange(start + first, self.length)
            self._keys[:, :, new // 16, :, new % 16] = self._keys[:, :, old // 16, :, old % 16]
            self._values[:, :, :, new] = self._values[:, :, :, old]

    def close(self) -> None:
        self._passes.clear()
        self._bound.clear()
        if hasattr(self, "_session"):  # closing twice is harmless
            del self._session, self._constants, self._keys, self._values, self._logits

    def _pass(self, n: int, m: int, features: bool) -> _Pass:
        if (found := self._passes.get((n, m, features))) is not None:
            return found
        binding, vocab = self._session.io_binding(), self._logits.shape[-1]
        step = _Pass(
            binding,
            np.zeros((1, n), np.int64),
            np.zeros(n, np.int32),
            np.arange(n - m, n, dtype=np.int64),
            self._logits[:m] if m <= len(self._logits) else np.empty((m, vocab), np.float32),
            np.empty((m, self.info.hidden_size), np.float32) if features else None,
        )
        inputs = {"tokens": step.tokens, "parents": step.parents, "logit_rows": step.rows}
        for name, array in {**inputs, "length": self._length}.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, cache in self._bound.items():
            binding.bind_ortvalue_input(name, cache)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(step.logits))
        if step.features is not None:
            rows = step.features[None]
            binding.bind_ortvalue_output("features", ort.OrtValue.ortvalue_from_numpy(rows))
        if m <= len(self._logits):  # more are rare, and binding is cheap beside computing them
            self._passes[n, m, features] = step
        return step
