"""Products in C against gguf's dequantization, and which bits they have."""

from __future__ import annotations

import numpy as np
import pytest

from edgespec import kernels
from edgespec.core.runtime import FloatArray
from edgespec.kernels.native import TYPES, get_rows, multiply, pack_matrix, packed_bytes
from tests.kernels.matrices import rounded, rounded_sums, stored, weights

COLUMNS = 768


def activations(n: int, columns: int = COLUMNS, seed: int = 1) -> FloatArray:
    x = np.random.default_rng(seed).standard_normal((n, columns)).astype(np.float32)
    x[:, ::97] *= 8
    return x


@pytest.mark.parametrize("type", TYPES)
def test_a_product_is_that_of_the_weights_and_the_rounded_activations(type: str) -> None:
    raw = stored(type, 37, COLUMNS)
    w = weights(type, raw, COLUMNS).astype(np.float64)
    x = activations(5)
    expected = rounded(type, x) @ w.T
    if type in ("Q4_1", "Q5_1"):  # llama.cpp multiplies the minimum with a sum rounded to a half
        minimum = raw.reshape(37, -1, 20 if type == "Q4_1" else 24)[..., 2:4].copy()
        expected += rounded_sums(x) @ minimum.view(np.float16)[..., 0].astype(np.float64).T
    found = multiply(type, 37, COLUMNS, pack_matrix(type, 37, COLUMNS, raw), x)
    size = np.sqrt((expected**2).mean())
    assert np.abs(found - expected).max() < 2e-6 * size


@pytest.mark.parametrize("type", TYPES)
def test_every_instruction_set_gives_the_same_bits(type: str) -> None:
    packed = pack_matrix(type, 53, COLUMNS, stored(type, 53, COLUMNS))
    x = activations(19)
    found = {}
    for name in kernels.isas():
        kernels.set_isa(name)
        assert kernels.isa() == name
        found[name] = multiply(type, 53, COLUMNS, packed, x)
    assert len(found) > 1
    for name, y in found.items():
        assert np.array_equal(y.view(np.uint32), found["portable"].view(np.uint32)), name


@pytest.mark.parametrize("type", TYPES)
def test_the_bits_of_a_row_do_not_depend_on_the_number_of_rows(type: str) -> None:
    packed = pack_matrix(type, 40, COLUMNS, stored(type, 40, COLUMNS))
    x = activations(70)
    for name in kernels.isas():
        kernels.set_isa(name)
        whole = multiply(type, 40, COLUMNS, packed, x)
        for n in (1, 2, 3, 4, 5, 8, 16, 17, 33, 64, 65):
            part = multiply(type, 40, COLUMNS, packed, x[70 - n :])
            assert np.array_equal(part.view(np.uint32), whole[70 - n :].view(np.uint32)), (name, n)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31])
def test_any_number_of_rows_and_rows_as_floats(type: str, rows: int) -> None:
    raw = stored(type, rows, COLUMNS)
    packed = pack_matrix(type, rows, COLUMNS, raw)
    assert packed.nbytes == packed_bytes(type, rows, COLUMNS)
    found = get_rows(type, rows, COLUMNS, packed, np.arange(rows, dtype=np.int32))
    assert np.array_equal(found, weights(type, raw, COLUMNS))
    x = activations(3)
    wide = multiply(type, 31, COLUMNS, pack_matrix(type, 31, COLUMNS, stored(type, 31, COLUMNS)), x)
    narrow = multiply(type, rows, COLUMNS, packed, x)
    assert narrow.shape == (3, rows)
    if rows == 31:
        assert np.array_equal(narrow, wide)


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "U4_32", "U4_64", "U4_128", "I8_64"])
@pytest.mark.parametrize("columns", [1, 33, 100, 576])
def test_a_last_block_that_is_filled_up(type: str, columns: int) -> None:
    raw = stored(type, 20, columns)
    packed = pack_matrix(type, 20, columns, raw)
    w = weights(type, raw, columns).astype(np.float64)
    x = activations(4, columns)
    for name in kernels.isas():
        kernels.set_isa(name)
        expected = rounded(type, x) @ w.T
        found = multiply(type, 20, columns, packed, x)
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    ids = np.array([19, 0], np.int32)
    assert np.array_equal(get_rows(type, 20, columns, packed, ids), w[ids].astype(np.float32))


def test_activations_that_are_hard_to_round() -> None:
    x = np.zeros((6, 256), np.float32)
    x[1] = 1e-42  # a scale that overflows
    x[2] = np.linspace(-1, 1, 256)  # two values of the largest magnitude
    x[3] = x[2][::-1]
    x[4, 7] = 3e38
    x[5] = np.where(np.arange(256) % 2, 0.5, 127)  # ties
    for type in ("Q4_K", "Q6_K", "Q8_0", "F16"):
        raw = stored(type, 16, 256)
        packed = pack_matrix(type, 16, 256, raw)
        found = {}
        for name in kernels.isas():
            kernels.set_isa(name)
            found[name] = multiply(type, 16, 256, packed, x)
            assert np.array_equal(found[name], found[kernels.isas()[0]], equal_nan=True)
        assert (found["portable"][0] == 0).all()
        with np.errstate(over="ignore"):
            expected = rounded(type, x[[2, 3, 5]]) @ weights(type, raw, 256).astype(np.float64).T
        assert np.allclose(found["portable"][[2, 3, 5]], expected, rtol=1e-4, atol=1e-4)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="whole blocks"):
        packed_bytes("Q4_K", 16, 896)
    with pytest.raises(ValueError, match="whole blocks"):
        packed_bytes("Q8_0", 16, 40)
    with pytest.raises(ValueError, match="at most"):
        packed_bytes("Q8_0", 1 << 25, 32)
    with pytest.raises(ValueError, match="do not multiply IQ2_XS"):
        packed_bytes("IQ2_XS", 16, 256)
    with pytest.raises(ValueError, match="not 100"):
        pack_matrix("Q8_0", 16, 32, np.zeros(100, np.uint8))
    packed = pack_matrix("Q8_0", 3, 32, stored("Q8_0", 3, 32))
    with pytest.raises(ValueError, match="shape"):
        multiply("Q8_0", 3, 32, packed, np.zeros((1, 31), np.float32))
    with pytest.raises(ValueError, match="another size"):
        multiply("Q8_0", 17, 32, packed, np.zeros((1, 32), np.float32))
    with pytest.raises(IndexError, match="0–2"):
        get_rows("Q8_0", 3, 32, packed, np.array([3], np.int32))
    with pytest.raises(ValueError, match="portable"):
        kernels.set_isa("mmx")
