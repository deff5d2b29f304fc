"""Everything in a GGUF file is computed as llama.cpp does it, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import kernels, open_runtime
from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError
from edgespec.export import build_onnx
from edgespec.export.accounting import unsupported
from edgespec.export.sources import open_source
from edgespec.local_model import find
from edgespec.models.gguf import GGUFFile, TensorInfo
from edgespec.progress import silent
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.gguf_copy import ALL_KEYS, ALL_TENSORS, Typed, changed_copy
from tests.onnx_support import ARCHITECTURES
from tests.tiny import TINY, tiny_gguf

TOKENS = np.random.default_rng(7).integers(0, 256, 48).tolist()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESPEC_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: tiny_gguf(folder / f"{name}.gguf", name) for name in ARCHITECTURES}


def logits(path: Path, runtime: str) -> FloatArray:
    found = open_runtime(path, runtime, context=64, device="cpu")
    rows = found.forward(TOKENS).copy()
    found.close()
    return rows


def without_kernels(path: Path) -> FloatArray:
    found = OnnxRuntime(build_onnx(path, path.with_suffix(".onnx")), context=64, exact=False)
    rows = found.forward(TOKENS).copy()
    found.close()
    return rows


def assert_same_as_llama_cpp(path: Path) -> None:
    pytest.importorskip("llama_cpp")
    expected = logits(path, "llama-cpp")
    forms = [without_kernels(path)]
    if kernels.library() is not None:
        forms.append(logits(path, "onnx"))
    for found in forms:
        error = np.sqrt(np.square(found - expected).mean()) / expected.std()
        assert error < 0.02, f"{error:.3f}"


def refusal(path: Path) -> str:
    return find(str(path), silent).refusals.get("onnx", "")


# Values of the keys that are not refused whatever they are. Each: further keys, and the type.
PROBES: dict[str, list[dict[str, Typed]]] = {
    "attention.head_count": [{"attention.head_count": ([4] * 2, "UINT32")}],
    "attention.head_count_kv": [{"attention.head_count_kv": ([2] * 2, "UINT32")}],
    "attention.key_length": [{"attention.key_length": (64, "UINT32")}],
    "attention.value_length": [{"attention.value_length": (64, "UINT32")}],
    "attention.layer_norm_rms_epsilon": [{"attention.layer_norm_rms_epsilon": (0.3, "FLOAT32")}],
    "attention.sliding_window": [{"attention.sliding_window": (5, "UINT32")}],
    "attention.sliding_window_pattern": [{"attention.sliding_window_pattern": (3, "UINT32")}],
    "block_count": [],
    "context_length": [{"context_length": (64, "UINT32")}],
    "embedding_length": [],
    "feed_forward_length": [{"feed_forward_length": ([512] * 2, "UINT32")}],
    "rope.dimension_count": [],
    "rope.freq_base": [{"rope.freq_base": (500.0, "FLOAT32")}],
    "rope.freq_base_swa": [{"rope.freq_base_swa": (500.0, "FLOAT32")}],
    "rope.scale_linear": [
        {"rope.scale_linear": (4.0, "FLOAT32")},
        {"rope.scale_linear": (0.0, "FLOAT32")},
        {"rope.scale_linear": (4.0, "FLOAT32"), "rope.scaling.factor": (2.0, "FLOAT32")},
        {"rope.scale_linear": (4.0, "FLOAT32"), "rope.scaling.factor": (0.0, "FLOAT32")},
        {"rope.scale_linear": (4.0, "FLOAT32"), "rope.scaling.type": ("none", "STRING")},
    ],
    "rope.scaling.attn_factor": [{"rope.scaling.attn_factor": (1.4, "FLOAT32")}],
    "rope.scaling.factor": [
        {"rope.scaling.factor": (3.0, "FLOAT32")},
        {"rope.scaling.factor": (0.0, "FLOAT32")},
    ],
    "rope.scaling.original_context_length": [
        {"rope.scaling.original_context_length": (64, "UINT32")}
    ],
    "rope.scaling.type": [
        {"rope.scaling.type": (kind, "STRING"), "rope.scaling.factor": (3.0, "FLOAT32")}
        for kind in ("none", "linear")
    ],
}
HARMLESS: dict[str, Typed] = {
    "attention.causal": (True, "BOOL"),
    "attention.layer_norm_epsilon": (0.3, "FLOAT32"),
    "classifier.output_labels": (["good", "bad"], "STRING"),
    "pooling_type": (1, "UINT32"),
    "rope.scaling.alpha": (5.0, "FLOAT32"),
    "rope.scaling.finetuned": (True, "BOOL"),
    "rope.scaling.yarn_beta_fast": (16.0, "FLOAT32"),
    "rope.scaling.yarn_beta_slow": (2.0, "FLOAT32"),
    "rope.scaling.yarn_log_multiplier": (0.5, "FLOAT32"),
    "tensor_data_layout": ("Meta AI original pth", "STRING"),
    "vocab_size": (299, "UINT32"),
}
"""All at once: the logits stay as llama.cpp has them."""
OWN = {"rope.freq_base_swa": "gemma3", "attention.sliding_window_pattern": "gemma3"}
"""Keys of one architecture; others are refused with it."""
PER_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("key", [key for key in PROBES if PROBES[key]])
def test_a_key_is_computed_as_llama_cpp_does(
    tmp_path: Path, bases: dict[str, Path], architecture: str, key: str
) -> None:
    if key in ("attention.key_length", "attention.value_length") and architecture != "llama":
        pytest.skip("the file has it")
    tiny = TINY[architecture]
    for i, probe in enumerate(PROBES[key]):
        keys = {
            f"{architecture}.{name}": (value[:1] * tiny.layers, kind)
            if isinstance(value, list)
            else (value, kind)
            for name, (value, kind) in probe.items()
        }
        if key in PER_LAYER:
            size = {"attention.head_count": tiny.heads, "attention.head_count_kv": tiny.kv_heads}
            keys[f"{architecture}.{key}"] = (
                [size.get(key, tiny.feed_forward)] * tiny.layers,
                "UINT32",
            )
        path = changed_copy(bases[architecture], tmp_path / f"{i}.gguf", keys=keys)
        if OWN.get(key, architecture) != architecture:
            assert key in refusal(path)
        else:
            assert not refusal(path)
            assert_same_as_llama_cpp(path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_keys_change_nothing(
    tmp_path: Path, bases: dict[str, Path], architecture: str
) -> None:
    keys = {f"{architecture}.{key}": value for key, value in HARMLESS.items()}
    path = changed_copy(bases[architecture], tmp_path / "a.gguf", keys=keys)
    assert not refusal(path)
    assert_same_as_llama_cpp(path)


@dataclass
class Header:
    """A source of which only the header is asked for."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def tensor(self, name: str) -> Any:
        raise AssertionError(name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_other_key_is_refused_by_name(bases: dict[str, Path], architecture: str) -> None:
    file = GGUFFile(bases[architecture])
    assert unsupported(file) is None
    for key in ALL_KEYS:
        if key in PROBES or key in HARMLESS:
            continue
        for value in (3, 0.25, [1, 2]):
            changed = {**file.metadata, f"{architecture}.{key}": value}
            reason = unsupported(Header(file.path, changed, file.tensors))
            assert reason is not None
            assert key in reason
            assert "\n" not in reason
    assert unsupported(
        Header(file.path, {**file.metadata, f"{architecture}.unheard_of": 1}, file.tensors)
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_other_tensor_is_refused_by_name(bases: dict[str, Path], architecture: str) -> None:
    file = GGUFFile(bases[architecture])
    names = [name.format(bid=0, xid=0) for name in ALL_TENSORS] + ["blk.0.a", "b", "blk.99.attn_q"]
    taken = set()
    for name in names:
        for suffix in ("weight", "bias", "scale", "input_scale"):
            full = f"{name}.{suffix}"
            if full in file.tensors:
                continue
            more = {**file.tensors, full: TensorInfo(full, "F32", (8,), 0, 32)}
            reason = unsupported(Header(file.path, file.metadata, more))
            if reason is None:
                taken.add(full)
            else:
                assert name in reason
    qkv = {f"blk.0.attn_{part}.bias" for part in ("q", "k", "v")}
    expected = {
        "llama": qkv
        | {f"blk.0.{n}.bias" for n in ("attn_output", "ffn_gate", "ffn_up", "ffn_down")}
        | {"rope_freqs.weight"},
        "phi3": {"rope_factors_short.weight", "rope_factors_long.weight"},
        "qwen2": {"output.bias"},
    }.get(architecture, qkv)
    expected |= {"blk.0.attn_qkv.bias", "output.weight"} - file.tensors.keys()
    assert taken == expected


def random(*shape: int, mean: float = 0.0) -> FloatArray:
    drawn = np.random.default_rng(len(shape)).normal(mean, 0.5, shape)
    return drawn.astype(np.float32)


def joined(architecture: str, path: Path, base: Path, *, biases: int = 0) -> Path:
    """With query, key and value in one tensor, ``biases`` of the three as tensors, 1: one for all."""
    tiny = TINY[architecture]
    rows = [tiny.heads * tiny.head_dim] + [tiny.kv_heads * tiny.head_dim] * 2
    file, more = GGUFFile(base), {}
    for layer in range(tiny.layers):
        stem = f"blk.{layer}.attn_"
        parts = [file.tensor(f"{stem}{part}.weight").view(np.float32) for part in "qkv"]
        more[f"{stem}qkv.weight"] = np.concatenate(parts)
        if biases == 1:
            more[f"{stem}qkv.bias"] = random(sum(rows))
        elif biases:
            more |= {f"{stem}{p}.bias": random(n) for p, n in zip("qkv", rows, strict=True)}

    def rest(name: str, data: Any) -> Any:
        return None if name.split(".")[-2] in ("attn_q", "attn_k", "attn_v") else data

    return changed_copy(base, path, tensors=rest, more=more)


@pytest.mark.parametrize("biases", [0, 1, 3])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_joined_projections(
    tmp_path: Path, bases: dict[str, Path], architecture: str, biases: int
) -> None:
    path = joined(architecture, tmp_path / "a.gguf", bases[architecture], biases=biases)
    assert not refusal(path)
    assert_same_as_llama_cpp(path)


BIASED = {
    "llama": (
        ["attn_q"],
        ["attn_k", "attn_v"],
        ["attn_output"],
        ["ffn_gate"],
        ["ffn_up", "ffn_down"],
    ),
    "qwen3": (["attn_v"],),
    "smollm3": (["attn_q", "attn_k", "attn_v"],),
    "gemma3": (["attn_k"],),
    "phi3": (["attn_qkv"], ["attn_q", "attn_k", "attn_v"]),
}


@pytest.mark.parametrize(
    ("architecture", "names"),
    [(a, names) for a, cases in BIASED.items() if a in ARCHITECTURES for names in cases],
)
def test_optional_biases(
    tmp_path: Path, bases: dict[str, Path], architecture: str, names: list[str]
) -> None:
    tiny, more = TINY[architecture], {}
    queries, keys = tiny.heads * tiny.head_dim, tiny.kv_heads * tiny.head_dim
    sizes = {
        "attn_q": queries,
        "attn_k": keys,
        "attn_v": keys,
        "attn_qkv": queries + 2 * keys,
        "ffn_gate": tiny.feed_forward,
        "ffn_up": tiny.feed_forward,
    }
    for layer in range(tiny.layers):
        for name in names:
            more[f"blk.{layer}.{name}.bias"] = random(sizes.get(name, tiny.hidden))
    path = changed_copy(bases[architecture], tmp_path / "a.gguf", more=more)
    assert not refusal(path)
    assert_same_as_llama_cpp(path)


def test_the_heads_bias_of_a_tied_model(tmp_path: Path, bases: dict[str, Path]) -> None:
    rows = GGUFFile(bases["qwen2"]).tensors["token_embd.weight"].rows
    more = {"output.bias": random(rows)}
    assert_same_as_llama_cpp(changed_copy(bases["qwen2"], tmp_path / "a.gguf", more=more))


@pytest.mark.skipif("gemma3" not in ARCHITECTURES, reason="needs sliding windows")
def test_gemmas_local_layers_as_a_list(tmp_path: Path, bases: dict[str, Path]) -> None:
    local = [True, False, True, True, False, False, True]
    keys = {"gemma3.attention.sliding_window_pattern": (local, "BOOL")}
    path = changed_copy(bases["gemma3"], tmp_path / "a.gguf", keys=keys)
    assert not refusal(path)
    assert_same_as_llama_cpp(path)
    short = {"gemma3.attention.sliding_window_pattern": ([True], "BOOL")}
    path = changed_copy(bases["gemma3"], tmp_path / "b.gguf", keys=short)
    with pytest.raises(UserError, match="sliding_window_pattern"):
        without_kernels(path)


@pytest.mark.skipif("gemma3" not in ARCHITECTURES, reason="needs sliding windows")
def test_the_largest_gemmas_scores(tmp_path: Path) -> None:
    """62 layers: scores are divided by the root of hidden / heads, not of the head's width."""
    path = tiny_gguf(
        tmp_path / "a.gguf", "gemma3", layers=62, hidden=128, head_dim=64, feed_forward=64
    )
    assert_same_as_llama_cpp(path)


@pytest.mark.parametrize("architecture", ["gemma3", "phi3"])
def test_partly_rotated_heads(tmp_path: Path, bases: dict[str, Path], architecture: str) -> None:
    if architecture not in bases:
        pytest.skip("needs sliding windows")
    keys = {f"{architecture}.rope.dimension_count": (TINY[architecture].head_dim // 2, "UINT32")}
    path = changed_copy(bases[architecture], tmp_path / "a.gguf", keys=keys)
    assert_same_as_llama_cpp(path)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vectors_in_16_bits_are_widened(
    tmp_path: Path, bases: dict[str, Path], architecture: str
) -> None:
    def rounded(name: str, data: Any) -> Any:
        return data.astype(np.float16).astype(np.float32) if data.ndim == 1 else data

    def narrow(name: str, data: Any) -> Any:
        return data.astype(np.float16) if data.ndim == 1 else data

    wide = changed_copy(bases[architecture], tmp_path / "wide.gguf", tensors=rounded)
    path = changed_copy(bases[architecture], tmp_path / "narrow.gguf", tensors=narrow)
    assert not refusal(path)
    found = logits(path, "onnx")
    np.testing.assert_array_equal(found, logits(wide, "onnx"))
    np.testing.assert_array_equal(without_kernels(path), without_kernels(wide))
    source = open_source(path)
    assert {t.type for t in source.tensors.values()} == {"F32"}
