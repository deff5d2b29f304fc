"""ONNX Runtime: runs a decoder graph that ``edgespec.export`` built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgespec.core.runtime import (
    MAX_ROWS,
    FloatArray,
    Logits,
    ModelInfo,
    capacity,
    logit_rows,
)
from edgespec.device.machine import cpu_name, physical_cores
from edgespec.errors import UserError
from edgespec.models.onnx_folder import read_manifest
from edgespec.progress import Progress, silent
from edgespec.runtimes.onnx import PREFILL_CHUNK
from edgespec.runtimes.onnx.invariance import (
    PROBED_SIZES,
    agreeing_sizes,
    remember_sizes,
    remembered_sizes,
)
from edgespec.runtimes.onnx.providers import choose_provider
from edgespec.runtimes.onnx.session import (
    loading,
    open_session,
    release_pages,
    share_threads,
)
from edgespec.runtimes.rows import RowTracker

_ATTENDED = 2
"""Attention sees at least so many rows in exact passes: on one it runs another kernel."""
_WIDE_HEAD = 128
_WIDE_HEADS_ATTEND_TO = 65
"""Over heads wider than ``_WIDE_HEAD`` and fewer positions than this, MLAS sums a query's product with
a key in longer runs, whose bits differ: exact passes never attend to fewer."""
_MAX_SMALLEST = 4
"""Padding single tokens to more rows than this would cost more than exactness is worth."""
_PROBE_CONTEXT = 55
"""Where the probe begins. Its rows lie on both sides of 64, a power of two, where kernels like to change."""
_WINDOWS_COUNT_THE_TOKEN = (1, 24)
"""Before this version of ONNX Runtime a window did not include the token itself (its PR #25927)."""
_HIDDEN = -1e9
"""Added to the score of a position that a row does not see: its share is then 0, exactly."""


class _Pass(NamedTuple):
    """Inputs of one shape of pass, bound once: ``n`` tokens and ``m`` rows of logits.

    ONNX Runtime reads and writes the arrays where they are, and does not keep them alive.
    """

    binding: Any
    inputs: dict[str, npt.NDArray[Any]]
    logits: FloatArray


class OnnxRuntime(RowTracker):
    """A built model on ONNX Runtime; see ``edgespec.runtimes.Runtime`` for the protocol.

    ``folder`` holds ``edgespec.json``, ``model.onnx`` and its weights. ``context`` is the cache's
    capacity in tokens (default: the model's, at most 4096). With ``exact``, attention never sees a
    single row (its kernel for one differs) nor few positions with wide heads, sizes of pass are probed for
    batch invariance (once; the result is kept beside the model) and passes are padded to sizes that
    agree with each other, none larger than ``rows``, the most rows of logits that a pass may have.
    ``profile`` begins the name of a JSON file that has every operator's time once the model is closed.

    A tree is one pass too. Its rows lie one after the other in the cache, each hides those that are not
    its ancestors from itself, and ``keep`` moves the rows of a path together; the first branch, laid
    out without gaps, is where it belongs and has the bits of a chain. Trees want the CPU's kernel and
    a cache that no sliding window is shorter than: windows are counted in rows of the cache, where
    other branches lie in between (``info.trees``).

    Raises ``UserError`` for a model that is incomplete or a provider that is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        context: int | None = None,
        threads: int | None = None,
        device: str = "auto",
        provider: str | None = None,
        exact: bool = True,
        rows: int = MAX_ROWS,
        profile: Path | None = None,
        progress: Progress = silent,
    ) -> None:
        manifest = read_manifest(folder)
        version = tuple(int(part) for part in ort.__version__.split(".")[:2])
        if manifest["window"] and version < _WINDOWS_COUNT_THE_TOKEN:
            raise UserError(
                f"onnxruntime {ort.__version__} computes sliding windows otherwise than {folder.name} "
                "needs; upgrade it to 1.24 or later (Python 3.11 or later), or use --runtime llama-cpp"
            )
        context = capacity(context, int(manifest["context"]))
        super().__init__()
        self._vocab_size = int(manifest["vocab_size"])
        self._passes: dict[tuple[int, int, int], _Pass] = {}
        chosen = choose_provider(device, provider, ort.get_available_providers())
        self._threads = share_threads(threads or physical_cores())
        progress("loading the model", 0, 1)
        self._session, self._weights, self._mapping, self._embedding = open_session(
            folder, manifest, chosen, device, profile
        )
        progress("loading the model", 1, 1)
        inputs = {node.name: node.shape for node in self._session.get_inputs()}
        if "attention_bias" not in inputs:
            raise UserError(f"{folder} was built by an older edgespec; export it again")
        shapes = {name: shape for name, shape in inputs.items() if name.startswith("past_")}
        wide = any(head_dim > _WIDE_HEAD for *_, head_dim in shapes.values())
        self._least_attended = _WIDE_HEADS_ATTEND_TO if wide else 0
        positions = context + max(PROBED_SIZES, self._least_attended)
        self._caches = _allocate_caches(shapes, positions)
        self._bound_caches = {
            name: ort.OrtValue.ortvalue_from_numpy(cache) for name, cache in self._caches.items()
        }
        self._no_bias = np.zeros(PROBED_SIZES * positions, np.float32)  # read only
        self._logits = np.empty((PROBED_SIZES * self._vocab_size,), np.float32)
        self.info = ModelInfo(
            name=str(manifest["name"]),
            architecture=str(manifest["architecture"]),
            vocab_size=self._vocab_size,
            layers=int(manifest["layers"]),
            context=context,
            weight_bytes=int(manifest["weight_bytes"]),
            device=chosen.removesuffix("ExecutionProvider").lower(),
            runtime="onnx",
            token_ids=None if manifest["token_ids"] is None else tuple(manifest["token_ids"]),
            max_rows=rows,
            prefill_chunk=PREFILL_CHUNK,
            trees=chosen == "CPUExecutionProvider" and not 0 < int(manifest["window"]) < context,
        )
        if chosen != "CPUExecutionProvider":
            with loading(folder, "use --device cpu, or another --provider"):
                self.forward([0])  # some devices refuse a graph only when it runs
                self.keep([])
        if exact:
            sizes = self._invariant_sizes(folder, progress)
            self.info = replace(self.info, pass_sizes=tuple(n for n in sizes if n <= rows))
            self._passes.clear()  # with what the largest probes touched of memory
            self._logits = np.empty_like(self._logits)

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
        size = self.info.padded(rows) if logits == "all" else rows
        attended = size
        if self.info.pass_sizes:
            attended = max(size, _ATTENDED, self._least_attended - self.length)
        if self._embedding:
            self._embedding.look_up(tokens)
        step = self._pass(size, logit_rows(logits, size), attended)
        step.inputs["tokens"][0, :rows] = tokens
        step.inputs["tokens"][0, rows:] = tokens[-1]  # padding: rows that nobody reads
        positions, bias = self._lay_out(attended)
        step.inputs["last_position"][0] = self.length + attended - 1
        step.inputs["total_length"][...] = bias.shape[1]
        step.inputs["position_ids"][0] = positions
        step.binding.bind_input(
            "attention_bias", "cpu", 0, np.float32, (1, 1, *bias.shape), bias.ctypes.data
        )
        self._session.run_with_iobinding(step.binding)
        if size > PROBED_SIZES:  # a prompt's positions in the tables, and their surroundings
            release_pages(self._mapping)
        return step.logits[:rows]

    def keep(self, rows: Sequence[int]) -> None:
        start = self.length
        super().keep(rows)
        if (first := next((i for i, row in enumerate(rows) if row != i), None)) is not None:
            moved = np.add(rows[first:], start)
            for cache in self._caches.values():
                cache[:, :, start + first : self.length] = cache[:, :, moved]

    def close(self) -> None:
        self._passes.clear()
        self._caches.clear()
        self._bound_caches.clear()
        if hasattr(self, "_session"):  # closing twice is harmless
            del self._session, self._weights, self._mapping
            if self._embedding:
                self._embedding.close()
                self._embedding = None

    def _lay_out(self, attended: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """The rows' positions, ``[attended]``, and what is added to their scores, ``[attended, total]``."""
        end, rows = self.length + attended, len(self._parents)
        positions = np.arange(self.length, end)
        if self._parents == range(-1, rows - 1):
            size = attended * end
            zeros = self._no_bias if size <= len(self._no_bias) else np.zeros(size, np.float32)
            return positions, zeros[:size].reshape(attended, end)
        # The kernel takes no position ids where all positions are new; so it gets one more.
        bias = np.zeros((attended, end if self.length else end + 1), np.float32)
        sees = _ancestors(self._parents)
        positions[:rows] = self.length - 1 + sees.sum(axis=1)
        bias[:rows, self.length : self.length + rows][~sees] = _HIDDEN
        return positions, bias

    def _pass(self, n: int, m: int, attended: int) -> _Pass:
        if (n, m, attended) in self._passes:
            return self._passes[n, m, attended]
        binding = self._session.io_binding()
        tokens, rows = np.zeros((1, n), np.int64), np.arange(n - m, n, dtype=np.int64)
        attention_rows = np.minimum(np.arange(attended), n - 1)
        count = np.array([n], np.int64)
        positions = np.zeros((1, attended), np.int64)
        last_position, total_length = np.zeros(1, np.int32), np.zeros((), np.int32)
        size = m * self._vocab_size
        flat = self._logits[:size] if m <= PROBED_SIZES else np.empty(size, np.float32)
        logits = flat.reshape(m, self._vocab_size)
        inputs = {
            "tokens": tokens,
            "logit_rows": rows,
            "attention_rows": attention_rows,
            "rows": count,
            "position_ids": positions,
            "last_position": last_position,
            "total_length": total_length,
        }
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, cache in self._bound_caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past", "present"), cache)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        step = _Pass(binding, inputs, logits)
        if (
            attended <= PROBED_SIZES
        ):  # longer ones are prompts: binding is cheap beside computing them
            self._passes[n, m, attended] = step
        return step

    def _invariant_sizes(self, folder: Path, progress: Progress) -> tuple[int, ...]:
        """The sizes of pass that agree, remembered beside the model for this ONNX Runtime, processor and
        threads; empty if too few do."""
        key = f"onnxruntime {ort.__version__}, {cpu_name()}, {self._threads} threads"
        path = folder / "pass_sizes.json"
        if (known := remembered_sizes(path, key)) is not None:
            return known
        self.info = replace(self.info, pass_sizes=tuple(range(1, PROBED_SIZES + 1)))
        sizes = agreeing_sizes(self, _PROBE_CONTEXT, progress)
        if len(sizes) < 2 or sizes[0] > _MAX_SMALLEST:
            sizes = ()
        if self.info.context > _PROBE_CONTEXT + PROBED_SIZES:  # else not all were tried
            remember_sizes(path, key, sizes)
        return sizes


def _ancestors(parents: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which rows of a tree each row sees, ``[rows, rows]``: its ancestors and itself."""
    sees = np.eye(len(parents), dtype=np.bool_)
    for row, parent in enumerate(parents):
        if parent >= 0:
            sees[row] |= sees[parent]
    return sees


def _allocate_caches(shapes: dict[str, list[Any]], capacity: int) -> dict[str, FloatArray]:
    """Zeroed caches; the system gives them memory when they are first written.

    A head's rows lie together, so every head's part grows from its start: by pages of 4 KiB, and of
    2 MiB where a cache has 4 MiB or more, which NumPy asks Linux to use large pages for.
    """
    return {
        name: np.zeros((1, heads, capacity, head_dim), np.float32)
        for name, (_, heads, _, head_dim) in shapes.items()
    }
