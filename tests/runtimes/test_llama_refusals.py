"""What would make llama.cpp end the process is refused in one line; ``auto`` takes what runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.errors import UserError
from edgespec.loading import candidates
from edgespec.local_model import find
from edgespec.models.gguf import GGUFFile
from edgespec.progress import silent
from edgespec.runtimes.llama_refusals import why_not
from tests.gguf_copy import Typed, changed_copy
from tests.tiny import tiny_gguf

pytest.importorskip("llama_cpp")


def load(path: Path) -> None:
    from edgespec.runtimes.llama_cpp.runtime import LlamaCppRuntime

    LlamaCppRuntime(path)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    names = ("llama", "qwen2", "qwen3", "smollm3", "phi3", "gemma3")
    return {name: tiny_gguf(folder / f"{name}.gguf", name) for name in names}


# Each ended the process of llama.cpp 0.3.36. Architecture, keys, and what the line names.
ABORTS: list[tuple[str, dict[str, Typed], str]] = [
    ("llama", {"rope.scaling.type": ("dynamic", "STRING")}, r"rope\.scaling\.type"),
    ("gemma3", {"rope.scaling.type": ("", "STRING")}, r"rope\.scaling\.type"),
    ("qwen2", {"rope.dimension_count": (32, "UINT32")}, r"rope\.dimension_count"),
    ("qwen3", {"rope.dimension_count": (64, "UINT32")}, r"rope\.dimension_count"),
    ("smollm3", {"rope.dimension_count": (16, "UINT32")}, r"rope\.dimension_count"),
    ("phi3", {"rope.dimension_count": (33, "UINT32")}, r"rope\.dimension_count"),
    ("llama", {"expert_count": (4, "UINT32")}, "expert_count"),
    ("llama", {"expert_used_count": (2, "UINT32")}, "expert_used_count"),
    (
        "llama",
        {"expert_count": (2, "UINT32"), "expert_used_count": (3, "UINT32")},
        "expert_used_count",
    ),
    (
        "llama",
        {
            "expert_count": (4, "UINT32"),
            "expert_used_count": (2, "UINT32"),
            "expert_group_count": (3, "UINT32"),
        },
        "expert_group_count",
    ),
    ("llama", {"nextn_predict_layers": (9, "UINT32")}, "nextn_predict_layers"),
]


@pytest.mark.parametrize(("architecture", "keys", "message"), ABORTS)
def test_keys_that_llama_cpp_aborts_on(
    tmp_path: Path,
    bases: dict[str, Path],
    architecture: str,
    keys: dict[str, Typed],
    message: str,
) -> None:
    named = {f"{architecture}.{key}": value for key, value in keys.items()}
    path = changed_copy(bases[architecture], tmp_path / "a.gguf", keys=named)
    with pytest.raises(UserError, match=message) as caught:
        load(path)
    assert "a.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("short", ["attn_norm", "output_norm", "attn_q_norm", "bias"])
def test_vectors_in_16_bits_run_elsewhere(
    tmp_path: Path, bases: dict[str, Path], short: str
) -> None:
    def narrow(name: str, data: Any) -> Any:
        return data.astype(np.float16) if short in name and data.ndim == 1 else data

    base = bases["qwen2" if short == "bias" else "qwen3"]
    path = changed_copy(base, tmp_path / "a.gguf", tensors=narrow)
    with pytest.raises(UserError, match=r"F16, and llama\.cpp takes norms and biases"):
        load(path)
    model = find(str(path), silent)
    assert "llama-cpp" in model.refusals
    assert [spec.name for spec in candidates(model)] == ["onnx"]


def test_whole_models_are_not_refused(bases: dict[str, Path], smollm2: Path) -> None:
    for path in (*bases.values(), smollm2):
        assert why_not(GGUFFile(path)) is None


def test_what_nobody_foresaw_ends_in_one_line() -> None:
    """An assertion of llama.cpp ends the process: with the code of an error and without a core dump."""
    code = (
        "from edgespec.runtimes.llama_cpp import runtime\n"
        "runtime.llama._lib.ggml_abort(b'some.cpp', 7, b'GGML_ASSERT(%s) failed', b'a < b')"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert "a < b" in found.stderr
