"""The llama.cpp runtime keeps the contract, and agrees with torch on every architecture and block
format that we build tiny models of."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import kernels
from edgespec.core.runtime import Runtime
from edgespec.errors import UserError
from edgespec.export.sources.trimmed import TrimmedHead, write_trimmed_gguf
from edgespec.loading import open_runtime
from edgespec.models.gguf import GGUFFile
from tests.runtimes.contract import TOKENS, RuntimeContract
from tests.tiny import TINY, tiny_gguf

pytest.importorskip("llama_cpp")


def load(path: Path, **options: Any) -> Runtime:
    from edgespec.runtimes.llama_cpp.runtime import LlamaCppRuntime

    return LlamaCppRuntime(path, **{"context": 64, "threads": 1, "device": "cpu"} | options)


@pytest.mark.parametrize("architecture", TINY, scope="class")
class TestTiny(RuntimeContract):
    tolerance = 0.05  # the cache is in float16, and rows of another pass take another kernel

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(
        cls, architecture: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Runtime]:
        # Sliding layers see less than the tests' length.
        runtime = load(
            tiny_gguf(tmp_path_factory.mktemp("tiny") / "a.gguf", architecture, window=8)
        )
        yield runtime
        runtime.close()


@pytest.mark.parametrize("architecture", TINY, scope="class")
class TestTrimmed(RuntimeContract):
    tolerance = 0.05

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(
        cls, architecture: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Runtime]:
        folder = tmp_path_factory.mktemp("trimmed")
        source = GGUFFile(tiny_gguf(folder / "whole.gguf", architecture, window=8))
        write_trimmed_gguf(TrimmedHead(source, range(1, 270, 3)), folder / "a.gguf")
        runtime = load(folder / "a.gguf")
        yield runtime
        runtime.close()


class TestSmolLM2(RuntimeContract):
    tolerance = 1.5  # activations are rounded to 8 bits, where a last bit's difference is a step

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(cls, smollm2: Path) -> Iterator[Runtime]:
        runtime = load(smollm2, threads=None)
        yield runtime
        runtime.close()


# Block formats are computed with activations of 8 bits (bfloat16 ones for BF16) in llama.cpp and in
# float32 in torch. The bounds are on the root mean square of the difference, as a share of the
# logits' standard deviation; a wrong rotation, norm, mask or scale gives 0.3 and more.
FLOATS = {"F32": 0.005, "F16": 0.005, "BF16": 0.02}
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tied": True}),
    ("llama", {"rope_factors": True}),
    ("llama", {"kv_heads": 4}),
    ("qwen2", {"tied": False}),
    ("qwen3", {"tied": True}),
    ("gemma3", {"rope_scaling": 4.0}),
]


def assert_agrees_with_torch(path: Path, bound: float) -> None:
    pytest.importorskip("transformers")
    from edgespec.export.reference import TorchRuntime

    tokens = np.random.default_rng(1).integers(0, 256, 60).tolist()
    expected = TorchRuntime(path).forward(tokens)
    runtime = load(path)
    difference = runtime.forward(tokens) - expected
    runtime.close()
    assert expected.std() > 2
    assert np.sqrt(np.square(difference).mean()) < bound * expected.std()


@pytest.mark.parametrize("quant", [*FLOATS, *BLOCKS])
@pytest.mark.parametrize("architecture", TINY)
def test_agrees_with_torch(tmp_path: Path, architecture: str, quant: str) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", architecture, quant)
    assert_agrees_with_torch(path, FLOATS.get(quant, 0.08))


@pytest.mark.parametrize(("architecture", "overrides"), VARIANTS)
def test_variants_agree_with_torch(
    tmp_path: Path, architecture: str, overrides: dict[str, Any]
) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", architecture, **overrides)
    assert_agrees_with_torch(path, FLOATS["F32"])


def test_a_pass_longer_than_llama_cpp_computes_at_once(tmp_path: Path) -> None:
    runtime = load(tiny_gguf(tmp_path / "a.gguf", context=2048), context=1200)
    tokens = np.random.default_rng(2).integers(0, 256, 1200).tolist()
    whole = runtime.forward(tokens).copy()
    runtime.forward(tokens[:700], logits="none")
    runtime.keep(range(700))
    np.testing.assert_allclose(runtime.forward(tokens[700:]), whole[700:], rtol=0, atol=0.05)
    runtime.close()


def test_sliding_layers_keep_what_truncate_may_return_to(tmp_path: Path) -> None:
    runtime = load(tiny_gguf(tmp_path / "a.gguf", "gemma3", window=8, context=2048), context=2048)
    tokens = np.random.default_rng(3).integers(0, 256, 1800).tolist()
    expected = runtime.forward(tokens[:105])[100:].copy()
    runtime.forward(tokens, logits="none")
    runtime.keep(range(1800))
    runtime.truncate(100)
    np.testing.assert_allclose(runtime.forward(tokens[100:105]), expected, rtol=0, atol=0.05)
    runtime.close()


@pytest.mark.parametrize(
    ("architecture", "cache_type", "flash"),
    [
        ("llama", "float16", 0),
        ("qwen3", "float16", 0),
        ("gemma3", "float16", -1),
        ("qwen3", "q8_0", -1),
    ],
)
def test_narrow_heads_do_without_flash_attention_unless_the_cache_needs_it(
    architecture: str, cache_type: str, flash: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgespec.runtimes.llama_cpp import runtime

    asked, create = [], runtime.llama.llama_init_from_model

    def created(model: Any, params: Any) -> Any:
        asked.append(params.flash_attn_type)  # 0: none, -1: as llama.cpp likes
        return create(model, params)

    monkeypatch.setattr(runtime.llama, "llama_init_from_model", created)
    load(tiny_gguf(tmp_path / "a.gguf", architecture), cache_type=cache_type).close()
    assert asked == [flash]


def test_information(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", "llama", "Q8_0")
    runtime = load(path)
    info = runtime.info
    assert (info.name, info.architecture, info.layers) == ("tiny llama", "llama", 2)
    assert (info.context, info.device, info.runtime, info.pass_sizes) == (
        64,
        "cpu",
        "llama-cpp",
        (),
    )
    # The untied embedding is not read: 8.5 bits for every weight but its own.
    assert 0.9 < info.weight_bytes / (path.stat().st_size - info.vocab_size * 256 * 34 / 32) < 1
    runtime.close()


def test_closing_twice_is_harmless_and_using_a_closed_model_is_an_error(tmp_path: Path) -> None:
    runtime = load(tiny_gguf(tmp_path / "a.gguf", layers=1))
    runtime.close()
    runtime.close()
    with pytest.raises(RuntimeError, match="closed"):
        runtime.forward([1])


def test_two_models_at_once(tmp_path: Path) -> None:
    first, second = (load(tiny_gguf(tmp_path / f"{seed}.gguf", seed=seed)) for seed in (1, 2))
    expected = first.forward(TOKENS).copy()
    assert np.abs(second.forward(TOKENS) - expected).max() > 1
    second.close()
    np.testing.assert_array_equal(first.forward(TOKENS), expected)
    first.close()


@pytest.mark.parametrize("device", ["npu", "gpu:x", "tpu"])
def test_an_unknown_device_is_a_user_error(tmp_path: Path, device: str) -> None:
    with pytest.raises(UserError, match=device):
        load(tiny_gguf(tmp_path / "a.gguf", layers=1), device=device)


def patched(data: bytes, key: str, value: bytes) -> bytes:
    """The file with another value of four bytes for a metadata key."""
    start = data.index(key.encode()) + len(key) + 4  # the value's type comes first
    return data[:start] + value + data[start + 4 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "magic": lambda data: b"GGML" + data[4:],
    "empty": lambda data: b"",
    "metadata": lambda data: data.replace(b"llama.block_count", b"llama.block_cOunt"),
    "tensor": lambda data: data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"),
    "architecture": lambda data: data.replace(b"llama", b"lllll"),
    "hidden size": lambda data: patched(data, "llama.embedding_length", b"\x40\0\0\0"),
    "tokens": lambda data: data.replace(b"<|im_end|>", b"<|im_end\0>").replace(
        b"<|im_start|>", b"<|im_end\0|>>"
    ),
    "no layers": lambda data: patched(data, "llama.block_count", b"\0\0\0\0"),
    "layers": lambda data: patched(data, "llama.block_count", b"\xff\xff\xff\x7f"),
    "heads": lambda data: patched(data, "llama.attention.head_count", b"\3\0\0\0"),
    "no heads": lambda data: patched(data, "llama.attention.head_count", b"\0\0\0\0"),
    "epsilon": lambda data: patched(data, "rms_epsilon", b"\0\0\xc0\x7f"),  # not a number
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_user_error_of_one_line(tmp_path: Path, damage: str) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", layers=1)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert "does not say why" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_heads_that_do_not_divide_are_a_user_error(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", layers=1, heads=3, kv_heads=2)
    with pytest.raises(UserError, match="key heads"):
        load(path)


def test_a_missing_extra_is_a_user_error_that_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "from edgespec.errors import UserError\n"
        "try: import edgespec.runtimes.llama_cpp.runtime\n"
        "except UserError as error: print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert "pip install 'edgespec[llama]'" in found.stdout, found.stderr


def test_llama_cpp_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runtime = load(tiny_gguf(tmp_path / "a.gguf", "gemma3"))
    runtime.forward(TOKENS)
    runtime.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(kernels.why_not() is not None, reason="no kernels")
def test_features_are_those_of_onnx(smollm2: Path) -> None:
    found = []
    for name in ("onnx", "llama-cpp"):
        runtime = open_runtime(smollm2, name, context=64)
        runtime.forward(list(range(100, 140)), features=True)
        assert runtime.features is not None
        found.append(runtime.features.copy())
        runtime.close()
    error = np.linalg.norm(found[1] - found[0], axis=1) / np.linalg.norm(found[0], axis=1)
    assert error.max() < 0.05
