"""Opens sessions of ONNX Runtime so that they take little memory and always the same kernels."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgespec.errors import UserError
from edgespec.models.onnx_folder import MODEL_FILE, WEIGHTS_FILE, Manifest

_NO_FLASH_ATTENTION = "ORT_GQA_DISABLE_FLASH_ATTENTION"
"""An option of ONNX Runtime that it takes from the environment alone, while it makes a session. Flash
attention goes by blocks of positions, and a row's bits depend on where they end; it is no faster here."""
_MAPPED_BYTES = 1 << 16
"""Larger constants stay in the file's mapping. Norms and biases are read in every pass, and touching
one there would make up to 2 MB of weights around it resident, which nobody reads."""
_ROWS_HELD = 512
"""Rows of the embedding that are looked up before those in memory are forgotten."""


REBUILT = "if it is damaged, delete it and it will be built again"
"""What to do about a built folder that does not load."""


def session_options(profile: Path | None = None) -> ort.SessionOptions:
    """Options that every session here has.

    ``profile`` begins the name of the file where ONNX Runtime writes what every operator took.
    """
    options = ort.SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
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
    with _utf8_path(path) as name:
        session = ort.InferenceSession(name, options, [(provider, settings)])
    if provider not in session.get_providers():  # ONNX Runtime falls back to the CPU by itself
        raise UserError(
            f"ONNX Runtime cannot start {provider} on this machine; "
            "install what it needs, or use --device cpu"
        )
    return session


@contextlib.contextmanager
def _utf8_path(path: Path) -> Iterator[str]:
    """``path`` as ONNX Runtime takes it, which is UTF-8: Linux has another name for any open folder."""
    if str(path).encode("utf-8", "replace").decode() == str(path):
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


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


class Embedding:
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


def open_session(
    folder: Path,
    manifest: Manifest,
    provider: str,
    device: str,
    profile: Path | None = None,
) -> tuple[ort.InferenceSession, list[Any], mmap.mmap, Embedding | None]:
    """The session, and the weights in their mapping and the embedding, which must live as long.

    ``profile``: see ``session_options``. There is no ``Embedding`` where it is the head too, as it is: that product reads all of it.
    """
    options = session_options(profile)
    with loading(folder, REBUILT):
        mapping = _map_weights(folder)
        weights, embedding = [], None
        has_own_head = any(name in ("output", "token_embd") for name, *_ in manifest["constants"])
        for name, dtype, shape, offset in manifest["constants"]:
            if name == "embedding" and has_own_head:
                embedding = Embedding(folder / WEIGHTS_FILE, dtype, shape, offset)
                weights.append(ort.OrtValue.ortvalue_from_numpy(embedding.table))
                options.add_initializer(name, weights[-1])
                continue
            array = _array(mapping, dtype, shape, offset)
            kept = array if array.nbytes > _MAPPED_BYTES else array.copy()
            weights.append(ort.OrtValue.ortvalue_from_numpy(kept))
            options.add_initializer(name, weights[-1])
        with _read_pages_released(mapping), _no_flash_attention():
            session = start_session(folder / MODEL_FILE, options, provider, device)
    return session, weights, mapping, embedding


def map_constants(options: ort.SessionOptions, folder: Path, manifest: Manifest) -> list[Any]:
    """Give sessions with these options the constants of a folder that was built, in their file's mapping.

    Keep what is returned as long as the session lives.
    """
    values: list[Any] = []
    mapping = _map_weights(folder)
    for name, dtype, shape, offset in manifest["constants"]:
        values.append(ort.OrtValue.ortvalue_from_numpy(_array(mapping, dtype, shape, offset)))
        options.add_initializer(name, values[-1])
    return values


def _map_weights(folder: Path) -> mmap.mmap:
    with open(folder / WEIGHTS_FILE, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _array(mapping: mmap.mmap, dtype: str, shape: list[int], offset: int) -> npt.NDArray[Any]:
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(mapping, np.dtype(dtype), count, offset).reshape(shape)


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
            release_pages(mapping)

    releaser = threading.Thread(target=release, daemon=True)
    releaser.start()
    try:
        yield
    finally:
        loaded.set()
        releaser.join()
        release_pages(mapping)


def release_pages(mapping: mmap.mmap) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):  # Windows trims a process's working set itself
        mapping.madvise(mmap.MADV_DONTNEED)


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
