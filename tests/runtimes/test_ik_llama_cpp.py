"""The ik_llama.cpp runtime keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.core.runtime import Runtime
from edgespec.errors import UserError
from edgespec.export.sources.trimmed import TrimmedHead, write_trimmed_gguf
from edgespec.models.gguf import GGUFFile
from edgespec.runtimes.ik_llama_cpp import ARCHITECTURES
from tests.runtimes.contract import RuntimeContract
from tests.tiny import tiny_gguf

pytest.importorskip("ik_llama_cpp")


def load(path: Path, **options: Any) -> Runtime:
    from edgespec.runtimes.ik_llama_cpp.runtime import IkLlamaCppRuntime

    return IkLlamaCppRuntime(path, **{"context": 64, "threads": 1} | options)


@pytest.mark.parametrize("architecture", ARCHITECTURES, scope="class")
class TestTiny(RuntimeContract):
    tolerance = 0.05  # the cache is in float16, and rows of another pass take another kernel

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(
        cls, architecture: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Runtime]:
        runtime = load(tiny_gguf(tmp_path_factory.mktemp("tiny") / "a.gguf", architecture))
        yield runtime
        runtime.close()


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("tiny") / "a.gguf", "qwen2", "Q4_K", context=2048)


def test_a_trimmed_draft_is_refused(tmp_path: Path) -> None:
    source = GGUFFile(tiny_gguf(tmp_path / "whole.gguf", "llama"))
    write_trimmed_gguf(TrimmedHead(source, range(1, 270, 3)), tmp_path / "a.gguf")
    with pytest.raises(UserError, match="trimmed head"):
        load(tmp_path / "a.gguf")


@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K"])
def test_agrees_with_torch(tmp_path: Path, quant: str) -> None:
    pytest.importorskip("transformers")
    from edgespec.export.reference import TorchRuntime

    path = tiny_gguf(tmp_path / "a.gguf", "llama", quant)
    tokens = np.random.default_rng(1).integers(0, 256, 60).tolist()
    expected = TorchRuntime(path).forward(tokens)
    runtime = load(path)
    difference = runtime.forward(tokens) - expected  # 32 rows and more have kernels of their own
    runtime.close()
    assert np.sqrt(np.square(difference).mean()) < 0.08 * expected.std()


@pytest.mark.parametrize("architecture", ["gemma3", "phi3"])
def test_other_architectures_are_refused(tmp_path: Path, architecture: str) -> None:
    with pytest.raises(UserError, match="does not run here; use --runtime onnx"):
        load(tiny_gguf(tmp_path / "a.gguf", architecture))


def test_what_it_computes_wrongly_is_refused(smollm2: Path) -> None:
    with pytest.raises(UserError, match="computes wrongly; use --runtime onnx"):
        load(smollm2)


def test_a_damaged_file_is_refused(quantized: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(quantized.read_bytes()[:-1000])
    with pytest.raises(UserError):
        load(tmp_path / "cut.gguf")
