"""Built models compute what the published implementations compute, and what cannot be built says so.

The golden values make that known without torch too; ``test_agrees_with_torch`` vouches for them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from edgespec.core.runtime import FloatArray, Runtime
from edgespec.errors import UserError
from edgespec.export import build_onnx
from edgespec.export.quants import FORMATS
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.export.gguf_files import replace_bytes, set_value
from tests.onnx_support import ARCHITECTURES, WINDOWS
from tests.tiny import tiny_gguf

TOKENS = np.random.default_rng(1).integers(0, 256, 60).tolist()  # sliding layers see 16
FLOATS = ("F32", "F16", "BF16")
BLOCKS = [name for name in FORMATS if name in GGMLQuantizationType.__members__]


def logits_of(source: Path, tokens: list[int] = TOKENS) -> FloatArray:
    folder = build_onnx(source, source.with_suffix(".onnx"))
    runtime = OnnxRuntime(folder, context=64, exact=False)
    found = runtime.forward(tokens).copy()
    runtime.close()
    return found


# Torch's logits of the tiny models in F32: the last row's, every fiftieth.
GOLDEN = {
    "llama": [-3.1335, -1.8654, -2.1264, -1.2187, 1.3161, -0.0852],
    "qwen2": [0.8512, 2.366, 1.008, 1.3843, 0.1899, -1.0821],
    "qwen3": [-3.5262, -0.6556, 2.0789, 1.5489, -2.9716, 1.7257],
    "smollm3": [-2.1803, -3.5822, -0.3001, -4.1381, 2.5496, -3.088],
    "phi3": [-2.4455, 0.7901, 2.3006, 2.851, -2.0203, -2.2603],
    "gemma3": [-0.0121, 3.454, -1.208, 0.6014, 1.9993, -2.8465],
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_golden_logits(tmp_path: Path, architecture: str) -> None:
    found = logits_of(tiny_gguf(tmp_path / "a.gguf", architecture))
    np.testing.assert_allclose(found[-1, ::50], GOLDEN[architecture], rtol=0, atol=1e-3)


def assert_agrees_with_torch(path: Path, *, exactly: bool) -> None:
    """In floats to the last digits. In blocks MatMulNBits rounds its inputs to 8 bits: a share of
    the logits' deviation, where a wrong rotation, mask, norm or scale makes 0.3 and more."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from edgespec.export.reference import TorchRuntime

    expected = TorchRuntime(path, context=64, threads=1).forward(TOKENS)
    found = logits_of(path)
    assert found.shape == expected.shape
    assert expected.std() > 2
    if exactly:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    else:
        assert np.sqrt(np.square(found - expected).mean()) / expected.std() <= 0.06


@pytest.mark.parametrize("quant", [*FLOATS, *BLOCKS])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_agrees_with_torch(tmp_path: Path, architecture: str, quant: str) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", architecture, quant)
    assert_agrees_with_torch(path, exactly=quant in FLOATS)


VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "F32", {"tied": True}),
    ("qwen2", "F32", {"tied": False}),
    ("qwen3", "F16", {"tied": True}),
    ("llama", "F32", {"rope_factors": True}),
    ("llama", "F32", {"rope_scaling": 4.0}),
    ("gemma3", "F32", {"rope_scaling": 4.0}),
    ("gemma3", "F32", {"window": 5}),
    ("gemma3", "F32", {"layers": 13}),  # two global layers
    ("llama", "F32", {"window_everywhere": 16}),  # Mistral
    ("phi3", "F32", {"window_everywhere": 16}),
    ("phi3", "F32", {"rope_dims": 48}),
    ("phi3", "F16", {"rope_factors": True, "tied": True}),
    ("phi3", "Q4_K", {"types": {"ffn_down": "Q6_K", "attn_qkv": "Q5_K"}}),
    ("llama", "BF16", {"tied": True}),
    ("llama", "F32", {"kv_heads": 4}),
    ("llama", "F32", {"kv_heads": 1, "layers": 1}),
    ("llama", "F32", {"types": {"attn_v": "F16"}}),
    ("qwen2", "Q4_K", {"types": {"attn_v": "Q6_K", "ffn_down": "Q6_K"}}),  # as Q4_K_M does
    ("qwen3", "Q4_K", {"types": {"attn_k": "Q8_0", "ffn_gate": "Q5_K"}}),
    ("llama", "Q4_1", {"types": {"output": "F16", "token_embd": "Q6_K"}}),
    ("llama", "Q4_1", {"hidden": 576, "heads": 9, "kv_heads": 3, "feed_forward": 1536}),
    ("llama", "Q4_1", {"hidden": 352, "heads": 11, "kv_heads": 11, "head_dim": 32}),
    ("llama", "Q8_0", {"hidden": 288, "heads": 9, "kv_heads": 3, "head_dim": 32}),
]


@pytest.mark.parametrize(
    ("architecture", "quant", "overrides"),
    [
        case
        for case in VARIANTS
        if case[0] in ARCHITECTURES and (WINDOWS or "window_everywhere" not in case[2])
    ],
)
def test_variants_agree_with_torch(
    tmp_path: Path, architecture: str, quant: str, overrides: dict[str, Any]
) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", architecture, quant, **overrides)
    assert_agrees_with_torch(path, exactly=quant in FLOATS)


# What SmolLM2 says after each prompt, greedily: each token leads the next best by 0.8 and more, which
# no kernel's rounding turns.
CONTINUATIONS = {
    "1 2 3 4 5 6 7": [216, 40, 216, 41, 216, 33, 32, 216, 33, 33, 216, 33],
    "One, two, three, four, five,": [2976, 28, 4962, 28, 4475, 28],
    "def add(a, b):\n    return a + b\n\ndef multiply(a, b):\n    return": [
        253,
        1672,
        278,
        198,
        198,
    ],
    "The capital of France is Paris. The capital of Japan is Tokyo. The capital of Italy is": [
        7268,
        30,
    ],
}


def assert_goes_on_as_it_should(runtime: Runtime, source: Path) -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile(source))
    for prompt, expected in CONTINUATIONS.items():
        tokens = tokenizer.encode(prompt)
        rows = runtime.forward(tokens + expected)[len(tokens) - 1 : -1]
        assert rows.argmax(axis=1).tolist() == expected, prompt


def test_smollm2_goes_on_as_it_should(smollm2: Path, smollm2_onnx: Path) -> None:
    runtime = OnnxRuntime(smollm2_onnx, context=128, exact=False)
    assert_goes_on_as_it_should(runtime, smollm2)
    runtime.close()


def test_llama_cpp_goes_on_likewise(smollm2: Path) -> None:
    pytest.importorskip("llama_cpp")
    from edgespec.runtimes.llama_cpp.runtime import LlamaCppRuntime

    runtime = LlamaCppRuntime(smollm2, context=128, threads=1)
    assert_goes_on_as_it_should(runtime, smollm2)
    runtime.close()


# What cannot be built. Each: how the file is made, and what the one line must say.
Make = Callable[[Path], Path]


def tiny(**overrides: Any) -> Make:
    return lambda path: tiny_gguf(path, layers=1, **overrides)


def changed(key: str, value: float, architecture: str = "llama", kind: int | None = None) -> Make:
    return lambda path: set_value(
        tiny_gguf(path, architecture, layers=1), f"{architecture}.{key}", value, kind
    )


def renamed(old: str, new: str, **overrides: Any) -> Make:
    return lambda path: replace_bytes(tiny(**overrides)(path), old, new)


def retyped(short: str, number: int) -> Make:
    """A matrix that claims another type than its bytes have."""

    def make(path: Path) -> Path:
        data = tiny(quant="F32")(path).read_bytes()
        name = f"blk.0.{short}.weight".encode()
        start = data.index(name) + len(name) + 4 + 2 * 8
        path.write_bytes(data[:start] + number.to_bytes(4, "little") + data[start + 4 :])
        return path

    return make


UNBUILDABLE: dict[str, tuple[Make, str]] = {
    "Q2_K matrix": (retyped("ffn_down", 10), r"blk\.0\.ffn_down\.weight .*Q2_K"),
    "Q5_1 matrix": (tiny(quant="Q5_1", architecture="qwen2"), r"token_embd\.weight .*Q5_1"),
    "Q5_1 values": (tiny(types={"attn_v": "Q5_1"}), r"blk\.0\.attn_v\.weight .*Q5_1"),
    "Q5_1 embedding": (tiny(types={"token_embd": "Q5_1"}), r"token_embd\.weight .*Q5_1"),
    "architecture": (renamed("llama", "mamba"), "architecture 'mamba'.*llama-cpp"),
    "no embedding": (renamed("token_embd", "token_embX"), r"no tensor token_embd\.weight"),
    "no query": (renamed("0.attn_q.", "0.attn_X."), r"no tensor blk\.0\.attn_q\.weight"),
    "no gate": (renamed("ffn_gate", "ffn_gatX"), r"no tensor blk\.0\.ffn_gate\.weight"),
    "no down": (renamed("ffn_down", "ffn_dowX"), r"no tensor blk\.0\.ffn_down\.weight"),
    "no norm": (renamed("output_norm", "output_nXrm"), "output_norm"),
    "no key's bias": (
        renamed("0.attn_k.bias", "0.attn_X.bias", architecture="qwen2"),
        r"blk\.0\.attn_k\.bias",
    ),
    "no query's bias": (
        renamed("0.attn_q.bias", "0.attn_X.bias", architecture="qwen2"),
        r"blk\.0\.attn_q\.bias",
    ),
    "no layers": (renamed("block_count", "block_cXunt"), "does not say llama.block_count"),
    "more layers": (changed("block_count", 2), r"no tensor|blk\.1\."),
    "absurd layers": (changed("block_count", 2**31), "block_count"),
    "zero layers": (changed("block_count", 0), "block_count"),
    "hidden size": (changed("embedding_length", 512), "rotates 64 of 128 dimensions"),
    "zero hidden": (changed("embedding_length", 0), "embedding_length"),
    "more heads": (changed("attention.head_count", 8), "do not|shape|rotary"),
    "odd heads": (changed("attention.head_count", 3), "rotates 64 of 85 dimensions"),
    "absurd heads": (changed("attention.head_count", 999_999_999), "do not|which cannot"),
    "key heads": (changed("attention.head_count_kv", 4), "shape"),
    "zero heads": (changed("attention.head_count", 0), "head_count"),
    "a fraction of heads": (changed("attention.head_count", 4.5, kind=6), "no count"),
    "no number of heads": (
        changed("attention.head_count", float("nan"), kind=6),
        "which cannot be",
    ),
    "odd rotation": (changed("rope.dimension_count", 63), "rotary"),
    "much rotation": (changed("rope.dimension_count", 128), "rotary"),
    "zero epsilon": (changed("attention.layer_norm_rms_epsilon", 0.0), "epsilon = '0.0'"),
    "epsilon not a number": (
        changed("attention.layer_norm_rms_epsilon", float("nan")),
        "epsilon = 'nan'",
    ),
    "endless rotary base": (changed("rope.freq_base", float("inf")), "freq_base = 'inf'"),
    "no context": (changed("context_length", 0), "context_length"),
    "absurd context": (changed("context_length", 2**32 - 1), "context_length"),
    "no window": (changed("attention.sliding_window", 0, "gemma3"), "sliding_window"),
    "lengths of keys": (changed("attention.key_length", 64, "gemma3"), "keys and values"),
    "head norms": (
        lambda path: set_value(
            set_value(
                tiny_gguf(path, "qwen3", layers=1, head_dim=128), "qwen3.attention.key_length", 64
            ),
            "qwen3.attention.value_length",
            64,
        ),
        "shape|attn_q_norm",
    ),
}


@pytest.mark.parametrize("damage", UNBUILDABLE)
def test_a_build_failure_is_one_line_with_its_cause(tmp_path: Path, damage: str) -> None:
    make, message = UNBUILDABLE[damage]
    source = make(tmp_path / "a.gguf")
    with pytest.raises(UserError, match=message) as caught:
        build_onnx(source, tmp_path / "out" / "model")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == []


def test_an_unknown_rotary_scaling_is_an_error(tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", layers=1, rope_scaling=2.0)
    replace_bytes(source, "linear", "banana")
    with pytest.raises(UserError, match="rotary scaling 'banana'"):
        build_onnx(source, tmp_path / "model")
