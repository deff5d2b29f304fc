"""Time of a pass by operator on the onnx runtime, and the least time that memory bandwidth allows."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from edgespec.bench.child import in_child
from edgespec.bench.workloads import own_text
from edgespec.core.runtime_spec import LoadOptions
from edgespec.errors import UserError
from edgespec.export import build_onnx
from edgespec.loading import built_folder
from edgespec.models.tokenizer import Tokenizer
from edgespec.progress import Progress, silent
from edgespec.runtimes import get

_CONTEXT = 128
"""Tokens in the cache."""
_PASSES = 30


def profile_pass(
    model: Path, tokenizer: Tokenizer, bandwidth: float, threads: int, progress: Progress = silent
) -> dict[str, Any]:
    """``Results.profile`` without ``own_share``: plain decoding of a GGUF file, a token a pass.

    ``bandwidth`` is what memory gives, bytes/s. Profiling itself makes passes a little slower. Raises
    ``UserError`` where the model cannot be built for the onnx runtime.
    """
    packed = get("onnx").packs("cpu", None)
    folder = built_folder(model, progress, packed=packed)
    build_onnx(model, folder, progress, packed=packed)
    tokens = tokenizer.encode(own_text())[:_CONTEXT]
    with tempfile.TemporaryDirectory() as name:
        weight_bytes = in_child(_decode, folder, tokens, threads, Path(name) / "passes")
        [path] = Path(name).iterdir()
        operators, pass_s = read_profile(json.loads(path.read_text("utf-8")), _PASSES)
    return {
        "operators": operators,
        "pass_s": pass_s,
        "bytes": weight_bytes,
        "bandwidth": bandwidth,
        "floor_s": weight_bytes / bandwidth,
    }


def _decode(folder: Path, tokens: list[int], threads: int, profile: Path) -> int:
    """Decode under the profiler; what a pass reads, in bytes."""
    from edgespec.core.decoding import prefill

    options = LoadOptions(context=512, threads=threads, device="cpu", profile=profile)
    runtime = get("onnx").load(folder, "built", options)
    prefill(runtime, tokens)
    for _ in range(_PASSES + 2):  # the first are still warming up
        runtime.forward(tokens[-1:])
        runtime.keep([0])
    weight_bytes = runtime.info.weight_bytes
    runtime.close()
    return weight_bytes


def read_profile(events: list[dict[str, Any]], passes: int) -> tuple[list[dict[str, Any]], float]:
    """Operators (``name``, ``count``, ``seconds`` of one pass, the longest first) and the median pass's seconds,
    of the last ``passes`` in ONNX Runtime's trace."""
    runs = [event for event in events if event["name"] == "model_run"][-passes:]
    if len(runs) < passes:
        raise UserError("ONNX Runtime wrote no profile of all passes; is the disk full?")
    begin = min(run["ts"] for run in runs)
    seconds, counts = defaultdict[str, float](float), defaultdict[str, int](int)
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= begin:
            operator = event["args"]["op_name"]
            seconds[operator] += event["dur"] / 1e6 / passes
            counts[operator] += 1
    operators = [
        {"name": name, "count": round(counts[name] / passes), "seconds": seconds[name]}
        for name in sorted(seconds, key=lambda name: -seconds[name])
    ]
    return operators, statistics.median(run["dur"] / 1e6 for run in runs)
