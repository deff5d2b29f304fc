"""ONNX Runtime GenAI: a model of its own builder, its own decoding loop and speculation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .common import converted, loss
from .serving import serve, timed

_CHUNK = 128
"""Rows of a pass of ``perplexity``."""
_SPECULATION = ("max_draft_tokens", "min_adaptive_k", "ngram_size", "ngram_chained_lookup")
_FACTS = "bench.json"
_PACKAGE = "onnxruntime-genai"


class Generating:
    """A model, and a generator for each answer: nothing is reused of earlier prompts."""

    def __init__(self, model: Any, settings: dict[str, Any]) -> None:
        self.model = model
        self.unasked: int | None = None
        self.speculation = {name: settings[name] for name in _SPECULATION if name in settings}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """With speculation it computes a round of tokens and outputs them one by one; here they come at once."""
        started = perf_counter()
        options = self._options(request)
        generator = self._generator(len(request["ids"]) + request["max_tokens"], options)
        reply = timed(self._stream(generator, request), started)
        if not self.speculation:
            return reply | {"passes": len(reply["token_ids"]) - 1}
        stats = generator.get_speculative_stats()
        passes = stats["target_verify_forward_passes"] + stats["standard_fallback_steps"]
        return reply | {
            "passes": passes - (self.unasked or 0),
            "draft_passes": stats["draft_forward_passes"],
            "drafted": stats["draft_tokens_proposed"],
            "accepted": stats["draft_tokens_accepted"],
        }

    def _options(self, request: dict[str, Any]) -> dict[str, Any]:
        if not request["temperature"]:
            return {"do_sample": False}
        return {
            "do_sample": True,
            "temperature": request["temperature"],
            "top_k": request["top_k"],
            "top_p": request["top_p"],
            "random_seed": request["seed"],
        }

    def _generator(self, length: int, options: dict[str, Any]) -> Any:
        import onnxruntime_genai

        parameters = onnxruntime_genai.GeneratorParams(self.model)
        parameters.set_search_options(max_length=length, **options)
        if self.speculation:
            parameters.set_speculative_options(**self.speculation)
        return onnxruntime_genai.Generator(self.model, parameters)

    def _stream(self, generator: Any, request: dict[str, Any]) -> Iterator[list[int]]:
        stops, self.unasked = set(request["stop_ids"]), None
        generator.append_tokens(np.array(request["ids"], dtype=np.int32))
        step: list[int] = []
        while not generator.is_done():
            generator.generate_next_token()
            step.append(int(generator.get_next_tokens()[0]))
            stopped = step[-1] in stops
            if self.speculation and not stopped:
                stats = generator.get_speculative_stats()
                if self.unasked is None:
                    # The first token, if not drafted, is of the prompt's pass.
                    self.unasked = stats["standard_fallback_steps"]
                if stats["tokens_buffered"] and not generator.is_done():
                    continue
            yield step
            if stopped:
                return
            step = []

    def perplexity(self, windows: list[list[int]]) -> dict[str, Any]:
        """By the logits of the prompt's passes."""
        total, count = 0.0, 0
        for window in windows:
            generator = self._generator(len(window) + 1, {"do_sample": False})
            for start in range(0, len(window) - 1, _CHUNK):
                chunk, next_ = (window[s : s + _CHUNK] for s in (start, start + 1))
                generator.append_tokens(np.array(chunk, dtype=np.int32))
                total += loss(generator.get_output("logits")[0], next_)
                count += len(next_)
        return {"loss": total, "tokens": count}


def opened(request: dict[str, Any]) -> tuple[Generating, dict[str, Any]]:
    """``settings``: ``quantization``, ``block_size`` and ``symmetric`` of the conversion; ``max_draft_tokens``
    for speculation, with ``ngram_size`` by n-grams of the context, else by the draft model."""
    import onnxruntime_genai

    settings = request["settings"]
    folder = _converted(request["model"], request["folder"], settings)
    draft = None
    if "max_draft_tokens" in settings and "ngram_size" not in settings:
        draft = _converted(request["draft"], request["folder"], settings)
    reply = {
        "version": f"onnxruntime-genai {metadata.version(_PACKAGE)}",
        "weights": describe(settings),
        **_facts(folder),
    }
    if draft:
        reply |= {f"draft_{name}": value for name, value in _facts(draft).items()}
    config = onnxruntime_genai.Config(str(folder))
    config.overlay(json.dumps(overlay(folder, draft, request["threads"])))
    return Generating(onnxruntime_genai.Model(config), settings), reply


def overlay(folder: Path, draft: Path | None, threads: int) -> dict[str, Any]:
    """What is changed of the configuration that the builder wrote.

    ``stop_ids`` end an answer. It has to have a token that does by itself: the last, which most models
    never output.
    """
    end = _config(folder)["model"]["vocab_size"] - 1
    options = {"intra_op_num_threads": threads}
    model: dict[str, Any] = {"eos_token_id": [end], "decoder": {"session_options": options}}
    if draft:
        theirs = _config(draft)["model"]["decoder"]
        theirs["filename"] = os.path.relpath(draft / theirs["filename"], folder)
        theirs["session_options"] |= options
        model["draft"] = theirs
    return {"model": model}


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "genai_config.json").read_text("utf-8"))
    return config


def describe(settings: dict[str, Any]) -> str:
    """What the builder made of the file's weights."""
    kind = "symmetric" if settings["symmetric"] else "with zero points"
    return (
        f"dequantized and quantized anew: {settings['quantization']}, "
        f"blocks of {settings['block_size']}, {kind}"
    )


def _converted(source: str, folder: str, settings: dict[str, Any]) -> Path:
    def make(target: Path) -> None:
        # In processes of their own: they leave much memory taken.
        checkpoint = target / "checkpoint"
        _run(f"{__package__}.onnxruntime_genai", source, str(checkpoint))
        _run(
            *("onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(target)),
            *("-p", "int4", "-e", "cpu", "-c", str(target / "cache"), "--extra_options"),
            f"algo_config={settings['quantization']}",
            f"block_size={settings['block_size']}",
            f"is_symmetric={str(settings['symmetric']).lower()}",
        )
        facts = {
            "parameters": json.loads((checkpoint / _FACTS).read_text("utf-8")),
            "weight_bytes": weight_bytes(target / "model.onnx"),
        }
        (target / _FACTS).write_text(json.dumps(facts), "utf-8")
        shutil.rmtree(checkpoint)
        shutil.rmtree(target / "cache", ignore_errors=True)

    kind = "symmetric" if settings["symmetric"] else "asymmetric"
    how = f"ortgenai-{metadata.version(_PACKAGE)}-{settings['quantization']}-{settings['block_size']}-{kind}"
    return converted(source, folder, how, make)


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / _FACTS).read_text("utf-8"))
    return facts


def _run(*arguments: str) -> None:
    """A module, by this Python. Raises an error with its last line if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, encoding="utf-8", errors="replace"
    )
    print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
    if done.returncode < 0:
        raise RuntimeError(f"{arguments[0]} was ended by signal {-done.returncode}: out of memory?")
    if done.returncode:
        output = done.stderr.strip() or "no output"
        raise RuntimeError(f"{arguments[0]} failed: {output.splitlines()[-1]}")


def dequantize(source: str, target: Path) -> None:
    """A folder that the builder reads, in 16 bits, by the transformers' reader of GGUF files."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = Path(source)
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        dtype=torch.float16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(target)
    (target / _FACTS).write_text(str(model.num_parameters()), "utf-8")


def weight_bytes(path: Path) -> int:
    """Of all weights but those that are only looked up in."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    read = {name for node in graph.node if node.op_type != "Gather" for name in node.input}
    return sum(_bytes(tensor) for tensor in graph.initializer if tensor.name in read)


def _bytes(tensor: Any) -> int:
    lengths = [int(entry.value) for entry in tensor.external_data if entry.key == "length"]
    return lengths[0] if lengths else len(tensor.raw_data)


if __name__ == "__main__":
    if sys.argv[1:]:
        dequantize(sys.argv[1], Path(sys.argv[2]))
    else:
        serve(opened)
