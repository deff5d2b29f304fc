"""ik_llama.cpp, a fork of llama.cpp that is made for processors, through the C functions of
ik-llama-cpp-python. Extra ``[ik]``.

Weights are repacked as they are loaded, for kernels that read several rows of them at once. Which kernel
computes a row depends on the rows beside it, so sizes of pass do not agree and exactness is not promised.
A pass has either logits or embeddings, so there are no features.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgespec.core.runtime import DEFAULT_CONTEXT, MAX_ROWS, ModelInfo, capacity
from edgespec.device.machine import physical_cores
from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.runtimes.ik_llama_cpp import why_not
from edgespec.runtimes.sequences import (
    CACHE_TYPES,
    MAX_LEAVES,
    MAX_PASS,
    ErrorLog,
    SequenceRuntime,
    refuse_what_would_abort,
    weight_bytes,
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
        rows: int = MAX_ROWS,
    ) -> None:
        """Load the model.

        ``context`` defaults to the model's, at most 4096; ``threads`` to the physical cores;
        ``cache_type`` of keys and values is ``float16`` or ``q8_0``. ``rows`` are the most rows of logits that
        a pass is meant to have. The cache has all of its memory at once. Raises ``UserError`` where the file cannot be used.
        """
        file = GGUFFile(path)
        refuse_what_would_abort(file)
        if reason := why_not(file):
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
    # Without it a token after 7,000 takes 16 % less time (1.5B, two cores), but the prompt 11 % more.
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
