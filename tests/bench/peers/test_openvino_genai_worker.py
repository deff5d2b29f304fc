"""OpenVINO GenAI's worker, and the files that are made for its reader."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edgespec.bench.peers.workers.openvino_gguf import EXACT, ROUNDED, describe, readable
from tests.bench.peers.asking import ask, needs
from tests.tiny import tiny_gguf

PEER = "openvino-genai"


def test_what_it_says_of_the_weights() -> None:
    assert describe({"F32", "Q8_0", "Q6_K"}, EXACT | ROUNDED) == "as in the file"
    assert describe({"F32", "Q4_K"}, EXACT | ROUNDED) == (
        "minima of Q4_K rounded to whole zero points"
    )
    assert describe({"Q4_1", "Q5_0"}, EXACT | ROUNDED) == (
        "minima of Q4_1 rounded to whole zero points; Q5_0 in 8 bits (Q8_0)"
    )
    assert describe({"F32", "Q4_K"}, EXACT) == "Q4_K in 8 bits (Q8_0)"


def test_a_file_that_it_reads_is_copied(tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "model.gguf", quant="Q4_0")
    kinds, parameters = readable(str(source), tmp_path / "copy.gguf", EXACT)
    assert kinds == {"F32", "Q4_0"}
    tensors = gguf.GGUFReader(source).tensors
    assert parameters == sum(gguf.dequantize(t.data, t.tensor_type).size for t in tensors)
    assert (tmp_path / "copy.gguf").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("quant", ["Q5_0", "BF16"])
def test_matrices_that_it_does_not_read_become_8_bits(tmp_path: Path, quant: str) -> None:
    source = tiny_gguf(tmp_path / "model.gguf", quant=quant)
    readable(str(source), tmp_path / "copy.gguf", EXACT)
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "copy.gguf")
    for name, field in before.fields.items():
        if not name.startswith("GGUF."):
            assert after.fields[name].contents() == field.contents()
            assert after.fields[name].types == field.types
    assert {t.tensor_type.name for t in after.tensors} == {"F32", "Q8_0"}
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.name, list(old.shape)) == (new.name, list(new.shape))
        values = gguf.dequantize(old.data, old.tensor_type)
        error = np.abs(gguf.dequantize(new.data, new.tensor_type) - values)
        assert error.max() <= np.abs(values).max() / 220


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are converted once."""
    return tmp_path_factory.mktemp("models")


@needs(PEER)
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["plain", "prompt-lookup", "draft"])
def test_it_answers(mode: str, smollm2: Path, folder: Path) -> None:
    ask(PEER, mode, "minima of Q4_1 rounded", 1.5, smollm2, folder)


@needs(PEER)
@pytest.mark.slow
def test_in_8_bits_it_loses_nothing(smollm2: Path, folder: Path) -> None:
    ask(PEER, "plain?eight_bits=true", "Q4_1 in 8 bits", 1.01, smollm2, folder)
