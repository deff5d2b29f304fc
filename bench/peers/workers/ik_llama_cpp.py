"""ik_llama.cpp through the C functions of ik-llama-cpp-python.

Not through the package's ``generate``: that copies a vocabulary of logits in a loop of Python for every
token, and it has no way to repack weights.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from importlib import metadata
from time import perf_counter
from typing import Any

import numpy as np
from ik_llama_cpp import _ctypes_api as ik

from .common import windows_loss
from .serving import serve, timed

# Not among the package's bindings.
ik._lib.llama_kv_cache_seq_rm.argtypes = [ctypes.c_void_p, *[ctypes.c_int32] * 3]
ik._lib.llama_kv_cache_seq_rm.restype = ctypes.c_bool
ik._lib.llama_set_rng_seed.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
ik._lib.llama_set_rng_seed.restype = None


class IkLlamaCpp:
    """A model and its cache, one sequence."""

    def __init__(self, request: dict[str, Any]) -> None:
        settings = request["settings"]
        ik.llama_backend_init()
        options = ik.llama_model_default_params()
        options.n_gpu_layers = 0
        options.repack_tensors = settings["repack"]
        options.use_mmap = not settings["repack"]  # repacked in place
        self.model = ik.llama_model_load_from_file(request["model"].encode(), options)
        if not self.model:
            raise RuntimeError("ik_llama.cpp cannot load the model; the log says why")
        shape = ik.llama_context_default_params()
        shape.n_ctx, shape.n_batch = request["context"], settings["n_batch"]
        shape.n_ubatch = settings["n_batch"]
        shape.n_threads = shape.n_threads_batch = request["threads"]
        shape.flash_attn = settings["flash_attn"]
        self.context = ik.llama_init_from_model(self.model, shape)
        if not self.context:
            raise RuntimeError("ik_llama.cpp cannot make a context; the log says why")
        self.batch = ik.llama_batch_init(settings["n_batch"], 0, 1)
        self.most = settings["n_batch"]
        self.vocabulary = ik.llama_vocab_n_tokens(ik.llama_model_get_vocab(self.model))
        self.candidates = np.zeros(self.vocabulary, [("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self.cached: list[int] = []

    def read(self, tokens: Sequence[int], every: bool = False) -> None:
        """Append to the cache; logits of the last, or of ``every`` one."""
        for start in range(0, len(tokens), self.most):
            part = tokens[start : start + self.most]
            self.batch.n_tokens = len(part)
            for row, token in enumerate(part):
                self.batch.token[row] = token
                self.batch.pos[row] = len(self.cached) + row
                self.batch.n_seq_id[row] = 1
                self.batch.seq_id[row][0] = 0
                self.batch.logits[row] = every
            self.batch.logits[len(part) - 1] = True
            if status := ik.llama_decode(self.context, self.batch):
                raise RuntimeError(f"llama_decode failed with {status}; the log says why")
            self.cached += part

    def forget(self, length: int) -> None:
        """All after the first ``length``."""
        ik._lib.llama_kv_cache_seq_rm(self.context, 0, length, -1)
        del self.cached[length:]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Of an earlier answer, the cache keeps what the prompts share, unless ``fresh``."""
        started = perf_counter()
        ids, shared = request["ids"], 0
        if not request["fresh"]:
            pairs = enumerate(zip(ids[:-1], self.cached, strict=False))
            shared = next((n for n, (a, b) in pairs if a != b), min(len(ids) - 1, len(self.cached)))
        self.forget(shared)
        ik._lib.llama_set_rng_seed(self.context, request["seed"])
        reply = timed(self._stream(ids[shared:], request), started)
        return reply | {"passes": len(reply["token_ids"]) - 1}

    def _stream(self, tokens: list[int], request: dict[str, Any]) -> Iterator[list[int]]:
        stops = set(request["stop_ids"])
        for _ in range(request["max_tokens"]):
            self.read(tokens)
            tokens = [self._choose(request)]
            yield tokens
            if tokens[0] in stops:
                return

    def _choose(self, request: dict[str, Any]) -> int:
        logits = self._logits(-1)
        if not request["temperature"]:
            return int(logits.argmax())
        rows = self.candidates
        rows["id"], rows["logit"] = np.arange(self.vocabulary), logits
        array = ik.llama_token_data_array()
        array.data = rows.ctypes.data_as(ctypes.POINTER(ik.llama_token_data))
        array.size, array.selected = self.vocabulary, -1
        ik.llama_sample_temp(self.context, array, request["temperature"])
        ik.llama_sample_top_k(self.context, array, request["top_k"] or self.vocabulary, 1)
        ik.llama_sample_top_p(self.context, array, request["top_p"], 1)
        return int(ik.llama_sample_token(self.context, array))

    def _logits(self, row: int) -> np.ndarray[Any, Any]:
        """llama.cpp's own memory: the next pass overwrites it."""
        start = ik.llama_get_logits_ith(self.context, row)
        return np.ctypeslib.as_array(start, shape=(self.vocabulary,))

    def perplexity(self, windows: list[list[int]]) -> dict[str, Any]:
        """Of the weights as they were loaded."""

        def read(chunk: list[int]) -> np.ndarray[Any, Any]:
            self.read(chunk, every=True)
            return np.stack([self._logits(row) for row in range(len(chunk))])

        return windows_loss(windows, lambda: self.forget(0), read)


def opened(request: dict[str, Any]) -> tuple[IkLlamaCpp, dict[str, Any]]:
    """``settings``: ``repack`` weights as they are loaded, ``flash_attn``, ``n_batch``."""
    return IkLlamaCpp(request), {
        "version": f"ik-llama-cpp-python {metadata.version('ik-llama-cpp-python')}",
        "weights": "as in the file, through kernels of its own",
    }


if __name__ == "__main__":
    serve(opened)
