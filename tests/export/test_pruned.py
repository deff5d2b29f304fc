"""Sources that kept some layers, and the choice of them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from edgespec.errors import UserError
from edgespec.export.pruning import angular_distance, choose_layers
from edgespec.export.source import KEPT_LAYERS
from edgespec.export.sources.pruned import KeptLayers, parse_layers
from edgespec.export.to_onnx import write_onnx
from edgespec.models.gguf import GGUFFile
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.onnx_support import ARCHITECTURES
from tests.tiny import tiny_gguf

TOKENS = np.random.default_rng(3).integers(0, 256, 24).tolist()


@pytest.fixture
def source(tmp_path: Path) -> GGUFFile:
    return GGUFFile(tiny_gguf(tmp_path / "a.gguf", layers=6))


def test_layers_are_renumbered_and_remembered(source: GGUFFile) -> None:
    pruned = KeptLayers(source, [0, 2, 5])
    assert pruned.metadata["llama.block_count"] == 3
    assert pruned.metadata[KEPT_LAYERS] == [0, 2, 5]
    for new, old in enumerate([0, 2, 5]):
        name = f"blk.{new}.ffn_down.weight"
        assert pruned.tensors[name].name == name
        assert np.array_equal(pruned.tensor(name), source.tensor(f"blk.{old}.ffn_down.weight"))
    assert not any(name.startswith("blk.3.") for name in pruned.tensors)
    assert np.array_equal(pruned.tensor("token_embd.weight"), source.tensor("token_embd.weight"))


def test_pruning_twice_remembers_the_first_model_s_layers(source: GGUFFile) -> None:
    twice = KeptLayers(KeptLayers(source, [1, 3, 5]), [0, 2])
    assert twice.metadata[KEPT_LAYERS] == [1, 5]
    name = "blk.1.attn_q.weight"
    assert np.array_equal(twice.tensor(name), source.tensor("blk.5.attn_q.weight"))


@pytest.mark.parametrize("layers", [[], [6], [-1, 0], [1, 1], [2, 1]])
def test_bad_lists_are_one_line(source: GGUFFile, layers: list[int]) -> None:
    with pytest.raises(UserError, match="0 to 5") as error:
        KeptLayers(source, layers)
    assert "\n" not in str(error.value)


def test_the_option_is_a_count_or_a_list() -> None:
    assert parse_layers("20") == 20
    assert parse_layers(" 0, 2,5") == [0, 2, 5]
    for text in ("", "0,", "a", "1-3", "-1", "1\n2", "9" * 30):
        with pytest.raises(UserError, match="neither"):
            parse_layers(text)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_pruned_model_is_the_model_without_those_layers(
    architecture: str, tmp_path: Path
) -> None:
    """On ONNX Runtime, against the whole model with the layers' outputs set to nothing."""
    whole = tiny_gguf(tmp_path / "whole.gguf", architecture, layers=7)
    silenced = GGUFFile(whole)
    kept = [0, 1, 3, 5, 6]  # gemma3's sixth layer sees everything: it must stay one that does
    folder, other = tmp_path / "pruned", tmp_path / "silenced"
    folder.mkdir()
    write_onnx(KeptLayers(silenced, kept), folder)
    data = bytearray(whole.read_bytes())
    outputs = ("attn_output", "ffn_down")
    for layer in {*range(7)} - {*kept}:
        for name in outputs:
            info = silenced.tensors[f"blk.{layer}.{name}.weight"]
            data[info.offset : info.offset + info.nbytes] = bytes(info.nbytes)
    (tmp_path / "silenced.gguf").write_bytes(data)
    other.mkdir()
    write_onnx(GGUFFile(tmp_path / "silenced.gguf"), other)
    one, two = (OnnxRuntime(f, context=64, exact=False).forward(TOKENS) for f in (folder, other))
    assert np.allclose(one, two, atol=1e-3)


def test_the_angle_is_a_part_of_half_a_turn() -> None:
    x = np.array([[1, 0], [0, 2]], np.float32)
    assert angular_distance(x, 3 * x) == pytest.approx(0, abs=1e-3)
    assert angular_distance(x, -x) == pytest.approx(1)
    assert angular_distance(x, x[::-1]) == pytest.approx(0.5)


def test_the_run_of_layers_that_does_least_is_dropped(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tiny_gguf(tmp_path / "a.gguf", layers=6)
    source, data = GGUFFile(path), bytearray(path.read_bytes())
    for layer in (2, 3):  # they hardly add to what they are given
        for name in ("attn_output", "ffn_down"):
            info = source.tensors[f"blk.{layer}.{name}.weight"]
            values = gguf.quants.dequantize(source.tensor(info.name), gguf.GGMLQuantizationType.F32)
            data[info.offset : info.offset + info.nbytes] = (values * 0.01).tobytes()
    path.write_bytes(data)
    source = GGUFFile(path)
    assert choose_layers(source, 4, [TOKENS]) == [0, 1, 4, 5]
    assert choose_layers(source, 5, [TOKENS]) in ([0, 1, 3, 4, 5], [0, 1, 2, 4, 5])
    for count in (0, 6, 7):
        with pytest.raises(UserError, match="1 to 5"):
            choose_layers(source, count, [TOKENS])
