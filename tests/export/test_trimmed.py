"""A draft with a trimmed head says what the whole model says, of the tokens that it kept: bit for bit
where kernels do not depend on the number of rows, on ONNX Runtime and on llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgespec.core.runtime import Runtime
from edgespec.errors import UserError
from edgespec.export import build_onnx
from edgespec.export.sources.trimmed import (
    TrimmedGGUF,
    TrimmedHead,
    whole_embedding,
    write_trimmed_gguf,
)
from edgespec.export.to_onnx import write_onnx
from edgespec.models.gguf import GGUFFile
from edgespec.models.trimmed import TOKEN_IDS
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.export.gguf_files import set_value
from tests.tiny import TINY, tiny_gguf

TOKENS = np.random.default_rng(1).integers(0, 290, 40).tolist()
# As many as kernels compute at once, and none of the last: those that are over take another kernel.
KEPT = np.sort(np.random.default_rng(2).choice(288, 96, replace=False))
QUANTS = ("F32", "Q4_0", "Q8_0", "Q4_K", "Q6_K")


def assert_same_columns(
    whole: Runtime, trimmed: Runtime, kept: npt.NDArray[np.int64], tolerance: float = 0
) -> None:
    """In passes of several sizes, over tokens that were kept and others."""
    assert trimmed.info.token_ids == tuple(kept.tolist())
    assert trimmed.info.vocab_size == len(kept)
    assert trimmed.info.weight_bytes < whole.info.weight_bytes
    start = 0
    for size in (1, 2, 3, 5, len(TOKENS) - 11):
        part = TOKENS[start : start + size]
        expected = whole.forward(part)[:, kept]
        assert expected.std() > 0.5
        np.testing.assert_allclose(trimmed.forward(part), expected, rtol=0, atol=tolerance)
        whole.keep(range(size))
        trimmed.keep(range(size))
        start += size
    whole.close()
    trimmed.close()


def write(path: Path, folder: Path, kept: npt.NDArray[np.int64] = KEPT) -> Path:
    folder.mkdir()
    write_onnx(TrimmedHead(GGUFFile(path), kept), folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("architecture", TINY)
def test_onnx_has_the_same_columns(
    tmp_path: Path, architecture: str, quant: str, tied: bool
) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", architecture, quant, tied=tied)
    whole = OnnxRuntime(build_onnx(path, tmp_path / "whole"), context=64, exact=False)
    trimmed = OnnxRuntime(write(path, tmp_path / "trimmed"), context=64, exact=False)
    assert_same_columns(whole, trimmed, KEPT)


def test_smollm2_on_onnx_has_the_same_columns(
    smollm2: Path, smollm2_onnx: Path, tmp_path: Path
) -> None:
    kept = np.sort(np.random.default_rng(3).choice(49152, 4096, replace=False))
    whole = OnnxRuntime(smollm2_onnx, context=64, exact=False)
    trimmed = OnnxRuntime(write(smollm2, tmp_path / "trimmed", kept), context=64, exact=False)
    assert_same_columns(whole, trimmed, kept)


def llama(path: Path, **options: Any) -> Runtime:
    pytest.importorskip("llama_cpp")
    from edgespec.runtimes.llama_cpp.runtime import LlamaCppRuntime

    return LlamaCppRuntime(path, **{"context": 64, "threads": 1, "device": "cpu"} | options)


def trimmed_gguf(source: Path, path: Path, kept: npt.NDArray[np.int64] = KEPT) -> Path:
    write_trimmed_gguf(TrimmedHead(GGUFFile(source), kept), path)
    return path


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("architecture", TINY)
def test_llama_cpp_has_the_same_columns(
    tmp_path: Path, architecture: str, quant: str, tied: bool
) -> None:
    path = tiny_gguf(tmp_path / "a.gguf", architecture, quant, tied=tied)
    trimmed = trimmed_gguf(path, tmp_path / "trimmed.gguf")
    assert ("output.weight" in GGUFFile(trimmed).tensors) is not tied
    # llama.cpp has other kernels for 299 rows than for 96, which is a multiple of 8: a last bit.
    assert_same_columns(llama(path), llama(trimmed), KEPT, tolerance=1e-5)


def test_smollm2_on_llama_cpp_has_the_same_columns(smollm2: Path, tmp_path: Path) -> None:
    kept = np.sort(np.random.default_rng(3).choice(49152, 4096, replace=False))
    trimmed = trimmed_gguf(smollm2, tmp_path / "trimmed.gguf", kept)
    assert trimmed.stat().st_size < 1.01 * smollm2.stat().st_size  # no row is there twice
    assert_same_columns(llama(smollm2), llama(trimmed), kept)


def test_rows_are_sliced_as_they_are_stored(tmp_path: Path) -> None:
    source = GGUFFile(tiny_gguf(tmp_path / "a.gguf", "qwen2", "Q6_K"))  # tied
    trimmed = TrimmedHead(source, KEPT)
    embedding = source.tensor("token_embd.weight")
    np.testing.assert_array_equal(trimmed.tensor("output.weight"), embedding[KEPT])
    np.testing.assert_array_equal(trimmed.tensor("token_embd.weight"), embedding)
    assert trimmed.tensors["output.weight"].shape == (96, 256)
    assert trimmed.tensors["output.weight"].nbytes == trimmed.tensor("output.weight").nbytes
    assert trimmed.metadata[TOKEN_IDS] == KEPT.tolist()


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # untied, tied
def test_a_trimmed_gguf_has_all_that_it_was_made_of(tmp_path: Path, architecture: str) -> None:
    source = TrimmedHead(GGUFFile(tiny_gguf(tmp_path / "a.gguf", architecture, "Q8_0")), KEPT)
    write_trimmed_gguf(source, tmp_path / "trimmed.gguf")
    found = TrimmedGGUF(GGUFFile(tmp_path / "trimmed.gguf"))
    assert source.metadata.items() <= found.metadata.items()
    assert source.tensors.keys() == found.tensors.keys()
    for name, info in source.tensors.items():
        assert found.tensors[name].shape == info.shape
        np.testing.assert_array_equal(found.tensor(name), source.tensor(name))


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf")
    first, second = (trimmed_gguf(source, tmp_path / f"{i}.gguf").read_bytes() for i in (1, 2))
    assert first == second


BAD_IDS: dict[str, list[Any]] = {
    "none": [],
    "no ids": ["a", "b"],
    "fractions": [0.5],
    "descending": [3, 2],
    "twice": [2, 2],
    "negative": [-1, 2],
    "too large": [1, 100_000],
    "far too large": [1, 2**70],
}


@pytest.mark.parametrize("ids", BAD_IDS.values(), ids=BAD_IDS)
def test_ids_that_are_no_tokens_are_a_user_error(tmp_path: Path, ids: list[Any]) -> None:
    with pytest.raises(UserError, match="tokens to keep"):
        TrimmedHead(GGUFFile(tiny_gguf(tmp_path / "a.gguf", layers=1)), ids)


def test_trimming_twice_is_a_user_error(tmp_path: Path) -> None:
    once = TrimmedHead(GGUFFile(tiny_gguf(tmp_path / "a.gguf", layers=1)), KEPT)
    with pytest.raises(UserError, match="trimmed already"):
        TrimmedHead(once, [0, 1])


def test_a_trimmed_gguf_that_ends_early_is_a_user_error(tmp_path: Path) -> None:
    path = trimmed_gguf(tiny_gguf(tmp_path / "a.gguf", layers=1), tmp_path / "trimmed.gguf")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="ends before its embedding"):
        whole_embedding(GGUFFile(path))


@pytest.mark.parametrize("size", [100, 2**32 - 1])
def test_a_trimmed_gguf_of_another_vocabulary_is_a_user_error(tmp_path: Path, size: int) -> None:
    path = trimmed_gguf(tiny_gguf(tmp_path / "a.gguf", layers=1), tmp_path / "trimmed.gguf")
    set_value(path, "edgespec.vocab_size", size)
    with pytest.raises(UserError, match=r"ends before its embedding|from 0 to 99"):
        whole_embedding(GGUFFile(path))


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", layers=1)
    with pytest.raises(UserError, match="exists; remove it"):
        trimmed_gguf(source, source)
    with pytest.raises(UserError, match=r"cannot write .*No such file"):
        trimmed_gguf(source, tmp_path / "none" / "trimmed.gguf")

    def interrupted(what: str, done: int, total: int) -> None:
        if total == 298 - len(KEPT):  # rows behind the last tensor
            raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_trimmed_gguf(
            TrimmedHead(GGUFFile(source), KEPT), tmp_path / "out" / "trimmed.gguf", interrupted
        )
    assert list((tmp_path / "out").iterdir()) == []
