"""llama.cpp through llama-cpp-python, used as its documentation recommends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from .common import windows_loss
from .serving import serve, timed


class Lookup:
    """The library's prompt lookup; knows how much it drafted."""

    def __init__(self, max_ngram_size: int, num_pred_tokens: int) -> None:
        self._find = LlamaPromptLookupDecoding(max_ngram_size, num_pred_tokens)
        self.drafted = 0

    def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
        found = self._find(input_ids, **kwargs)
        self.drafted += len(found)
        return found


class LlamaCpp:
    """A model that knows how many passes it took."""

    def __init__(self, model: llama_cpp.Llama, lookup: Lookup | None) -> None:
        self.model, self.lookup, self.passes = model, lookup, 0
        evaluate = model.eval

        def counted(tokens: Sequence[int]) -> None:
            self.passes += 1
            evaluate(tokens)

        model.eval = counted

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The library verifies a draft by drawing each token anew, whatever the temperature."""
        started = perf_counter()
        self.passes = -1  # the prompt's is not counted
        if request["fresh"]:
            self.model.reset()
        self.model.set_seed(request["seed"])
        if not self.lookup:
            return timed(self._stream(request), started) | {"passes": self.passes}
        self.lookup.drafted = 0
        reply = timed(self._stream(request), started)
        # Each pass outputs one token besides the accepted ones.
        accepted = len(reply["token_ids"]) - 1 - self.passes
        return reply | {
            "passes": self.passes,
            "drafted": self.lookup.drafted,
            "accepted": accepted,
        }

    def _stream(self, request: dict[str, Any]) -> Iterator[list[int]]:
        stops, left = set(request["stop_ids"]), request["max_tokens"]
        for token in self.model.generate(
            request["ids"],
            temp=request["temperature"],
            top_k=request["top_k"],
            top_p=request["top_p"],
            min_p=0.0,
            repeat_penalty=1.0,
        ):
            yield [token]
            left -= 1
            if token in stops or not left:
                return

    def perplexity(self, windows: list[list[int]]) -> dict[str, Any]:
        """By the C functions that the library itself uses."""
        model, done = self.model, 0

        def forget() -> None:
            model.reset()
            model._ctx.kv_cache_clear()
            nonlocal done
            done = 0

        def read(chunk: list[int]) -> np.ndarray[Any, Any]:
            nonlocal done
            model._batch.set_batch(batch=chunk, n_past=done, logits_all=True)
            model._ctx.decode(model._batch)
            done += len(chunk)
            shape = (len(chunk), model.n_vocab())
            return np.ctypeslib.as_array(model._ctx.get_logits(), shape=shape)

        return windows_loss(windows, forget, read)


def opened(request: dict[str, Any]) -> tuple[LlamaCpp, dict[str, Any]]:
    """``settings``: with ``num_pred_tokens``, prompt lookup."""
    settings = request["settings"]
    lookup = None
    if "num_pred_tokens" in settings:
        lookup = Lookup(settings["max_ngram_size"], settings["num_pred_tokens"])
    model = llama_cpp.Llama(
        request["model"],
        n_ctx=request["context"],
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        n_batch=settings["n_batch"],
        n_gpu_layers=settings["n_gpu_layers"],
        flash_attn=settings["flash_attn"],
        draft_model=lookup,
        # Without it the library has room for the logits of n_batch tokens only, and fails after those.
        logits_all=lookup is not None,
        verbose=False,
    )
    return LlamaCpp(model, lookup), {
        "version": f"llama-cpp-python {llama_cpp.__version__}",
        "weights": "as in the file",
    }


if __name__ == "__main__":
    serve(opened)
