"""ONNX Runtime: runs a decoder graph that ``edgespec.export`` built."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgespec.errors import UserError
from edgespec.progress import Progress, silent
from edgespec.runtimes import (
    MAX_ROWS,
    ContextOverflow,
    FloatArray,
    Logits,
    ModelInfo,
    capacity,
)
from edgespec.runtimes.devices import choose_provider, cpu_name, physical_cores

PROBED_SIZES = 16
"""Batch invariance is probed for passes of up to so many rows."""
_ATTENDED = 2
"""Attention sees at least so many rows in exact passes: on one it runs another kernel."""
_WIDE_HEAD = 128
_WIDE_HEADS_ATTEND_TO = 65
"""Over heads wider than ``_WIDE_HEAD`` and fewer positions than this, MLAS sums a query's product with
a key in longer runs, whose bits differ: exact passes never attend to fewer."""
_NO_FLASH_ATTENTION = "ORT_GQA_DISABLE_FLASH_ATTENTION"
"""An option of ONNX Runtime that it takes from the environment alone, while it makes a session. Flash
attention goes by blocks of positions, in the last of which those runs change; it is no faster here."""
_MAX_SMALLEST = 4
"""Padding single tokens to more rows than this would cost more than exactness is worth."""
_PROBE_CONTEXT = 55
"""Where the probe begins. Its rows lie on both sides of 64, a power of two, where kernels like to change."""
_MAPPED_BYTES = 1 << 16
"""Larger constants stay in the file's mapping. Norms and biases are read in every pass, and touching
one there would make up to 2 MB of weights around it resident, which nobody reads."""
_ROWS_HELD = 512
"""Rows of the embedding that are looked up before those in memory are forgotten."""
_WINDOWS_COUNT_THE_TOKEN = (1, 24)
"""Before this version of ONNX Runtime a window did not include the token itself (its PR #25927)."""


class _Pass(NamedTuple):
    """Inputs of one shape of pass, bound once: ``n`` tokens and ``m`` rows of logits.

    ONNX Runtime reads and writes the arrays where they are, and does not keep them alive.
    """

    binding: Any
    inputs: dict[str, npt.NDArray[Any]]
    logits: FloatArray


class Chains:
    """What runtimes whose passes are chains have to know of their cache: see ``Runtime``."""

    info: ModelInfo

    def __init__(self) -> None:
        self.length = 0
        self._appended = 0

    def keep(self, rows: Sequence[int]) -> None:
        if list(rows) != list(range(len(rows))) or len(rows) > self._appended:
            raise ValueError(f"rows {list(rows)} are not a path of the last pass")
        self.length += len(rows)
        self._appended = 0

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate {self.length} tokens to {length}")
        self.length, self._appended = length, 0

    def _check(self, rows: int, parents: Sequence[int] | None) -> None:
        """Raise what a pass over ``rows`` tokens calls for."""
        if parents is not None and list(parents) != list(range(-1, rows - 1)):
            raise NotImplementedError("the onnx runtime verifies chains, not trees")
        if self.length + rows > self.info.context:
            raise ContextOverflow(
                f"{rows} more tokens do not fit after {self.length} in {self.info.context}"
            )


class OnnxRuntime(Chains):
    """A built model on ONNX Runtime; see ``edgespec.runtimes.Runtime`` for the protocol.

    ``folder`` holds ``edgespec.json``, ``model.onnx`` and its weights. ``context`` is the cache's
    capacity in tokens (default: the model's, at most 4096). With ``exact``, attention never sees a
    single row (its kernel for one differs) nor few positions with wide heads, sizes of pass are probed for
    batch invariance (once; the result is kept beside the model) and passes are padded to sizes that
    agree with each other, none larger than ``rows``, the most rows of logits that a pass may have.
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
        self._session, self._weights, self._mapping, self._embedding = _open_session(
            folder, manifest, chosen, device
        )
        progress("loading the model", 1, 1)
        shapes = {n.name: n.shape for n in self._session.get_inputs() if n.name.startswith("past_")}
        wide = any(head_dim > _WIDE_HEAD for *_, head_dim in shapes.values())
        self._least_attended = _WIDE_HEADS_ATTEND_TO if wide else 0
        self._caches = _allocate_caches(shapes, context + max(PROBED_SIZES, self._least_attended))
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
        )
        if exact:
            sizes = self._invariant_sizes(folder, progress)
            self.info = replace(self.info, pass_sizes=tuple(n for n in sizes if n <= rows))
            self._passes.clear()  # with what the largest probes touched of memory
            self._logits = np.empty_like(self._logits)

    def forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None = None, *, logits: Logits = "all"
    ) -> FloatArray:
        rows = len(tokens)
        self._check(rows, parents)
        size = self.info.padded(rows) if logits == "all" else rows
        attended = size
        if self.info.pass_sizes:
            attended = max(size, _ATTENDED, self._least_attended - self.length)
        if self._embedding:
            self._embedding.look_up(tokens)
        step = self._pass(size, {"all": size, "last": 1, "none": 0}[logits], attended)
        step.inputs["tokens"][0, :rows] = tokens
        step.inputs["tokens"][0, rows:] = tokens[-1]  # padding: rows that nobody reads
        step.inputs["last_position"][0] = self.length + attended - 1
        step.inputs["total_length"][...] = self.length + attended
        self._appended = rows
        self._session.run_with_iobinding(step.binding)
        if size > PROBED_SIZES:  # a prompt's positions in the tables, and their surroundings
            _release_pages(self._mapping)
        return step.logits[:rows]

    def close(self) -> None:
        self._passes.clear()
        self._caches.clear()
        if hasattr(self, "_session"):  # closing twice is harmless
            del self._session, self._weights, self._mapping
            if self._embedding:
                self._embedding.close()
                self._embedding = None

    def _pass(self, n: int, m: int, attended: int) -> _Pass:
        if (n, m, attended) in self._passes:
            return self._passes[n, m, attended]
        binding = self._session.io_binding()
        tokens, rows = np.zeros((1, n), np.int64), np.arange(n - m, n, dtype=np.int64)
        attention_rows = np.minimum(np.arange(attended), n - 1)
        count = np.array([n], np.int64)
        last_position, total_length = np.zeros(1, np.int32), np.zeros((), np.int32)
        size = m * self._vocab_size
        flat = self._logits[:size] if m <= PROBED_SIZES else np.empty(size, np.float32)
        logits = flat.reshape(m, self._vocab_size)
        inputs = {
            "tokens": tokens,
            "logit_rows": rows,
            "attention_rows": attention_rows,
            "rows": count,
            "last_position": last_position,
            "total_length": total_length,
        }
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, cache in self._caches.items():
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
        """``_probe``, remembered beside the model for this ONNX Runtime, processor and threads."""
        key = f"onnxruntime {ort.__version__}, {cpu_name()}, {self._threads} threads"
        path = folder / "pass_sizes.json"
        if (known := _remembered_sizes(path, key)) is not None:
            return known
        sizes = self._probe(progress)
        if self.info.context <= _PROBE_CONTEXT + PROBED_SIZES:
            return sizes  # not all were tried
        with contextlib.suppress(OSError):  # a read-only folder only costs the next probe
            temporary = path.with_name(f"{path.name}.{os.getpid()}")
            temporary.write_text(json.dumps({"key": key, "pass_sizes": sizes}), encoding="utf-8")
            os.replace(temporary, path)
        return sizes

    def _probe(self, progress: Progress) -> tuple[int, ...]:
        """The sizes of pass whose rows have the same bits as in the largest; empty if too few do.

        The rows compared begin one token later: a row must not depend on its place either.
        """
        self.info = replace(self.info, pass_sizes=tuple(range(1, PROBED_SIZES + 1)))
        rng = np.random.default_rng(0)
        count = _PROBE_CONTEXT + PROBED_SIZES + 1
        tokens = rng.integers(0, self._vocab_size, count).tolist()[: self.info.context]
        head, tail = tokens[: -PROBED_SIZES - 1], tokens[-PROBED_SIZES - 1 :]
        if head:
            self.forward(head, logits="none")
            self.keep(range(len(head)))
        reference = self.forward(tail[:PROBED_SIZES])[1:].copy()
        self.keep([0])
        agreeing = []
        for size in range(1, len(tail)):
            progress("proving that passes of different sizes agree", size, len(tail) - 1)
            rows = min(size, len(reference))
            if np.array_equal(self.forward(tail[1 : 1 + size])[:rows], reference[:rows]):
                agreeing.append(size)
        self.truncate(0)
        return tuple(agreeing) if len(agreeing) > 1 and agreeing[0] <= _MAX_SMALLEST else ()


def _allocate_caches(shapes: dict[str, list[Any]], capacity: int) -> dict[str, Any]:
    """Zeroed caches; the system gives them memory when they are first written.

    A head's rows lie together, so every head's part grows from its start: by pages of 4 KiB, and of
    2 MiB where a cache has 4 MiB or more, which NumPy asks Linux to use large pages for.
    """
    return {
        name: ort.OrtValue.ortvalue_from_numpy(np.zeros((1, heads, capacity, head_dim), np.float32))
        for name, (_, heads, _, head_dim) in shapes.items()
    }


def _remembered_sizes(path: Path, key: str) -> tuple[int, ...] | None:
    """The sizes of pass that were found under the same ``key``; ``None`` without a file to trust."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        known = json.loads(path.read_text(encoding="utf-8"))
        sizes = [size for size in range(1, PROBED_SIZES + 1) if size in known["pass_sizes"]]
        if known["key"] == key and known["pass_sizes"] == sizes:
            return tuple(sizes)
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """``edgespec.json`` of a built model. Raises ``UserError`` where the model is not whole."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "edgespec.json").read_text("utf-8"))
        for name in ("model.onnx", "model.onnx.data"):
            if (folder / name).stat().st_size != manifest["files"][name]:
                raise ValueError(f"{name} does not have {manifest['files'][name]} bytes")
        for key in ("vocab_size", "layers", "context", "weight_bytes"):
            if not isinstance(manifest[key], int) or manifest[key] < 1:
                raise ValueError(f"its {key} is {manifest[key]!r}")
        for key in ("name", "architecture", "window", "constants", "token_ids"):
            manifest[key]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{folder} is not a complete model ({error}); delete it and it will be built again"
        ) from error
    return manifest


_pool_threads: int | None = None


def pool_threads() -> int | None:
    """The threads that models of this process run on; ``None`` where there was none yet."""
    return _pool_threads


def share_threads(threads: int) -> int:
    """One thread pool for all sessions of the process: two that spin fight for the cores."""
    global _pool_threads
    if _pool_threads is None:
        ort.set_global_thread_pool_sizes(threads, 1)
        _pool_threads = threads
    if _pool_threads != threads:
        raise UserError(
            f"this process already runs models on {_pool_threads} threads; "
            f"start another one to use {threads}"
        )
    return threads


def session_options() -> ort.SessionOptions:
    """Options that every session here has."""
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    # An arena would keep the largest prompt's activations for good.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    return options


def start_session(
    path: Path, options: ort.SessionOptions, provider: str, device: str
) -> ort.InferenceSession:
    """A session on ``provider``, for ``gpu:N`` on that one. Raises ``UserError`` where it does not start."""
    settings: dict[str, str] = {}
    if ":" in device and provider != "CPUExecutionProvider":
        settings["device_id"] = device.partition(":")[2]
    session = ort.InferenceSession(str(path), options, [(provider, settings)])
    if provider not in session.get_providers():  # ONNX Runtime falls back to the CPU by itself
        raise UserError(
            f"ONNX Runtime cannot start {provider} on this machine; "
            "install what it needs, or use --device cpu"
        )
    return session


@contextlib.contextmanager
def loading(folder: Path, remedy: str) -> Iterator[None]:
    """What goes wrong inside becomes a ``UserError`` of one line that ends in ``remedy``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"ONNX Runtime cannot load {folder}: {reason}; {remedy}") from error


class _Embedding:
    """The input embedding: a table in memory of which only rows that were looked up take any.

    In the file's mapping a row would bring up to 2 MiB around it along, the pieces in which Linux
    caches files.
    """

    def __init__(self, path: Path, dtype: str, shape: list[int], offset: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (see close)
        rows, columns = shape
        self._offset, self._row_bytes = offset, columns * np.dtype(dtype).itemsize
        private = {} if os.name == "nt" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
        self._memory = mmap.mmap(-1, rows * self._row_bytes, **private)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without large pages
                self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.table = np.frombuffer(self._memory, dtype).reshape(shape)
        self._held = 0

    def look_up(self, tokens: Sequence[int]) -> None:
        """Put the rows of ``tokens`` in their places."""
        self._held += len(tokens)
        if self._held > _ROWS_HELD and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)
            self._held = len(tokens)
        for token in set(tokens):
            self._file.seek(self._offset + token * self._row_bytes)
            self._file.readinto(self.table[token].view(np.uint8))

    def close(self) -> None:
        self._file.close()


def _open_session(
    folder: Path, manifest: dict[str, Any], provider: str, device: str
) -> tuple[ort.InferenceSession, list[Any], mmap.mmap, _Embedding | None]:
    """The session, and the weights in their mapping and the embedding, which must live as long.

    There is no ``_Embedding`` where it is the head too, as it is: that product reads all of it.
    """
    options = session_options()
    with loading(folder, "if it is damaged, delete it and it will be built again"):
        with open(folder / "model.onnx.data", "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        weights, embedding = [], None
        has_own_head = any(name in ("output", "token_embd") for name, *_ in manifest["constants"])
        for name, dtype, shape, offset in manifest["constants"]:
            if name == "embedding" and has_own_head:
                embedding = _Embedding(folder / "model.onnx.data", dtype, shape, offset)
                weights.append(ort.OrtValue.ortvalue_from_numpy(embedding.table))
                options.add_initializer(name, weights[-1])
                continue
            count = int(np.prod(shape, dtype=np.int64))
            array = np.frombuffer(mapping, np.dtype(dtype), count, offset).reshape(shape)
            kept = array if array.nbytes > _MAPPED_BYTES else array.copy()
            weights.append(ort.OrtValue.ortvalue_from_numpy(kept))
            options.add_initializer(name, weights[-1])
        with _read_pages_released(mapping), _no_flash_attention():
            session = start_session(folder / "model.onnx", options, provider, device)
    return session, weights, mapping, embedding


@contextlib.contextmanager
def _no_flash_attention() -> Iterator[None]:
    before = os.environ.get(_NO_FLASH_ATTENTION)
    os.environ[_NO_FLASH_ATTENTION] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_FLASH_ATTENTION]
        else:
            os.environ[_NO_FLASH_ATTENTION] = before


@contextlib.contextmanager
def _read_pages_released(mapping: mmap.mmap) -> Iterator[None]:
    """Keep what ONNX Runtime has read of ``mapping`` out of resident memory.

    It packs every product's weights for its kernels, on the heap, and does not look at the file
    again; without this both would be resident. Pages given back come again from the file if touched.
    It reads some GB a second, so that every 5 ms are tens of MB.
    """
    loaded = threading.Event()

    def release() -> None:
        while not loaded.wait(0.005):
            _release_pages(mapping)

    releaser = threading.Thread(target=release, daemon=True)
    releaser.start()
    try:
        yield
    finally:
        loaded.set()
        releaser.join()
        _release_pages(mapping)


def _release_pages(mapping: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):  # Windows trims a process's working set itself
        mapping.madvise(mmap.MADV_DONTNEED)
