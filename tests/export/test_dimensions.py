"""The dimensions of a model, from metadata and from a built folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgespec.core.runtime_spec import ModelDimensions
from edgespec.errors import UserError
from edgespec.export.dimensions import built_dimensions, dimensions_of
from edgespec.models.gguf import GGUFFile
from tests.tiny import tiny_gguf

VOCABULARY = 49152


@pytest.fixture(scope="module")
def found(smollm2: Path) -> ModelDimensions:
    return dimensions_of(GGUFFile(smollm2), VOCABULARY)


def test_the_dimensions_of_smollm2(found: ModelDimensions, smollm2: Path) -> None:
    layers, kv_heads, head_dim = 30, 3, 64
    assert found.cache_numbers == layers * 2 * kv_heads * head_dim
    assert (found.heads, found.head_dim, found.hidden, found.feed_forward) == (9, 64, 576, 1536)
    assert (found.columns, found.context) == (VOCABULARY, 8192)
    assert 0.97 * smollm2.stat().st_size < found.stored_bytes < smollm2.stat().st_size


def test_a_built_model_has_the_dimensions_of_its_source(
    found: ModelDimensions, smollm2_onnx: Path
) -> None:
    built = built_dimensions(smollm2_onnx, VOCABULARY)
    same = ("vocab_size", "columns", "context", "cache_numbers", "heads", "head_dim", "hidden")
    assert [getattr(built, name) for name in same] == [getattr(found, name) for name in same]
    assert built.matrices == pytest.approx(found.matrices, abs=100)  # some are fused
    assert built.packed_bytes == pytest.approx(found.packed_bytes, rel=0.02)


@pytest.mark.parametrize("key", ["block_count", "attention.head_count", "embedding_length"])
@pytest.mark.parametrize("value", [0, -1, 1 << 50, "many", 2.5])
def test_sizes_that_make_no_sense_are_refused(tmp_path: Path, key: str, value: object) -> None:
    file = GGUFFile(tiny_gguf(tmp_path / "tiny.gguf"))
    file.metadata[f"llama.{key}"] = value
    with pytest.raises(UserError, match=f"says llama.{key} = "):
        dimensions_of(file, 300)


def test_a_file_without_a_head_is_refused(tmp_path: Path) -> None:
    file = GGUFFile(tiny_gguf(tmp_path / "tiny.gguf"))
    del file.tensors["output.weight"], file.tensors["token_embd.weight"]
    with pytest.raises(UserError, match=r"no tensor token_embd\.weight"):
        dimensions_of(file, 300)
