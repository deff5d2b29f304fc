"""ONNX Runtime with the project's kernels."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec import kernels
from edgespec.errors import UserError
from edgespec.export import build_onnx, is_whole
from edgespec.export.architectures import ARCHITECTURES
from edgespec.models.onnx_folder import PACKED_FILE
from edgespec.runtimes import get
from edgespec.runtimes.onnx.kernel_runtime import KernelRuntime
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.runtimes.contract import PARENTS, TOKENS, TREE, RuntimeContract
from tests.tiny import tiny_gguf

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="the kernels were not built")
WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("gemma3", {"window": 8}),
    ("llama", {"window_everywhere": 8}),
]


def load(folder: Path, architecture: str, quant: str = "F32", **overrides: Any) -> KernelRuntime:
    source = tiny_gguf(folder / "a.gguf", architecture, quant, **overrides)
    return KernelRuntime(build_onnx(source, folder / "built", packed=True), context=64)


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [*((name, {"window": 64}) for name in ARCHITECTURES), *WINDOWS],
    scope="class",
)
class TestTiny(RuntimeContract):
    tolerance = 0  # the same bits

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(
        cls,
        architecture: str,
        overrides: dict[str, Any],
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[KernelRuntime]:
        runtime = load(tmp_path_factory.mktemp("tiny"), architecture, **overrides)
        yield runtime
        runtime.close()


class TestSmolLM2(RuntimeContract):
    tolerance = 0
    rounds = 5

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(
        cls, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[KernelRuntime]:
        folder = build_onnx(smollm2, tmp_path_factory.mktemp("built") / "smollm2", packed=True)
        runtime = KernelRuntime(folder, context=64)
        yield runtime
        runtime.close()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_logits_are_those_of_onnx_runtimes_own_operators(
    architecture: str, tmp_path: Path
) -> None:
    runtime = load(tmp_path, architecture, window=64)
    other = OnnxRuntime(build_onnx(tmp_path / "a.gguf", tmp_path / "o"), context=64, exact=False)
    found, expected = runtime.forward(TOKENS), other.forward(TOKENS)
    # Keys and values are rounded to 16 bits.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize(("architecture", "overrides"), [("qwen3", {}), *WINDOWS])
def test_every_instruction_set_gives_the_same_bits(
    architecture: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    runtime = load(tmp_path, architecture, "Q8_0", **overrides)
    found = {}
    try:
        for name in kernels.isas():
            kernels.set_isa(name)
            runtime.truncate(0)
            runtime.forward(TOKENS)
            runtime.keep(range(len(TOKENS)))
            found[name] = runtime.forward(TREE, PARENTS).copy()
    finally:
        kernels.set_isa()
    assert len(found) > 1
    for name, logits in found.items():
        assert np.array_equal(logits, found["portable"]), name


def test_features_are_what_the_head_multiplies(tmp_path: Path) -> None:
    runtime = load(tmp_path, "llama")
    logits = runtime.forward(TOKENS, features=True)
    assert runtime.features is not None
    assert runtime.features.shape == (len(TOKENS), runtime.info.hidden_size)
    weights, *_ = np.linalg.lstsq(runtime.features, logits, rcond=None)
    assert np.allclose(runtime.features @ weights, logits, atol=1e-3)
    runtime.forward(TOKENS[:2])
    assert runtime.features is None


def test_a_damaged_or_foreign_packed_file_is_built_again(tmp_path: Path) -> None:
    runtime = load(tmp_path, "llama")
    expected = runtime.forward(TOKENS).copy()
    folder = tmp_path / "built"
    packed = folder / PACKED_FILE
    whole = packed.read_bytes()
    other = build_onnx(tiny_gguf(tmp_path / "b.gguf", seed=1), tmp_path / "other", packed=True)
    for damage in (whole[:-5000], (other / PACKED_FILE).read_bytes(), b""):
        packed.unlink()
        packed.write_bytes(damage)
        assert not is_whole(folder)
        with pytest.raises(UserError, match="delete it and it will be built again"):
            KernelRuntime(folder)
        build_onnx(tmp_path / "a.gguf", folder, packed=True)
        assert np.array_equal(KernelRuntime(folder, context=64).forward(TOKENS), expected)


def test_without_the_library_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tmp_path, "llama").close()
    monkeypatch.setattr("edgespec.kernels.native._load", lambda: "not built, for a test")
    with pytest.raises(UserError, match="not built, for a test; install edgespec again"):
        KernelRuntime(tmp_path / "built")
    shutil.rmtree(tmp_path / "built")
    with pytest.raises(UserError, match="install edgespec again"):
        build_onnx(tmp_path / "a.gguf", tmp_path / "built", packed=True)
    assert not get("onnx").packs("cpu", None)
