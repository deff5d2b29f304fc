"""The ik_llama.cpp runtime keeps the contract, and a row's bits do not depend on the pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.errors import UserError
from edgespec.export.sources.trimmed import TrimmedHead, write_trimmed_gguf
from edgespec.models.gguf import GGUFFile
from edgespec.runtimes import Runtime
from edgespec.runtimes.llama_sequences import IK_ARCHITECTURES
from tests.runtimes.contract import RuntimeContract
from tests.tiny import tiny_gguf

pytest.importorskip("ik_llama_cpp")


def load(path: Path, **options: Any) -> Runtime:
    from edgespec.runtimes.ik_llama_cpp import IkLlamaCppRuntime

    return IkLlamaCppRuntime(path, **{"context": 64, "threads": 1, "exact": False} | options)


@pytest.mark.parametrize("architecture", IK_ARCHITECTURES, scope="class")
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


class TestExact(RuntimeContract):
    """Passes are padded, or what came before them is computed again."""

    tolerance = 0.05

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
        runtime = load(tiny_gguf(tmp_path_factory.mktemp("tiny") / "a.gguf"))
        runtime.info = replace(runtime.info, pass_sizes=(4, 5, 6, 7, 8))
        yield runtime
        runtime.close()


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("tiny") / "a.gguf", "qwen2", "Q4_K", context=2048)


@pytest.fixture(scope="module")
def exact(quantized: Path) -> Iterator[Runtime]:
    runtime = load(quantized, context=1200, exact=True)
    yield runtime
    runtime.close()


@pytest.mark.parametrize("smallest", [2, 4])
def test_rows_on_both_sides_of_a_step_have_the_same_bits(exact: Runtime, smallest: int) -> None:
    assert exact.info.pass_sizes == tuple(range(2, 17))
    whole, exact.info = exact.info, replace(exact.info, pass_sizes=tuple(range(smallest, 17)))
    tokens = np.random.default_rng(1).integers(0, 256, 300).tolist()
    exact.truncate(0)
    exact.forward(tokens[:244], logits="none")
    exact.keep(range(244))
    one_by_one = []
    for token in tokens[244:276]:
        one_by_one.append(exact.forward([token])[0].copy())
        exact.keep([0])
    for sizes in ([16, 16], [3] * 10, [11, 1, 2, 13], [12, 2, 1, 9], [7, 4, 1, 1, 1, 16]):
        exact.truncate(244)
        row = 0
        for size in sizes:
            found = exact.forward(tokens[244 + row : 244 + row + size])
            assert found.shape[0] == size
            for i in range(size):
                assert np.array_equal(found[i], one_by_one[row + i]), (sizes, row + i)
            exact.keep(range(size))
            row += size
    exact.info = whole


def test_what_was_proved_is_remembered(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_HOME", str(tmp_path))
    heard: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        heard.append(what)

    first = load(quantized, context=1200, exact=True, progress=progress)
    assert any("agree" in line for line in heard)
    heard.clear()
    second = load(quantized, context=1200, exact=True, progress=progress)
    assert second.info.pass_sizes == first.info.pass_sizes
    assert not any("agree" in line for line in heard)
    first.close()
    second.close()


def test_a_trimmed_draft_is_refused(tmp_path: Path) -> None:
    source = GGUFFile(tiny_gguf(tmp_path / "whole.gguf", "llama"))
    write_trimmed_gguf(TrimmedHead(source, range(1, 270, 3)), tmp_path / "a.gguf")
    with pytest.raises(UserError, match="trimmed head"):
        load(tmp_path / "a.gguf")


@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q5_K", "Q6_K"])
def test_agrees_with_torch(tmp_path: Path, quant: str) -> None:
    pytest.importorskip("transformers")
    from edgespec.runtimes.torch import TorchRuntime

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
