"""Hugging Face's transformers: its own reader of GGUF files, and ``generate``."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import transformers

from .common import loss, pieces
from .serving import serve, timed

_CHUNK = 128
"""Rows of a pass of ``perplexity``."""


class Counter:
    """The passes of a model: how many, over how many tokens, in how many seconds."""

    def __init__(self, model: Any) -> None:
        self.reset()
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after)

    def reset(self) -> None:
        """From now on."""
        self.rows: list[int] = []
        self.seconds: list[float] = []

    def _before(self, _: Any, arguments: Any, named: dict[str, Any]) -> None:
        ids = named["input_ids"] if "input_ids" in named else arguments[0]
        self.rows.append(ids.shape[1])
        self.started = perf_counter()

    def _after(self, *_: Any) -> None:
        self.seconds.append(perf_counter() - self.started)


class Streamer:
    """Hands tokens on as they come; the first are the prompt."""

    def __init__(self, put: Any) -> None:
        self.hand_on = put
        self.is_prompt = True

    def put(self, tokens: Any) -> None:
        """A step's tokens."""
        if not self.is_prompt:
            self.hand_on(tokens.reshape(-1).tolist())
        self.is_prompt = False

    def end(self) -> None:
        """Nothing is kept back."""


class Transformers:
    """A model, and a draft model or none. ``generate`` starts from an empty cache."""

    def __init__(self, request: dict[str, Any]) -> None:
        settings = request["settings"]
        self.model = read(request["model"], settings["dtype"])
        self.passes = Counter(self.model)
        self.how = {name: value for name, value in settings.items() if name != "dtype"}
        self.draft_passes = None
        if "num_assistant_tokens" in settings:
            draft = read(request["draft"], settings["dtype"])
            self.draft_passes = Counter(draft)
            self.how["assistant_model"] = draft
            # These are the draft model's own.
            for name in list(self.how):
                if name in ("num_assistant_tokens", "assistant_confidence_threshold"):
                    setattr(draft.generation_config, name, self.how.pop(name))

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """It does not report how much it drafted: that is counted by the rows of its passes."""
        started = perf_counter()
        ids = torch.tensor([request["ids"]])
        stops = request["stop_ids"]
        how = {
            "max_new_tokens": request["max_tokens"],
            "do_sample": request["temperature"] > 0,
            "eos_token_id": stops or None,
            "pad_token_id": 0,
        }
        if request["temperature"] > 0:
            torch.manual_seed(request["seed"])
            how |= {name: request[name] for name in ("temperature", "top_k", "top_p")}
        self.passes.reset()
        if self.draft_passes:
            self.draft_passes.reset()

        def run(put: Any) -> None:
            self.model.generate(
                ids, attention_mask=torch.ones_like(ids), streamer=Streamer(put), **how, **self.how
            )

        reply = timed(pieces(run, stops), started)
        passes = len(self.passes.rows) - 1
        reply |= {"passes": passes, "pass_s": sum(self.passes.seconds[1:])}
        if self.how:
            # Each pass is over one output token and the tokens drafted after it; the first is over the prompt.
            drafted = sum(self.passes.rows) - len(request["ids"]) - passes
            reply |= {"drafted": drafted, "accepted": len(reply["token_ids"]) - 1 - passes}
        if self.draft_passes:
            reply["draft_passes"] = len(self.draft_passes.rows)
            reply["draft_s"] = sum(self.draft_passes.seconds)
        return reply

    def perplexity(self, windows: list[list[int]]) -> dict[str, Any]:
        """By the logits of passes over pieces of each window."""
        total, count = 0.0, 0
        for window in windows:
            cache = transformers.DynamicCache(config=self.model.config)
            for start in range(0, len(window) - 1, _CHUNK):
                chunk, next_ = (window[s : s + _CHUNK] for s in (start, start + 1))
                with torch.inference_mode():
                    found = self.model(torch.tensor([chunk]), past_key_values=cache)
                total += loss(found.logits[0].float().numpy(), next_)
                count += len(next_)
        return {"loss": total, "tokens": count}


def read(path: str, dtype: str) -> Any:
    """A GGUF file's model, in numbers of ``dtype``."""
    file = Path(path)
    return transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        dtype=getattr(torch, dtype),
        quantization_config=transformers.GgufConfig(dequantize=True),
    ).eval()


def best_dtype() -> str:
    """Half the bytes where the processor computes in them."""
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def weight_bytes(model: Any) -> int:
    """Of all weights but an embedding that is only looked up in."""
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    return sum(tensor.nbytes for tensor in model.parameters() if tied or tensor is not embedding)


def opened(request: dict[str, Any]) -> tuple[Transformers, dict[str, Any]]:
    """``settings``: ``dtype``, "auto" or a name of torch's; the rest is given to
    ``generate``: with ``num_assistant_tokens`` the draft model drafts."""
    torch.set_num_threads(request["threads"])
    settings = request["settings"]
    if settings["dtype"] == "auto":
        settings["dtype"] = best_dtype()
    worker = Transformers(request)
    reply = {
        "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "weights": f"dequantized to {settings['dtype']}",
        "weight_bytes": weight_bytes(worker.model),
        "parameters": worker.model.num_parameters(),
    }
    if draft := worker.how.get("assistant_model"):
        reply |= {
            "draft_weight_bytes": weight_bytes(draft),
            "draft_parameters": draft.num_parameters(),
        }
    return worker, reply


if __name__ == "__main__":
    serve(opened)
