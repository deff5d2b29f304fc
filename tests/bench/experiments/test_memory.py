from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec.bench.experiments import memory
from edgespec.models.gguf import GGUFFile
from tests.bench.conftest import Run


def test_the_cache_of_smollm2(smollm2: Path) -> None:
    layers, kv_heads, head_dim = 30, 3, 64
    numbers = layers * 2 * kv_heads * head_dim * 100
    file = GGUFFile(smollm2)
    assert memory.cache_bytes(file, 100, "onnx") == 2 * numbers
    assert memory.cache_bytes(file, 100, "llama-cpp") == 2 * numbers


def test_the_program(run: Run, smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    run(memory.main, smollm2, "--context", 512, "--context", 1024, "--json", out)
    for figures, context in zip(json.loads(out.read_text())["figures"], (512, 1024), strict=True):
        assert figures["context"] == context
        stages = [figures[name] for name in ("imported", "opened", "generated")]
        assert stages == sorted(stages)
        assert figures["weights"] == smollm2.stat().st_size
        assert stages[0] < figures["weights"] < stages[-1]  # the model is really in memory
        ratio = stages[-1] / (figures["weights"] + figures["cache"])
        assert figures["ratio"] == pytest.approx(ratio)
        assert figures["predicted_ratio"] == pytest.approx(1, abs=0.08)
