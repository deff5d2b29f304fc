"""OpenVINO GenAI: its own reader of GGUF files, its pipeline with paged attention."""

from __future__ import annotations

import gc
import json
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import openvino
import openvino_genai

from .common import converted, loss, pieces
from .openvino_gguf import EXACT, ROUNDED, describe, readable
from .serving import serve, timed

_VERSION = metadata.version("openvino-genai")
_THROUGH = {"Convert", "Subtract", "Multiply", "Reshape", "Transpose"}
"""What is between a weight and its use."""
_FACTS = "bench.json"
_PROPERTIES = {
    "kv_cache_precision": "KV_CACHE_PRECISION",
    "inference_precision": "INFERENCE_PRECISION_HINT",
    "dynamic_quantization_group_size": "DYNAMIC_QUANTIZATION_GROUP_SIZE",
}
"""Settings of the plugin; "" leaves one to OpenVINO."""
_CHUNK = 128
"""Rows of a pass of ``perplexity``."""


class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Hands tokens on as they come."""

    def __init__(self, put: Any) -> None:
        super().__init__()
        self.put = put
        self.calls = self.tokens = 0

    def write(self, tokens: int | list[int]) -> Any:
        """A step's tokens."""
        ids = [tokens] if isinstance(tokens, int) else list(tokens)
        self.calls += 1
        self.tokens += len(ids)
        self.put(ids)
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is kept back."""


class OpenVino:
    """A pipeline. No prefix is cached, so every prompt is read from its start."""

    def __init__(self, model: Path, draft: Path | None, request: dict[str, Any]) -> None:
        settings = request["settings"]
        self.model = model
        self.properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": request["threads"]}
        for name, property_ in _PROPERTIES.items():
            if settings[name]:
                self.properties[property_] = settings[name]
        self.speculation: dict[str, Any] = {
            name: settings[name]
            for name in ("num_assistant_tokens", "max_ngram_size")
            if name in settings
        }
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = request["context"]
        how = {"scheduler_config": scheduler, **self.properties}
        if "max_ngram_size" in settings:
            how["prompt_lookup"] = True
        if draft:
            how["draft_model"] = openvino_genai.draft_model(
                str(draft), "CPU", scheduler_config=scheduler, **self.properties
            )
        self.pipeline = openvino_genai.LLMPipeline(str(model), "CPU", **how)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """It does not report how much prompt lookup drafted."""
        started = perf_counter()
        config = openvino_genai.GenerationConfig(
            max_new_tokens=request["max_tokens"],
            apply_chat_template=False,
            do_sample=request["temperature"] > 0,
            **self.speculation,
        )
        if request["temperature"] > 0:
            config.temperature = request["temperature"]
            config.top_k = request["top_k"] or 2**31
            config.top_p = request["top_p"]
            config.rng_seed = request["seed"]
        if request["stop_ids"]:
            config.stop_token_ids = set(request["stop_ids"])
            config.set_eos_token_id(request["stop_ids"][0])
        else:
            config.ignore_eos = True
        prompt = openvino.Tensor(np.array([request["ids"]], dtype=np.int64))
        found: list[Any] = []

        def run(put: Any) -> None:
            streamer = Streamer(put)
            found.extend([self.pipeline.generate(prompt, config, streamer), streamer])

        reply = timed(pieces(run, request["stop_ids"]), started)
        result, streamer = found
        reply["passes"] = streamer.calls - 1  # each outputs tokens; the first is the prompt's
        if self.speculation:
            # A pass outputs one token after those that it accepts.
            reply["accepted"] = streamer.tokens - streamer.calls
        if metrics := result.extended_perf_metrics:
            passes = len(metrics.draft_model_metrics.raw_metrics.m_durations)
            reply |= {"draft_passes": passes, "drafted": passes}  # it drafts a token a pass
        return reply

    def perplexity(self, windows: list[list[int]]) -> dict[str, Any]:
        """By OpenVINO itself, of the model that the pipeline runs."""
        model = openvino.Core().compile_model(
            str(self.model / "openvino_model.xml"), "CPU", self.properties
        )
        request = model.create_infer_request()
        total, count = 0.0, 0
        for window in windows:
            request.reset_state()
            for start in range(0, len(window) - 1, _CHUNK):
                chunk, next_ = (window[s : s + _CHUNK] for s in (start, start + 1))
                end = start + len(chunk)
                found = request.infer(
                    {
                        "input_ids": np.array([chunk], dtype=np.int64),
                        "attention_mask": np.ones((1, end), dtype=np.int64),
                        "position_ids": np.arange(start, end, dtype=np.int64)[None],
                        "beam_idx": np.zeros(1, dtype=np.int32),
                    }
                )
                total += loss(found["logits"][0], next_)
                count += len(next_)
        return {"loss": total, "tokens": count}


def opened(request: dict[str, Any]) -> tuple[OpenVino, dict[str, Any]]:
    """``settings``: ``num_assistant_tokens`` for speculation, with ``max_ngram_size`` by prompt lookup, else
    by the draft model; those of ``_PROPERTIES``;
    ``eight_bits``: give its reader nothing that it would round."""
    settings, folder = request["settings"], request["folder"]
    eight = settings["eight_bits"]
    model, draft = _converted(request["model"], folder, eight), None
    if "num_assistant_tokens" in settings and "max_ngram_size" not in settings:
        draft = _converted(request["draft"], folder, eight)
    reply = {"version": f"openvino-genai {_VERSION}", **_facts(model)}
    if draft:
        facts = _facts(draft)
        reply |= {f"draft_{name}": facts[name] for name in ("weight_bytes", "parameters")}
        reply["weights"] += f"; draft: {facts['weights']}"
    return OpenVino(model, draft, request), reply


def _converted(source: str, folder: str, eight: bool) -> Path:
    kept = EXACT if eight else EXACT | ROUNDED

    def make(target: Path) -> None:
        file = target / "model.gguf"
        kinds, parameters = readable(source, file, kept)
        # The pipeline writes what it made of the file beside it.
        pipeline = openvino_genai.LLMPipeline(
            str(file), "CPU", enable_save_ov_model=True, ATTENTION_BACKEND="SDPA"
        )
        del pipeline
        gc.collect()
        file.unlink()
        facts = {
            "weights": describe(kinds, kept),
            "weight_bytes": _weight_bytes(target / "openvino_model.xml"),
            "parameters": parameters,
        }
        (target / _FACTS).write_text(json.dumps(facts), "utf-8")

    return converted(source, folder, f"openvino-{_VERSION}{'-8' * eight}", make)


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / _FACTS).read_text("utf-8"))
    return facts


def _weight_bytes(path: Path) -> int:
    """Of all constants but those that are only looked up in."""
    model = openvino.Core().read_model(str(path))
    return sum(
        op.get_byte_size()
        for op in model.get_ops()
        if op.get_type_name() == "Constant" and _uses(op) != {"Gather"}
    )


def _uses(op: Any) -> set[str]:
    """The types of the operations that take what is made of ``op``."""
    found: set[str] = set()
    for output in op.outputs():
        for use in output.get_target_inputs():
            node = use.get_node()
            name = node.get_type_name()
            found |= _uses(node) if name in _THROUGH else {name}
    return found


if __name__ == "__main__":
    serve(opened)
