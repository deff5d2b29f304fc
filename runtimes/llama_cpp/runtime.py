"""llama.cpp, through the C functions that llama-cpp-python exposes. Extra ``[llama]``.

llama.cpp's kernels depend on the size of a pass, so no sizes are promised to agree (``pass_sizes``).

A draft with a trimmed head (``edgespec.export.sources.trimmed``) has a vocabulary of its own in
llama.cpp, of the kept tokens. Its input is every token's embedding, looked up here.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.core.runtime import DEFAULT_CONTEXT, MAX_ROWS, FloatArray, ModelInfo, capacity
from edgespec.device.machine import physical_cores
from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.models.trimmed import EMBEDDING, TOKEN_IDS, whole_embedding
from edgespec.runtimes.llama_cpp import does_without_flash_attention
from edgespec.runtimes.sequences import (
    CACHE_TYPES,
    MAX_LEAVES,
    MAX_PASS,
    ErrorLog,
    SequenceRuntime,
    pointer,
    refuse_what_would_abort,
    weight_bytes,
)

try:
    from llama_cpp import llama_cpp as llama
except ImportError as error:
    raise UserError(
        "the llama-cpp runtime is not installed: pip install 'edgespec[llama]'"
    ) from error
except (OSError, RuntimeError) as error:  # the package is there, its shared library does not load
    raise UserError(f"llama-cpp-python does not load: {error}; install it again") from error


_SCALE_PROBE, _SCALE_TOLERANCE = 4, 0.1
"""Tokens to find the scale of embeddings with; their logits' error, as a share of their deviation."""

_errors = ErrorLog()
_log_callback = llama.llama_log_callback(_errors)  # llama.cpp holds a pointer to it
llama.llama_log_set(_log_callback, None)
llama.llama_backend_init()


def _end(message: bytes) -> None:
    """In place of a core dump: an assertion of llama.cpp ends the process, whatever is done here."""
    text = " ".join(message.decode("utf-8", "replace").split())
    os.write(2, f"Error: llama.cpp ended the process: {text}; try --runtime onnx\n".encode())
    os._exit(2)


with contextlib.suppress(AttributeError):  # not every build exports it
    _abort_callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(_end)  # ggml holds a pointer to it
    llama._lib.ggml_set_abort_callback(_abort_callback)


class LlamaCppRuntime(SequenceRuntime):
    """A ``Runtime`` over llama.cpp, from a GGUF file."""

    def __init__(
        self,
        path: str | Path,
        *,
        context: int | None = None,
        threads: int | None = None,
        device: str = "auto",
        cache_type: str = "float16",
        rows: int = MAX_ROWS,
    ) -> None:
        """Load the model.

        ``context`` defaults to the model's, at most 4096; ``threads`` to the physical cores.
        ``device`` is ``auto``, ``cpu``, ``gpu`` or ``gpu:N``. ``cache_type`` of keys and values is
        ``float16`` or ``q8_0``, which flash attention is needed for: llama.cpp turns it on itself.
        ``rows`` are the most rows of logits that a pass is meant to have. The cache has all of its
        memory at once. Raises ``UserError`` where the file or the device cannot be used.
        """
        file = GGUFFile(path)
        refuse_what_would_abort(file)
        device = choose_device(device)
        embedding = _Embedding(file) if TOKEN_IDS in file.metadata else None
        limit = int(file.metadata.get(f"{file.architecture}.context_length", DEFAULT_CONTEXT))
        context = capacity(context, limit)
        model = _load_model(file, device)
        leaves = min(MAX_LEAVES, rows)
        threads = threads or physical_cores()
        cache = _create_context(model, file, context, threads, device, leaves, cache_type)
        self._context, self._memory = cache, llama.llama_get_memory(cache)
        self._close = weakref.finalize(self, _free, model, cache)
        info = ModelInfo(
            name=str(file.metadata.get("general.name", file.path.stem)),
            architecture=file.architecture,
            vocab_size=llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)),
            layers=llama.llama_model_n_layer(model),
            context=context,
            weight_bytes=weight_bytes(file),
            device=device,
            runtime="llama-cpp",
            token_ids=tuple(file.metadata[TOKEN_IDS]) if embedding else None,
            max_rows=rows,
            trees=True,
            hidden_size=llama.llama_model_n_embd(model),
        )
        super().__init__(info, leaves, llama.llama_batch, context)
        self._embedding: _Embedding | None = None
        if embedding:
            self._feed_embeddings(embedding, file)

    def _feed(self, tokens: Sequence[int]) -> None:
        if self._embedding:
            self._embedded = self._embedding(tokens)  # alive until the pass is done
            self._batch.embd = pointer(self._embedded, ctypes.c_float)
        else:
            super()._feed(tokens)

    def _decode(self) -> None:
        _errors.clear()
        if status := llama.llama_decode(self._context, self._batch):
            raise RuntimeError(f"llama_decode failed with {status}: {_errors.cause}")

    def _remove(self, sequence: int, start: int) -> None:
        if not llama.llama_memory_seq_rm(self._memory, sequence, start, -1):
            raise RuntimeError(f"llama.cpp cannot forget the tokens after {start}")

    def _copy(self, source: int, target: int, start: int, end: int) -> None:
        llama.llama_memory_seq_cp(self._memory, source, target, start, end)

    def _buffer(self) -> Any:
        return llama.llama_get_logits(self._context)

    def _set_features(self, wanted: bool) -> None:
        llama.llama_set_embeddings(self._context, wanted)

    def _feature_buffer(self) -> Any:
        return llama.llama_get_embeddings(self._context)

    def _feed_embeddings(self, embedding: _Embedding, file: GGUFFile) -> None:
        """From now on give llama.cpp embeddings in place of tokens.

        Gemma's graph scales the embeddings that it looks up itself and, in some versions, not those
        that it is given. Which it is shows in the logits of a few tokens that it knows.
        """
        count = min(_SCALE_PROBE, self.info.vocab_size, self.info.context)
        kept = np.linspace(0, self.info.vocab_size - 1, count).astype(int)
        token_ids = [file.metadata[TOKEN_IDS][token] for token in kept]
        expected = self.forward(kept.tolist()).copy()
        self._embedding, self._batch.token = embedding, None
        for scale in (1.0, math.sqrt(embedding.width)):
            embedding.scale = np.float32(scale)
            error = np.abs(self.forward(token_ids) - expected).mean()
            if error < _SCALE_TOLERANCE * expected.std():
                return
        self.close()
        raise UserError(
            f"llama.cpp does not take the embeddings of {file.architecture} from outside; "
            "use --runtime onnx, or a draft that is not trimmed"
        )


class _Embedding:
    """A trimmed model's input embedding; only the rows that are looked up become resident."""

    def __init__(self, file: GGUFFile) -> None:
        from gguf import GGMLQuantizationType

        self._row_of, self._rows = whole_embedding(file)
        info = file.tensors[EMBEDDING]
        self._type, self.width = GGMLQuantizationType[info.type], info.shape[-1]
        self.scale = np.float32(1)
        try:
            self([0])
        except NotImplementedError as error:
            raise UserError(
                f"{file.path} has an embedding of type {info.type}, which edgespec cannot read"
            ) from error

    def __call__(self, tokens: Sequence[int]) -> FloatArray:
        """Float32 ``[len(tokens), width]``."""
        from gguf.quants import dequantize

        rows = dequantize(self._rows[self._row_of[np.asarray(tokens, np.intp)]], self._type)
        return np.asarray(rows * self.scale, np.float32)


def choose_device(device: str) -> str:
    """``cpu`` or ``gpu:N``, what ``device`` means on this machine."""
    can_offload = bool(llama.llama_supports_gpu_offload())
    if device == "auto":
        device = "gpu" if can_offload else "cpu"
    kind, _, number = device.partition(":")
    if device == "cpu":
        return device
    if kind != "gpu" or not (number or "0").isdecimal():
        raise UserError(f"the llama-cpp runtime has no device {device!r}: use auto, cpu or gpu[:N]")
    if not can_offload:
        raise UserError(
            "this llama-cpp-python was built without GPU support: use --device cpu, or build it with it"
        )
    return f"gpu:{int(number or 0)}"


def _load_model(file: GGUFFile, device: str) -> Any:
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    if device == "cpu":  # read, not mapped: what is repacked for the kernels is then there once
        params.load_mode = llama.LLAMA_LOAD_MODE_NONE
    else:
        params.n_gpu_layers = 999  # every layer
        params.split_mode = llama.LLAMA_SPLIT_MODE_NONE
        params.main_gpu = int(device.removeprefix("gpu:"))
    llama.llama_log_set(_log_callback, None)  # whoever else uses the library may have changed it
    _errors.clear()
    model = llama.llama_model_load_from_file(os.fsencode(file.path), params)
    if not model:
        raise UserError(f"llama.cpp cannot load {file.path}: {_errors.cause}")
    if llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model):
        llama.llama_model_free(model)
        raise UserError(
            f"{file.path} is a recurrent model ({file.architecture}), which cannot forget rejected"
            " tokens: use a transformer"
        )
    return model


def _create_context(
    model: Any,
    file: GGUFFile,
    context: int,
    threads: int,
    device: str,
    leaves: int,
    cache_type: str,
) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = context
    params.n_ubatch = min(MAX_PASS, context)
    params.n_threads = params.n_threads_batch = threads
    params.n_seq_max, params.kv_unified = leaves, True
    params.type_k = params.type_v = CACHE_TYPES[cache_type]
    if device == "cpu" and does_without_flash_attention(_head_dim(model, file), cache_type):
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.swa_full = True  # or sliding layers lose rows that `truncate` must be able to return to
    params.offload_kqv = params.op_offload = device != "cpu"
    _errors.clear()
    created = llama.llama_init_from_model(model, params)
    if not created:
        llama.llama_model_free(model)
        raise UserError(
            f"llama.cpp cannot make a cache of {context} tokens for {file.path}: {_errors.cause};"
            " ask for a smaller --context"
        )
    return created


def _head_dim(model: Any, file: GGUFFile) -> int:
    heads = max(1, llama.llama_model_n_head(model))  # a model without attention has none
    usual = llama.llama_model_n_embd(model) // heads
    return int(file.metadata.get(f"{file.architecture}.attention.key_length", usual))


def _free(model: Any, context: Any) -> None:
    llama.llama_free(context)
    llama.llama_model_free(model)
