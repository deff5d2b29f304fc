"""ik_llama.cpp, a fork of llama.cpp that is made for processors, through the C functions of
ik-llama-cpp-python. Extra ``[ik]``.

Weights are repacked as they are loaded, for kernels that read several rows of them at once. These sum a row
in the same order whatever rows share the batch, but for a row alone, which has kernels of its own (in
attention they differ so seldom that a probe may not see it). And attention divides the cache by how many of its cells are in use, in steps of 256. So an exact pass is padded
to two rows or more, and one that reaches into another step is run as two.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.errors import UserError
from edgespec.models import store
from edgespec.models.gguf import GGUFFile
from edgespec.progress import Progress, silent
from edgespec.runtimes import (
    DEFAULT_CONTEXT,
    MAX_ROWS,
    FloatArray,
    Logits,
    ModelInfo,
    capacity,
)
from edgespec.runtimes.devices import cpu_name, physical_cores
from edgespec.runtimes.invariance import (
    PROBED_SIZES,
    agreeing_sizes,
    remember_sizes,
    remembered_sizes,
)
from edgespec.runtimes.llama_sequences import (
    CACHE_TYPES,
    MAX_LEAVES,
    MAX_PASS,
    ErrorLog,
    SequenceRuntime,
    refuse_what_would_abort,
    weight_bytes,
    why_not_on_ik,
)

try:
    from ik_llama_cpp import _ctypes_api as ik
except ImportError as error:
    raise UserError(
        "the ik-llama-cpp runtime is not installed: pip install 'edgespec[ik]'"
    ) from error
except (OSError, RuntimeError) as error:  # the package is there, its shared library does not load
    raise UserError(f"ik-llama-cpp-python does not load: {error}; install it again") from error

_CELLS = 256
"""Flash attention looks at multiples of so many cells of the cache."""
_PROBED_AT = (55, 2 * _CELLS - 6, 4 * _CELLS + 9)
"""Tokens in the cache where sizes of pass are compared: among them rows on both sides of a step."""
_LEAST_ROWS = 2
"""Of an exact pass."""

_context, _model, _int = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32


def _function(name: str, arguments: Sequence[Any], result: Any) -> Any:
    """A function that the package leaves out of its bindings."""
    function = getattr(ik._lib, name)
    function.argtypes, function.restype = arguments, result
    return function


_remove = _function("llama_kv_cache_seq_rm", [_context, _int, _int, _int], ctypes.c_bool)
_copy = _function("llama_kv_cache_seq_cp", [_context, _int, _int, _int, _int], None)
_get_logits = _function("llama_get_logits", [_context], ctypes.POINTER(ctypes.c_float))
_n_vocab = _function("llama_n_vocab", [_model], _int)
_n_layer = _function("llama_n_layer", [_model], _int)
_is_recurrent = _function("llama_model_has_recurrent", [_model], ctypes.c_bool)
_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_log_set = _function("llama_log_set", [_LogCallback, ctypes.c_void_p], None)

_errors = ErrorLog()
_log_callback = _LogCallback(_errors)  # the library holds a pointer to it
_log_set(_log_callback, None)
ik.llama_backend_init()


class IkLlamaCppRuntime(SequenceRuntime):
    """A ``Runtime`` over ik_llama.cpp, from a GGUF file."""

    def __init__(
        self,
        path: str | Path,
        *,
        context: int | None = None,
        threads: int | None = None,
        cache_type: str = "float16",
        exact: bool = True,
        rows: int = MAX_ROWS,
        progress: Progress = silent,
    ) -> None:
        """Load the model.

        ``context`` defaults to the model's, at most 4096; ``threads`` to the physical cores;
        ``cache_type`` of keys and values is ``float16`` or ``q8_0``. With ``exact``, sizes of pass are
        probed for batch invariance (once; the result is kept) and passes are padded to sizes that agree.
        ``rows`` are the most rows of logits that a pass is meant to have. The cache has all of its memory
        at once. Raises ``UserError`` where the file cannot be used.
        """
        file = GGUFFile(path)
        refuse_what_would_abort(file)
        if reason := why_not_on_ik(file):
            raise UserError(f"{file.path} {reason}; use --runtime onnx or llama-cpp")
        limit = int(file.metadata.get(f"{file.architecture}.context_length", DEFAULT_CONTEXT))
        context, threads = capacity(context, limit), threads or physical_cores()
        model = _load_model(file)
        cells = -(-context // _CELLS) * _CELLS
        self._context = _create_context(model, file, cells, threads, CACHE_TYPES[cache_type])
        self._close = weakref.finalize(self, _free, model, self._context)
        info = ModelInfo(
            name=str(file.metadata.get("general.name", file.path.stem)),
            architecture=file.architecture,
            vocab_size=_n_vocab(model),
            layers=_n_layer(model),
            context=context,
            weight_bytes=weight_bytes(file),
            device="cpu",
            runtime="ik-llama-cpp",
            max_rows=rows,
            trees=True,
        )
        super().__init__(info, min(MAX_LEAVES, rows), ik.llama_batch, cells)
        self._ids = np.zeros(cells, np.int32)  # of the tokens in the cache
        if exact:
            key = f"ik-llama-cpp-python {metadata.version('ik-llama-cpp-python')}, {cpu_name()}, {threads} threads, {cache_type}"
            self._prove(file.path, key, progress)

    def _prove(self, path: Path, key: str, progress: Progress) -> None:
        """Find the sizes of pass that agree, wherever in the cache, or remember them."""
        name = sha256(f"{store.sha256_of(path, progress)} {key}".encode()).hexdigest()[:32]
        kept = store.cache_dir() / "exact" / f"{name}.json"
        sizes = remembered_sizes(kept, key)
        if sizes is None:
            every = range(_LEAST_ROWS, PROBED_SIZES + 1)
            self.info = replace(self.info, pass_sizes=tuple(every))
            room = [start for start in _PROBED_AT if start + 2 * PROBED_SIZES < self.info.context]
            agreed = [agreeing_sizes(self, start, progress) for start in room]
            # all of them: a pass that is cut in two has parts of any size
            agree = bool(agreed) and all(set(found).issuperset(every) for found in agreed)
            sizes = tuple(every) if agree else ()
            if len(room) == len(_PROBED_AT):  # else not all were tried
                remember_sizes(kept, key, sizes)
        self.info = replace(
            self.info, pass_sizes=tuple(n for n in sizes if n <= self.info.max_rows)
        )

    def _run(
        self, tokens: Sequence[int], parents: Sequence[int] | None, logits: Logits, start: int
    ) -> FloatArray:
        if not self.info.pass_sizes or parents is not None:
            return super()._run(tokens, parents, logits, start)
        rows = len(tokens)
        self._ids[start : start + rows] = tokens
        room = (start // _CELLS + 1) * _CELLS - start  # rows before attention looks at more cells
        if rows > room:
            before: Logits = "all" if logits == "all" else "none"
            first = self._run(tokens[:room], None, before, start).copy()
            rest = self._run(tokens[room:], None, logits, start + room)
            return np.concatenate([first, rest]) if logits == "all" else rest
        size = self.info.padded(rows) if logits == "all" else rows
        extra = size - rows
        if size <= room:  # rows that nobody reads follow
            self._uncommitted += extra
            padded = [*tokens, *[tokens[-1]] * extra]
            return super()._run(padded, None, logits, start)[:rows]
        again = self._ids[start - extra : start].tolist()  # those before are computed again
        self._remove(0, start - extra)
        return super()._run([*again, *tokens], None, logits, start - extra)[extra:]

    def _decode(self) -> None:
        _errors.clear()
        if status := ik.llama_decode(self._context, self._batch):
            raise RuntimeError(f"llama_decode failed with {status}: {_errors.cause}")

    def _remove(self, sequence: int, start: int) -> None:
        if not _remove(self._context, sequence, start, -1):
            raise RuntimeError(f"ik_llama.cpp cannot forget the tokens after {start}")

    def _copy(self, source: int, target: int, start: int, end: int) -> None:
        _copy(self._context, source, target, start, end)

    def _buffer(self) -> Any:
        return _get_logits(self._context)


def _load_model(file: GGUFFile) -> Any:
    params = ik.llama_model_default_params()
    params.n_gpu_layers = 0
    params.repack_tensors, params.use_mmap = True, False
    _log_set(_log_callback, None)  # whoever else uses the library may have changed it
    _errors.clear()
    model = ik.llama_model_load_from_file(os.fsencode(file.path), params)
    if not model:
        raise UserError(f"ik_llama.cpp cannot load {file.path}: {_errors.cause}")
    if _is_recurrent(model):
        ik.llama_free_model(model)
        raise UserError(
            f"{file.path} is a recurrent model ({file.architecture}), which cannot forget rejected"
            " tokens: use a transformer"
        )
    return model


def _create_context(model: Any, file: GGUFFile, cells: int, threads: int, cache_type: int) -> Any:
    params = ik.llama_context_default_params()
    params.n_ctx = params.n_batch = cells
    params.n_ubatch = min(MAX_PASS, cells)
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn = True
    params.type_k = params.type_v = cache_type
    params.offload_kqv = False
    _errors.clear()
    created = ik.llama_init_from_model(model, params)
    if not created:
        ik.llama_free_model(model)
        raise UserError(
            f"ik_llama.cpp cannot make a cache of {cells} tokens for {file.path}: {_errors.cause};"
            " ask for a smaller --context"
        )
    return created


def _free(model: Any, context: Any) -> None:
    ik.llama_free(context)
    ik.llama_free_model(model)
