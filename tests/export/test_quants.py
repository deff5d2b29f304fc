"""Every block format against gguf's own dequantization, or for the project's own formats against their
definition read byte by byte, with ``MatMulNBits`` written out plainly."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from edgespec.device.machine import physical_cores
from edgespec.export.quants import (
    FORMATS,
    SUM_BLOCK,
    Format,
    Packed,
    dequantize,
    encode,
    pack,
    row_bytes,
    unpack,
)
from edgespec.runtimes.onnx.session import share_threads
from tests.tiny import random_matrix

Array = npt.NDArray[Any]
EXACT = ("Q4_0", "Q5_0", "Q8_0")
WITH_MINIMUMS = ("Q4_1", "Q4_K", "Q5_K")
OWN = ("U4_32", "U4_64", "U4_128", "I8_64")


def stored(name: str, columns: int, seed: int = 0) -> Array:
    """Rows of random weights in a format, ``[rows, bytes]``."""
    random = np.random.default_rng(seed)
    return random_matrix(random, (12, columns), 0.1, gguf.GGMLQuantizationType[name])


def columns_of(name: str) -> tuple[int, ...]:
    """Row lengths of one block, of an odd and an even number, and of 4.5 blocks of 128."""
    return (256, 768, 1024, 8448) if name.endswith("K") else (32, 96, 576, 1024, 1056)


def dequantized(name: str, raw: Array) -> Array:
    return np.asarray(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]))


def codes_of(packed: Array, bits: int, count: int) -> Array:
    """Codes along the last axis; of 4 bits, the low nibble comes first."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return packed[..., :count].astype(np.float32)


def matrix_of(packed: Packed, format: Format) -> Array:
    """The matrix that ``MatMulNBits`` multiplies with: ``scale · (code − zero_point)``, in float32."""
    blocks = packed.scales.shape[1]
    codes = codes_of(packed.weight, format.bits, format.block)
    middle = np.full((1, blocks), 1 << (format.bits - 1), np.float32)
    zero_points = packed.zero_points
    zeros = middle if zero_points is None else codes_of(zero_points, format.bits, blocks)
    weights = packed.scales[..., None] * (codes - zeros[..., None])
    assert weights.dtype == np.float32
    return weights.reshape(len(weights), -1)


def effective(packed: Packed, format: Format, columns: int) -> Array:
    """The same with the columns that act on block sums carried over to the inputs they sum."""
    matrix = matrix_of(packed, format)
    if not format.has_minimums:
        assert matrix.shape[1] == columns
        return matrix
    sums = matrix[:, columns : columns + columns // SUM_BLOCK]
    return matrix[:, :columns] + np.repeat(sums, SUM_BLOCK, axis=1)


def blocks_of(values: Array, size: int) -> Array:
    return values.reshape(len(values), -1, size)


GGUF_FORMATS = (*EXACT, *WITH_MINIMUMS, "Q6_K")
CASES = [(name, columns) for name in GGUF_FORMATS for columns in columns_of(name)]


def test_all_formats_are_tested() -> None:
    assert set(FORMATS) == {*GGUF_FORMATS, *OWN}


@pytest.mark.parametrize(("name", "columns"), CASES)
def test_unpacked_codes_are_the_stored_weights(name: str, columns: int) -> None:
    raw = stored(name, columns)
    blocks = unpack(raw, FORMATS[name])
    minimums: Any = 0 if blocks.minimums is None else blocks.minimums[..., None]
    middle = 1 << (FORMATS[name].bits - 1)
    if name == "Q6_K":
        middle = 128  # its codes of 6 bits are put around the middle of 8
    middle = 0 if FORMATS[name].has_minimums else middle
    codes = blocks.codes.reshape(*blocks.scales.shape, -1).astype(np.float32)
    weights = blocks.scales[..., None] * (codes - middle) - minimums
    np.testing.assert_array_equal(weights.reshape(len(raw), -1), dequantized(name, raw))


@pytest.mark.parametrize(("name", "columns"), [case for case in CASES if case[0] in EXACT])
def test_formats_without_minimums_are_packed_exactly(name: str, columns: int) -> None:
    raw = stored(name, columns)
    found = effective(pack(raw, FORMATS[name]), FORMATS[name], columns)
    np.testing.assert_array_equal(found, dequantized(name, raw))


@pytest.mark.parametrize(("name", "columns"), [case for case in CASES if case[0] in WITH_MINIMUMS])
def test_minimums_cost_a_fraction_of_a_quantization_step(name: str, columns: int) -> None:
    """Zero points leave at most half a step of a block's minimum; rounding that to ``bits`` bits,
    over the range of 32 blocks, errs by half of 1 / (2^bits − 1) of the largest step."""
    raw, format = stored(name, columns), FORMATS[name]
    steps = unpack(raw, format).scales
    steps = np.pad(steps, [(0, 0), (0, -steps.shape[1] % SUM_BLOCK)])
    largest = blocks_of(steps, SUM_BLOCK).max(axis=-1)
    bound = np.repeat(largest / (2 * ((1 << format.bits) - 1)), SUM_BLOCK * SUM_BLOCK, axis=1)
    error = np.abs(effective(pack(raw, format), format, columns) - dequantized(name, raw))
    assert (error <= bound[:, :columns] * 1.001).all()
    # Else the bound would test nothing; a block's only residual is exact.
    assert columns == SUM_BLOCK or error.max() > bound.max() / 10


@pytest.mark.parametrize("values", ["all positive", "all negative", "constant", "zero"])
def test_minimums_outside_the_zero_points_range(values: str) -> None:
    """The residual then carries what the zero point cannot, rounded over its own range."""
    spread = np.random.default_rng(0).uniform(1, 2, (4, 2048)).astype(np.float32)
    signs: dict[str, Callable[[Array], Array]] = {
        "all positive": lambda v: v,
        "all negative": lambda v: -v,
        "constant": lambda v: np.full_like(v, 3.0),
        "zero": np.zeros_like,
    }
    raw = gguf.quants.quantize(signs[values](spread), gguf.GGMLQuantizationType.Q4_1)
    found = effective(pack(raw, FORMATS["Q4_1"]), FORMATS["Q4_1"], 2048)
    expected = dequantized("Q4_1", raw)
    bound = np.abs(expected).max() / 15 / 2  # the whole minimum, in 4 bits
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= bound * 1.001


@pytest.mark.parametrize("columns", columns_of("Q6_K"))
def test_q6_k_is_rounded_to_8_bits_over_blocks_of_128(columns: int) -> None:
    raw, format = stored("Q6_K", columns), FORMATS["Q6_K"]
    expected = dequantized("Q6_K", raw)
    error = np.abs(effective(pack(raw, format), format, columns) - expected)
    bound = np.abs(blocks_of(expected, 128)).max(axis=-1, keepdims=True) / 127 / 2
    assert (blocks_of(error, 128) <= bound * 1.001).all()
    assert error.max() > bound.max() / 4


def test_rows_can_be_packed_in_parts() -> None:
    for name, format in FORMATS.items():
        raw = encode(*drawn(name, 256), name) if name in OWN else stored(name, 256)
        whole, first, rest = (pack(part, format) for part in (raw, raw[:5], raw[5:]))
        for field in ("weight", "scales", "zero_points"):
            values = [getattr(packed, field) for packed in (whole, first, rest)]
            if values[0] is not None:
                np.testing.assert_array_equal(values[0], np.concatenate(values[1:]))


def drawn(name: str, columns: int) -> tuple[Array, Array, Array | None]:
    """Random codes, scales and zero points for 12 rows of one of the project's own formats."""
    random, format = np.random.default_rng(0), FORMATS[name]
    codes = random.integers(0, 1 << format.bits, (12, columns)).astype(np.uint8)
    blocks = -(-columns // format.block)
    scales = random.uniform(-0.1, 0.1, (12, blocks)).astype(np.float16).astype(np.float32)
    if not format.has_zero_points:
        return codes, scales, None
    return codes, scales, random.integers(0, 16, (12, blocks)).astype(np.uint8)


def read_plainly(row: bytes, name: str) -> list[float]:
    """A stored row's weights by the definition of the project's own formats."""
    kind, size = name[0], int(name.split("_")[1])
    weights = []
    while row:
        [scale] = struct.unpack_from("<e", row)
        if kind == "U":
            zero, packed, row = row[2], row[3 : 3 + size // 2], row[3 + size // 2 :]
            codes = [nibble - zero for byte in packed for nibble in (byte % 16, byte // 16)]
        else:
            codes, row = list(struct.unpack_from(f"<{size}b", row, 2)), row[2 + size :]
        weights += [scale * code for code in codes]
    return weights


OWN_CASES = [(name, columns) for name in OWN for columns in (32, 128, 352, 1024)]


@pytest.mark.parametrize(("name", "columns"), OWN_CASES)
def test_own_formats_match_their_description(name: str, columns: int) -> None:
    codes, scales, zero_points = drawn(name, columns)
    raw = encode(codes, scales, zero_points, name)
    assert raw.shape == (12, row_bytes(name, columns))
    zeros = 128.0 if zero_points is None else zero_points.astype(np.float32)
    block = FORMATS[name].block
    weights = np.repeat(scales, block, 1)[:, :columns] * (
        codes - np.repeat(np.broadcast_to(zeros, scales.shape), block, 1)[:, :columns]
    )
    plain = np.array([read_plainly(row.tobytes(), name) for row in raw], np.float32)
    np.testing.assert_array_equal(plain[:, :columns], weights)
    assert not plain[:, columns:].any()
    np.testing.assert_array_equal(dequantize(raw, name), plain)
    np.testing.assert_array_equal(dequantize(raw, name, columns), weights)


@pytest.mark.parametrize(("name", "columns"), OWN_CASES)
def test_own_formats_are_packed_exactly(name: str, columns: int) -> None:
    """Codes, scales and zero points as they are, with nothing for the sums of blocks."""
    codes, scales, zero_points = drawn(name, columns)
    raw, format = encode(codes, scales, zero_points, name), FORMATS[name]
    packed = pack(raw, format)
    unpacked = codes_of(packed.weight, format.bits, format.block).reshape(12, -1)
    np.testing.assert_array_equal(unpacked[:, :columns], codes)
    np.testing.assert_array_equal(packed.scales, scales)
    if zero_points is None:
        assert packed.zero_points is None
    else:
        assert packed.zero_points is not None
        found = codes_of(packed.zero_points, format.bits, scales.shape[1])
        np.testing.assert_array_equal(found, zero_points)
    assert packed.scales.dtype == np.float32
    np.testing.assert_array_equal(matrix_of(packed, format), dequantize(raw, name))


def multiplied(value: Array, packed: Packed, format: Format, accuracy_level: int) -> Array:
    """ONNX Runtime's product of ``value`` and the packed matrix."""
    constants = {"weight": packed.weight, "scales": packed.scales, "zeros": packed.zero_points}
    given = {name: array for name, array in constants.items() if array is not None}
    rows, columns = len(packed.weight), value.shape[1]
    node = helper.make_node(
        "MatMulNBits", ["value", *given], ["product"], domain="com.microsoft",
        K=columns, N=rows, bits=format.bits, block_size=format.block, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("value", 1, value.shape)],
        [helper.make_tensor_value_info("product", 1, [len(value), rows])],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    share_threads(physical_cores())  # as the process's other sessions do
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"value": value})[0])


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
@pytest.mark.parametrize(("name", "columns"), OWN_CASES)
def test_onnx_runtime_multiplies_with_own_formats(name: str, columns: int, rows: int) -> None:
    """Also where the last block is not full. At accuracy level 4 the inputs are rounded to 8 bits."""
    raw, format = encode(*drawn(name, columns), name), FORMATS[name]
    value = np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)
    expected = value @ dequantize(raw, name, columns).T
    for level, bound in ((0, 1e-5), (4, 0.03)):
        error = multiplied(value, pack(raw, format), format, level) - expected
        assert np.sqrt(np.square(error).mean()) <= bound * np.sqrt(np.square(expected).mean())


@pytest.mark.parametrize("scale", [1 / 3, 1e6, 1e-9, float("inf"), float("nan")])
def test_scales_that_float16_does_not_hold_are_refused(scale: float) -> None:
    codes, scales = np.zeros((1, 32), np.uint8), np.full((1, 1), scale, np.float32)
    with pytest.raises(ValueError, match="float16"):
        encode(codes, scales, None, "U4_32")


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *GGUF_FORMATS])
def test_dequantize_gives_gguf_s_values(name: str) -> None:
    raw = stored(name, 512).view(np.uint8)
    found = dequantize(raw, name)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, dequantized(name, raw))
