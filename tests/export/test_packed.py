"""Layers packed by GPTQ and AWQ, packed here once more from the formats' public definitions: plain loops
over outputs and inputs, eight numbers to a word."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError
from edgespec.export.quants import FORMATS, dequantize, unpack
from edgespec.export.sources import open_source
from edgespec.export.sources.packed import PackedCheckpoint
from edgespec.export.to_onnx import write_onnx
from edgespec.models.safetensors import Checkpoint
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.hf_folder import safetensors_folder, write_safetensors
from tests.tiny import tiny_gguf

Array = npt.NDArray[Any]
Tensors = dict[str, tuple[str, Array]]

PACKINGS = ("gptq", "gptq_v2", "awq")
GROUPS = (32, 64, 128)
NAME = "model.layers.0.mlp.up_proj"


def word(numbers: Iterable[int]) -> int:
    """Numbers of 4 bits in one of 32, the first in the lowest bits."""
    return sum(int(number) << 4 * i for i, number in enumerate(numbers))


def words(rows: list[list[int]]) -> tuple[str, Array]:
    return "I32", np.array(rows, np.uint32).view(np.int32)


def pack_gptq(codes: Array, zero_points: Array, *, v2: bool, group: int) -> Tensors:
    """AutoGPTQ's ``pack``; in version 1, GPTQModel's subtraction from whole words."""
    outputs, inputs = codes.shape
    qweight = [
        [word(codes[n, k + i] for i in range(8)) for n in range(outputs)]
        for k in range(0, inputs, 8)
    ]
    qzeros = [
        [word(zero_points[n + i, g] for i in range(8)) for n in range(0, outputs, 8)]
        for g in range(zero_points.shape[1])
    ]
    if not v2:
        qzeros = [[(each - 0x11111111) % 2**32 for each in row] for row in qzeros]
    g_idx = np.array([k // group for k in range(inputs)], np.int32)
    return {"qweight": words(qweight), "qzeros": words(qzeros), "g_idx": ("I32", g_idx)}


def pack_awq(codes: Array, zero_points: Array) -> Tensors:
    """AutoAWQ's ``WQLinear_GEMM.from_linear``."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def columns(matrix: Array) -> tuple[str, Array]:
        return words(
            [
                [word(matrix[n + i, k] for i in order) for n in range(0, len(matrix), 8)]
                for k in range(matrix.shape[1])
            ]
        )

    return {"qweight": columns(codes), "qzeros": columns(zero_points)}


def packed(packing: str, codes: Array, zero_points: Array, scales: Array, group: int) -> Tensors:
    if packing == "awq":
        parts = pack_awq(codes, zero_points)
    else:
        parts = pack_gptq(codes, zero_points, v2=packing == "gptq_v2", group=group)
    return parts | {"scales": ("F16", np.ascontiguousarray(scales.T).astype(np.float16))}


def drawn(outputs: int, inputs: int, group: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Random codes, zero points and scales; every zero point of the range."""
    random, groups = np.random.default_rng(seed), -(-inputs // group)
    codes = random.integers(0, 16, (outputs, inputs)).astype(np.uint8)
    zero_points = random.integers(0, 16, (outputs, groups)).astype(np.uint8)
    scales = random.uniform(-0.1, 0.1, (outputs, groups)).astype(np.float16).astype(np.float32)
    return codes, zero_points, scales


def quantization(packing: str, group: int, **changes: Any) -> dict[str, Any]:
    common = {"bits": 4, "group_size": group}
    if packing == "awq":
        common |= {"quant_method": "awq", "version": "gemm", "zero_point": True}
    else:
        common |= {"quant_method": "gptq", "checkpoint_format": packing, "sym": False}
        common |= {"desc_act": False}
    return common | changes


def write_checkpoint(folder: Path, tensors: Tensors, config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    stored = {
        name: (dtype, array.shape, array.tobytes()) for name, (dtype, array) in tensors.items()
    }
    write_safetensors(folder / "model.safetensors", stored)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def one_layer(
    folder: Path,
    packing: str = "gptq",
    group: int = 64,
    size: tuple[int, int] = (24, 256),
    settings: dict[str, Any] | None = None,
    **changes: tuple[str, Array] | None,
) -> Path:
    """A checkpoint of one layer, with some of its parts changed or (``None``) left out."""
    parts: dict[str, Any] = packed(packing, *drawn(*size, group), group) | changes
    tensors = {f"{NAME}.{part}": value for part, value in parts.items() if value is not None}
    config = {"quantization_config": quantization(packing, group, **(settings or {}))}
    return write_checkpoint(folder, tensors, config)


@pytest.mark.parametrize("at_once", [1 << 22, 1 << 12])
@pytest.mark.parametrize("size", [(8, 32), (24, 256), (40, 352)])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("packing", PACKINGS)
def test_codes_scales_and_zero_points_arrive_as_they_are(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packing: str,
    group: int,
    size: tuple[int, int],
    at_once: int,
) -> None:
    monkeypatch.setattr("edgespec.export.sources.packed._PART_WEIGHTS", at_once)
    codes, zero_points, scales = drawn(*size, group)
    checkpoint = PackedCheckpoint(one_layer(tmp_path / "model", packing, group, size))
    [(name, tensor)] = checkpoint.tensors.items()
    assert (name, tensor.dtype, tensor.shape) == (f"{NAME}.weight", f"U4_{group}", size)
    raw = checkpoint.bytes(name)
    assert raw.shape == (tensor.rows, tensor.row_bytes)
    found = unpack(raw, FORMATS[tensor.dtype])
    assert found.zero_points is not None
    np.testing.assert_array_equal(found.codes[:, : size[1]], codes)
    np.testing.assert_array_equal(found.zero_points, zero_points)
    np.testing.assert_array_equal(found.scales, scales)
    spread = [np.repeat(each, group, axis=1)[:, : size[1]] for each in (scales, zero_points)]
    weights = spread[0] * (codes.astype(np.float32) - spread[1])
    np.testing.assert_array_equal(dequantize(raw, tensor.dtype, size[1]), weights)


def test_zero_points_less_one_of_each_are_read_alike(tmp_path: Path) -> None:
    """AutoGPTQ subtracts from each zero point, none of which is 0, before it packs them."""
    codes, zero_points, scales = drawn(16, 128, 32)
    zero_points = zero_points % 15 + 1
    parts = pack_gptq(codes, zero_points - 1, v2=True, group=32)
    scales_part = packed("gptq", codes, zero_points, scales, 32)["scales"]
    tensors = {f"{NAME}.{part}": each for part, each in (parts | {"scales": scales_part}).items()}
    config = {"quantization_config": quantization("gptq", 32)}
    checkpoint = PackedCheckpoint(write_checkpoint(tmp_path / "model", tensors, config))
    found = unpack(checkpoint.bytes(f"{NAME}.weight"), FORMATS["U4_32"])
    assert found.zero_points is not None
    np.testing.assert_array_equal(found.zero_points, zero_points)
    np.testing.assert_array_equal(found.codes, codes)


def test_what_is_not_packed_stays_as_it_is(tmp_path: Path) -> None:
    tensors = {
        f"{NAME}.{part}": each for part, each in packed("awq", *drawn(8, 64, 64), 64).items()
    }
    head = np.arange(12, dtype=np.float32).reshape(3, 4)
    bias = np.arange(8, dtype=np.float16)
    tensors |= {"lm_head.weight": ("F32", head), f"{NAME}.bias": ("F16", bias)}
    config = {"quantization_config": quantization("awq", 64, modules_to_not_convert=["lm_head"])}
    checkpoint = PackedCheckpoint(write_checkpoint(tmp_path / "model", tensors, config))
    assert set(checkpoint.tensors) == {"lm_head.weight", f"{NAME}.bias", f"{NAME}.weight"}
    np.testing.assert_array_equal(checkpoint.bytes("lm_head.weight").view(np.float32), head)
    np.testing.assert_array_equal(checkpoint.bytes(f"{NAME}.bias").view(np.float16), bias[None])


def test_a_checkpoint_that_is_not_quantized_is_read_as_ever(tmp_path: Path) -> None:
    head = np.arange(12, dtype=np.float32).reshape(3, 4)
    folder = write_checkpoint(tmp_path / "model", {"lm_head.weight": ("F32", head)}, {})
    checkpoint = PackedCheckpoint(folder)
    np.testing.assert_array_equal(checkpoint.bytes("lm_head.weight").view(np.float32), head)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_scales_of_other_types_that_float16_holds(tmp_path: Path, dtype: str) -> None:
    scales = np.full((4, 24), 0.046875, np.float32)  # 3 / 64
    stored = scales if dtype == "F32" else (scales.view(np.uint32) >> 16).astype(np.uint16)
    folder = one_layer(tmp_path / "model", scales=(dtype, stored))
    raw = PackedCheckpoint(folder).bytes(f"{NAME}.weight")
    np.testing.assert_array_equal(unpack(raw, FORMATS["U4_64"]).scales, scales.T)


def part(dtype: str, *shape: int) -> tuple[str, Array]:
    kinds = {"I32": np.int32, "F16": np.float16, "F32": np.float32, "I64": np.int64}
    return dtype, np.zeros(shape, kinds[dtype])


def permuted() -> tuple[str, Array]:
    return "I32", (np.arange(256) // 64)[::-1].astype(np.int32)


# What cannot be imported: how the layer (of 24 outputs, 256 inputs, groups of 64) is changed, and what
# the one line must say.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"settings": {"quant_method": "compressed-tensors"}}, "only gptq and awq"),
    "no method": ({"settings": {"quant_method": None}}, "the method None"),
    "a list for a method": ({"settings": {"quant_method": ["gptq"]}}, "the method"),
    "8 bits": ({"settings": {"bits": 8}}, "bits = 8"),
    "3 bits": ({"packing": "awq", "settings": {"bits": 3}}, "bits = 3"),
    "bits in words": ({"settings": {"bits": "four\nor so"}}, r"bits = 'four\\nor so'"),
    "groups of a row": ({"settings": {"group_size": -1}}, "group_size = -1"),
    "groups of 16": ({"settings": {"group_size": 16}}, "group_size = 16"),
    "groups of 64.0": ({"settings": {"group_size": 64.0}}, "group_size = 64.0"),
    "no groups": ({"settings": {"group_size": None}}, "group_size = None"),
    "marlin": ({"settings": {"checkpoint_format": "marlin"}}, "packing 'marlin'.*gptq_v2"),
    "marlin's older mark": ({"settings": {"is_marlin_format": True}}, "packing 'marlin'"),
    "gemv": ({"packing": "awq", "settings": {"version": "GEMV"}}, "packing 'gemv'.*only gemm"),
    "gemv_fast": (
        {"packing": "awq", "settings": {"version": None, "format": "gemv_fast"}},
        "packing 'gemv_fast'",
    ),
    "llm-awq": ({"packing": "awq", "settings": {"backend": "llm-awq"}}, "packing 'llm-awq'"),
    "no zero points": ({"packing": "awq", "settings": {"zero_point": False}}, "zero_point = False"),
    "qzeros missing": ({"qzeros": None}, r"up_proj\.qzeros' is missing"),
    "scales missing": ({"packing": "awq", "scales": None}, r"up_proj\.scales' is missing"),
    "g_idx missing": ({"settings": {"desc_act": True}, "g_idx": None}, r"g_idx' is missing"),
    "qweight of 3 dimensions": ({"qweight": part("I32", 32, 24, 1)}, r"qweight' has the shape"),
    "qweight without outputs": ({"qweight": part("I32", 32, 0)}, r"qweight' has the shape"),
    "20 outputs": ({"qweight": part("I32", 32, 20)}, r"the shape \(32, 20\), which gptq does"),
    "qweight of floats": ({"qweight": part("F32", 32, 24)}, r"qweight' is F32"),
    "codes of 8 bits": ({"qweight": part("I32", 64, 24)}, r"qzeros' is I32 \(4, 3\), not .*\(8, 3\)"),
    "another group size": ({"settings": {"group_size": 128}}, r"qzeros' is .*not .*\(2, 3\)"),
    "qzeros of int64": ({"qzeros": part("I64", 4, 3)}, r"qzeros' is I64"),
    "scales of integers": ({"scales": part("I32", 4, 24)}, r"scales' is I32.*F16 or BF16 or F32"),
    "scales of other shape": ({"scales": part("F16", 24, 4)}, r"scales' is F16 \(24, 4\)"),
    "g_idx too short": ({"g_idx": part("I32", 128)}, r"g_idx' is I32 \(128,\)"),
    "inputs permuted": ({"g_idx": permuted()}, r"up_proj\.weight' has .*another order \(desc_act\)"),
    "inputs permuted, as declared": ({"settings": {"desc_act": True}, "g_idx": permuted()}, "desc_act"),
    "packed and not": ({"weight": part("F16", 24, 256)}, "both packed and not"),
    "awq as gptq": ({"packing": "awq", "settings": quantization("gptq", 64)}, r"qweight' has the shape"),
    "gptq as awq": ({"settings": quantization("awq", 64)}, r"qzeros' is"),
}  # fmt: skip


@pytest.mark.parametrize("damage", BAD)
def test_an_import_failure_is_one_line_with_its_cause(tmp_path: Path, damage: str) -> None:
    changes, message = BAD[damage]
    folder = one_layer(tmp_path / "model", **changes)
    with pytest.raises(UserError, match=message) as caught:
        PackedCheckpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": 4}])
def test_packed_layers_need_a_configuration(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = one_layer(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="no quantization_config"):
        PackedCheckpoint(folder)


@pytest.mark.parametrize("scale", [1 / 3, 1e30, float("nan")])
def test_scales_that_float16_does_not_hold(tmp_path: Path, scale: float) -> None:
    scales = np.full((4, 24), scale, np.float32)
    checkpoint = PackedCheckpoint(one_layer(tmp_path / "model", scales=("F32", scales)))
    with pytest.raises(UserError, match=r"up_proj\.weight' cannot be kept exactly: float16"):
        checkpoint.bytes(f"{NAME}.weight")


def rounded(weights: Array, group: int) -> tuple[Array, Array, Array]:
    """Codes, zero points and scales of weights, each group over its own range."""
    groups = weights.reshape(len(weights), -1, group)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)
    scales = ((high - low) / 15).astype(np.float16).astype(np.float32)
    zero_points = np.clip(np.rint(-low / scales), 0, 15)
    codes = np.clip(np.rint(groups / scales[..., None]) + zero_points[..., None], 0, 15)
    return codes.reshape(weights.shape).astype(np.uint8), zero_points.astype(np.uint8), scales


def logits_of(checkpoint: Path, folder: Path) -> FloatArray:
    folder.mkdir()
    write_onnx(open_source(checkpoint), folder)
    runtime = OnnxRuntime(folder, context=64, exact=False)
    found = runtime.forward(np.random.default_rng(1).integers(0, 256, 60).tolist()).copy()
    runtime.close()
    return found


@pytest.mark.parametrize(
    ("packing", "group", "architecture"),
    [("gptq", 64, "llama"), ("gptq_v2", 32, "qwen2"), ("awq", 128, "llama"), ("awq", 64, "qwen2")],
)
def test_a_packed_model_has_the_logits_of_its_dequantized_weights(
    tmp_path: Path, packing: str, group: int, architecture: str
) -> None:
    """MatMulNBits rounds its inputs to 8 bits; see tests/export/test_decoder.py for the bound."""
    plain = Checkpoint(
        safetensors_folder(tiny_gguf(tmp_path / "a.gguf", architecture), tmp_path / "plain")
    )
    floats: Tensors = {}
    integers: Tensors = {}
    for name, tensor in plain.tensors.items():
        weights = plain.bytes(name).view(np.float32).reshape(tensor.shape)
        if not name.endswith("_proj.weight") or name == "model.layers.1.mlp.down_proj.weight":
            floats[name] = integers[name] = ("F32", weights)  # as modules_to_not_convert says
            continue
        codes, zero_points, scales = rounded(weights, group)
        parts = packed(packing, codes, zero_points, scales, group)
        integers |= {f"{name.removesuffix('.weight')}.{part}": parts[part] for part in parts}
        spread = [np.repeat(each, group, axis=1) for each in (scales, zero_points)]
        floats[name] = ("F32", spread[0] * (codes.astype(np.float32) - spread[1]))
    left = ["model.layers.1.mlp.down_proj"]
    settings = {"quantization_config": quantization(packing, group, modules_to_not_convert=left)}
    expected, found = (
        logits_of(write_checkpoint(tmp_path / kind, tensors, config), tmp_path / f"{kind}.onnx")
        for kind, tensors, config in (
            ("floats", floats, plain.config),
            ("integers", integers, plain.config | settings),
        )
    )
    assert expected.std() > 2
    assert np.sqrt(np.square(found - expected).mean()) / expected.std() <= 0.06
