"""What a graph does not compute is refused by name, before anything is built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgespec import open_runtime
from edgespec.errors import UserError
from edgespec.export import build_onnx
from edgespec.loading import candidates
from edgespec.local_model import find
from edgespec.models.gguf import GGUFFile
from edgespec.progress import silent
from tests.gguf_copy import Typed, changed_copy
from tests.onnx_support import ARCHITECTURES
from tests.tiny import tiny_gguf

Zeros = tuple[int, ...]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPEC_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: tiny_gguf(folder / f"{name}.gguf", name) for name in ARCHITECTURES}


# What is refused. Each: keys, tensors that are added, and what the line must name.
REFUSED: dict[str, tuple[dict[str, Typed], dict[str, Zeros], str]] = {
    "scales": ({}, {"blk.1.ffn_up.scale": (1,)}, "blk.1.ffn_up.scale"),
    "sub-norm": ({}, {"blk.0.ffn_sub_norm.weight": (512,)}, "ffn_sub_norm"),
    "another layer": ({}, {"blk.2.attn_norm.weight": (256,)}, "blk.2.attn_norm"),
    "joined and apart": ({}, {"blk.0.attn_qkv.weight": (512, 256)}, "attn_q"),
    "norms of heads": ({}, {"blk.0.attn_q_norm.weight": (64,)}, "attn_q_norm"),
    "yarn": ({"rope.scaling.type": ("yarn", "STRING")}, {}, "yarn.*rope.scaling.type"),
    "longrope": ({"rope.scaling.type": ("longrope", "STRING")}, {}, "rope.scaling.type"),
    "unknown scaling": ({"rope.scaling.type": ("ntk", "STRING")}, {}, "ntk"),
    "heads per layer": (
        {"attention.head_count_kv": ([2, 1], "UINT32")},
        {},
        "head_count_kv per layer",
    ),
    "widths per layer": (
        {"feed_forward_length": ([512, 256], "UINT32")},
        {},
        "feed_forward_length per layer",
    ),
    "width": ({"feed_forward_length": (256, "UINT32")}, {}, "feed_forward_length"),
    "experts": (
        {"expert_count": (4, "UINT32"), "expert_used_count": (2, "UINT32")},
        {},
        "mixture of experts",
    ),
    "not causal": ({"attention.causal": (False, "BOOL")}, {}, "attention.causal"),
    "soft cap": ({"final_logit_softcapping": (30.0, "FLOAT32")}, {}, "final_logit_softcapping"),
    "clamp": ({"attention.clamp_kqv": (8.0, "FLOAT32")}, {}, "clamp_kqv"),
    "logit scale": ({"logit_scale": (0.5, "FLOAT32")}, {}, "logit_scale"),
    "extrapolation": ({"rope.scaling.yarn_ext_factor": (1.0, "FLOAT32")}, {}, "yarn_ext_factor"),
    "predicted layers": ({"nextn_predict_layers": (1, "UINT32")}, {}, "nextn_predict_layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_and_auto_goes_elsewhere(
    tmp_path: Path, bases: dict[str, Path], case: str
) -> None:
    keys, more, message = REFUSED[case]
    keys = {f"llama.{key}": value for key, value in keys.items()}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in more.items()}
    path = changed_copy(bases["llama"], tmp_path / "a.gguf", keys=keys, more=zeros)
    with pytest.raises(UserError, match=message) as caught:
        open_runtime(path, "onnx")
    assert "a.gguf" in str(caught.value)
    assert "--runtime" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):
        build_onnx(path, tmp_path / "built")
    model = find(str(path), silent)
    assert "onnx" not in [spec.name for spec in candidates(model)] or len(candidates(model)) == 1


@pytest.mark.parametrize(
    ("architecture", "tensor"),
    [
        ("gemma3", "post_ffw_norm"),
        ("gemma3", "attn_q_norm"),
        ("qwen3", "attn_k_norm"),
        ("llama", "ffn_norm"),
    ],
)
def test_a_missing_norm_is_not_taken_for_none(
    tmp_path: Path, bases: dict[str, Path], architecture: str, tensor: str
) -> None:
    if architecture not in bases:
        pytest.skip("needs sliding windows")
    path = changed_copy(
        bases[architecture],
        tmp_path / "a.gguf",
        tensors=lambda name, data: None if name == f"blk.1.{tensor}.weight" else data,
    )
    with pytest.raises(UserError, match=f"no tensor blk.1.{tensor}.weight"):
        build_onnx(path, tmp_path / "built")


def test_a_vocabulary_of_another_size(tmp_path: Path, bases: dict[str, Path]) -> None:
    tokens = GGUFFile(bases["llama"]).metadata["tokenizer.ggml.tokens"]
    keys: dict[str, Typed] = {"tokenizer.ggml.tokens": (tokens[:-1], "STRING")}
    path = changed_copy(bases["llama"], tmp_path / "a.gguf", keys=keys)
    with pytest.raises(UserError, match="rows in token_embd"):
        build_onnx(path, tmp_path / "built")
