"""ONNX Runtime: runs the plain graph that Optimum writes for a decoder.

Such a graph takes each layer's keys and values as ``past_key_values.N.key`` and ``.value`` and gives
``present.N.…``, the past with the new rows behind it: ``[1, heads, rows, head dimension]``. It runs any
architecture that Optimum exports, in full precision and without the engine's own kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgespec.core.runtime import (
    FloatArray,
    Logits,
    ModelInfo,
    capacity,
    logit_rows,
)
from edgespec.device.machine import physical_cores
from edgespec.models.optimum_folder import model_context, read_config
from edgespec.progress import Progress, silent
from edgespec.runtimes.onnx import PREFILL_CHUNK
from edgespec.runtimes.onnx.providers import choose_provider
from edgespec.runtimes.onnx.session import (
    loading,
    session_options,
    share_threads,
    start_session,
)
from edgespec.runtimes.rows import RowTracker

_REMEDY = "export it again"
_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
_PAST, _PRESENT = "past_key_values", "present"


@dataclass(frozen=True)
class _Cache:
    """The keys or the values of one layer: two buffers, one for the past and one for the present.

    A buffer is filled from its start, head after head, so memory is touched as the cache grows.
    """

    name: str
    heads: int
    head_dim: int
    buffers: tuple[npt.NDArray[Any], npt.NDArray[Any]]

    def view(self, side: int, rows: int) -> npt.NDArray[Any]:
        used = self.buffers[side][: self.heads * rows * self.head_dim]
        return used.reshape(1, self.heads, rows, self.head_dim)


class OptimumRuntime(RowTracker):
    """A model that Optimum exported; see ``edgespec.runtimes.Runtime`` for the protocol.

    ``folder`` holds ``model.onnx``, the weights beside it where they are, and ``config.json``.
    ``context`` is the cache's capacity in tokens (default: the model's, at most 4096). Chains only;
    nothing is claimed of batch invariance, so ``info.pass_sizes`` is empty.
    Raises ``UserError`` for a folder that is incomplete or is no such graph, and for a provider that
    is not installed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        context: int | None = None,
        threads: int | None = None,
        device: str = "auto",
        provider: str | None = None,
        progress: Progress = silent,
    ) -> None:
        config = read_config(folder)
        context = capacity(context, model_context(folder))
        chosen = choose_provider(device, provider, ort.get_available_providers())
        share_threads(threads or physical_cores())
        super().__init__()
        self._side = 0  # of the caches' buffers: the one that holds the past
        self._stored = 0  # rows there, of which the first ``length`` count
        progress("loading the model", 0, 1)
        with loading(folder, _REMEDY):
            weight_bytes = _checked_weights(folder)
            self._session = start_session(folder / "model.onnx", session_options(), chosen, device)
            self._inputs, self._caches = _understand(self._session, context)
            logits = next(node for node in self._session.get_outputs() if node.name == "logits")
            vocab_size = logits.shape[-1]
            if logits.type not in _TYPES or not isinstance(vocab_size, int):
                raise ValueError(f"its logits are a {logits.type} of {logits.shape}")
            self._logits_type = _TYPES[logits.type]
            self.info = ModelInfo(
                name=folder.resolve().name,
                architecture=str(config.get("model_type", "")),
                vocab_size=vocab_size,
                layers=len(self._caches) // 2,
                context=context,
                weight_bytes=weight_bytes,
                device=chosen.removesuffix("ExecutionProvider").lower(),
                runtime="onnx",
                prefill_chunk=PREFILL_CHUNK,
            )
            self.forward([0])  # a graph that is not what its inputs and outputs say fails here
            self.keep([])
        progress("loading the model", 1, 1)

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
        total = self.length + rows
        if self._stored != self.length:
            self._drop_rows()
        binding = self._session.io_binding()
        feeds = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self.length, total, dtype=np.int64)[None],
        }
        for name in self._inputs:
            binding.bind_cpu_input(name, feeds[name])
        for cache in self._caches:
            past, present = cache.view(self._side, self.length), cache.view(1 - self._side, total)
            _bind(binding.bind_input, _PAST + cache.name, past)
            _bind(binding.bind_output, _PRESENT + cache.name, present)
        found = np.empty((1, rows, self.info.vocab_size), self._logits_type)
        # The graph computes the logits of every row, asked for or not.
        _bind(binding.bind_output, "logits", found)
        self._session.run_with_iobinding(binding)
        return found[0, rows - logit_rows(logits, rows) :].astype(np.float32, copy=False)

    def keep(self, rows: Sequence[int]) -> None:
        stored = self.length + len(self._parents)
        super().keep(rows)
        if len(rows):  # else the past is still where it was
            self._side, self._stored = 1 - self._side, stored

    def close(self) -> None:
        self._caches.clear()
        if hasattr(self, "_session"):  # closing twice is harmless
            del self._session

    def _drop_rows(self) -> None:
        """Move the rows that count together, into the other buffers: those of a head lie in one piece."""
        for cache in self._caches:
            past = cache.view(self._side, self._stored)[:, :, : self.length]
            np.copyto(cache.view(1 - self._side, self.length), past)
        self._side, self._stored = 1 - self._side, self.length


def _bind(bind: Any, name: str, array: npt.NDArray[Any]) -> None:
    """Bind ``array`` where it is; ONNX Runtime does not keep it alive."""
    bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _understand(session: ort.InferenceSession, context: int) -> tuple[list[str], list[_Cache]]:
    """The inputs that are no caches, and the caches. Raises ``ValueError`` for another kind of graph."""
    inputs, caches = [], []
    outputs = {node.name for node in session.get_outputs()}
    for node in session.get_inputs():
        name = node.name.removeprefix(_PAST)
        if name == node.name:
            if name not in ("input_ids", "attention_mask", "position_ids"):
                raise ValueError(f"its input {name} is not known here")
            if node.type != "tensor(int64)":
                raise ValueError(f"its input {name} is a {node.type}")
            inputs.append(name)
            continue
        if _PRESENT + name not in outputs or node.type not in _TYPES or len(node.shape) != 4:
            raise ValueError(f"its cache {node.name} is a {node.type} of {node.shape}")
        _, heads, _, head_dim = node.shape
        if not all(isinstance(size, int) and 0 < size <= 1 << 14 for size in (heads, head_dim)):
            raise ValueError(f"its cache {node.name} has the shape {node.shape}")
        size = heads * context * head_dim
        buffers = np.empty(size, _TYPES[node.type]), np.empty(size, _TYPES[node.type])
        caches.append(_Cache(name, heads, head_dim, buffers))
    if "input_ids" not in inputs or not caches or "logits" not in outputs:
        raise ValueError("it is no decoder with past_key_values, from input_ids to logits")
    return inputs, caches


def _checked_weights(folder: Path) -> int:
    """The bytes of the graph's files, all of which must lie in ``folder``.

    ONNX Runtime looks at that itself only since 1.24. Raises ``ValueError``.
    """
    import onnx

    home, path = folder.resolve(), folder / "model.onnx"
    files = {path}
    model = onnx.load(str(path), load_external_data=False)
    for tensor in _tensors([model.graph, *model.functions]):
        for entry in tensor.external_data:
            if entry.key == "location":
                files.add(folder / entry.value)
    for file in files - {path}:
        if not file.resolve().is_relative_to(home):
            raise ValueError(f"its weights lie outside of the folder, in {str(file)[:100]!r}")
    return sum(file.stat().st_size for file in files)


def _tensors(graphs: Sequence[Any]) -> Iterator[Any]:
    """All tensors of ``graphs`` (and functions), those inside nodes' attributes too."""
    for graph in graphs:
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            yield from _tensors([attribute.g, *attribute.graphs])
