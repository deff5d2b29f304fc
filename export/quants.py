"""Block formats of weights, and the codes that ONNX Runtime's ``MatMulNBits`` multiplies.

``MatMulNBits`` computes ``w = scale · (code − zero_point)`` per block, with integer zero points.
GGUF's formats (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h):

- Q4_0, Q5_0 and Q8_0 fit as they are.
- Q4_1, Q4_K and Q5_K store a real minimum per block of 32: ``w = scale · code − minimum``. The zero
  point takes the nearest integer to ``minimum / scale``; what remains, a constant per block, is
  multiplied with the sum of the block's inputs: extra columns of the same product.
- Q6_K has blocks of 16, which would cost 4 bits a weight in scales as the kernels keep them. It goes
  into 8-bit blocks of 64; the rounding that this adds is a fraction of the format's own, and of
  the kernels', which round their inputs to 8 bits as well. (Blocks of 128 would be a little smaller
  still, but there the kernels on x86-64 give a row other bits when it is the last of an odd pass.)

And this project's own, for weights of GPTQ, AWQ and our own quantization that no GGUF format represents exactly.
A row is its blocks, one after the other; the last one is filled up where columns are left over:

- U4_32, U4_64, U4_128: float16 scale, uint8 zero point (0–15), the codes in 4 bits, two a byte, the
  first in the low nibble.
- I8_64: float16 scale, 64 codes as int8, the zero point is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgespec.core.runtime import FloatArray
from edgespec.models.gguf import BLOCK_FORMATS

Bytes = npt.NDArray[np.uint8]

SUM_BLOCK = 32
"""Inputs per block sum; also the block size of every format that needs block sums."""


@dataclass(frozen=True)
class Blocks:
    """Quantized rows: ``codes`` uint8 ``[rows, K]``, ``scales`` float32 ``[rows, K / block]``.

    Each block subtracts its minimum (float32, like ``scales``) after scaling, or its zero point (uint8)
    before; without either, the zero point is the middle of the code range.
    """

    codes: Bytes
    scales: FloatArray
    minimums: FloatArray | None = None
    zero_points: Bytes | None = None


def _half(raw: Bytes) -> FloatArray:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Low nibbles of the last axis, then its high nibbles."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _q4_0(raw: Bytes) -> Blocks:
    return Blocks(_nibbles(raw[..., 2:]), _half(raw[..., :2])[..., 0])


def _q4_1(raw: Bytes) -> Blocks:
    return Blocks(
        _nibbles(raw[..., 4:]), _half(raw[..., :2])[..., 0], -_half(raw[..., 2:4])[..., 0]
    )


def _q5_0(raw: Bytes) -> Blocks:
    high = np.unpackbits(raw[..., 2:6], axis=-1, bitorder="little")
    codes = _nibbles(raw[..., 6:]) | np.left_shift(high, 4, dtype=np.uint8)
    return Blocks(codes + np.uint8(112), _half(raw[..., :2])[..., 0])


def _q8_0(raw: Bytes) -> Blocks:
    return Blocks(raw[..., 2:] ^ np.uint8(128), _half(raw[..., :2])[..., 0])


def _k_scales(raw: Bytes) -> tuple[FloatArray, FloatArray]:
    """Scales and minimums of the 8 blocks in each super-block of Q4_K and Q5_K: 6 bits each."""
    low, high, last = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    scales = np.concatenate([low & 63, (last & 15) | (low >> 6) << 4], axis=-1)
    minimums = np.concatenate([high & 63, last >> 4 | (high >> 6) << 4], axis=-1)
    return _half(raw[..., :2]) * scales, _half(raw[..., 2:4]) * minimums


def _q4_k(raw: Bytes) -> Blocks:
    codes = _nibbles(raw[..., 16:].reshape(*raw.shape[:-1], 4, 32))
    return Blocks(codes, *_k_scales(raw))


def _q5_k(raw: Bytes) -> Blocks:
    bits = raw[..., 16:48, None] >> np.arange(8, dtype=np.uint8) & 1
    codes = _nibbles(raw[..., 48:].reshape(*raw.shape[:-1], 4, 32)).reshape(*raw.shape[:-1], 8, 32)
    high = np.left_shift(np.swapaxes(bits, -1, -2), 4, dtype=np.uint8)
    return Blocks(codes | high, *_k_scales(raw))


def _q6_k(raw: Bytes) -> Blocks:
    low = _nibbles(raw[..., :128].reshape(*raw.shape[:-1], 2, 64)).reshape(
        *raw.shape[:-1], 2, 4, 32
    )
    high = raw[..., 128:192].reshape(*raw.shape[:-1], 2, 1, 32) >> np.array(
        [[0], [2], [4], [6]], np.uint8
    )
    scales = _half(raw[..., 208:]) * raw[..., 192:208].view(np.int8)
    return Blocks((low | (high & 3) << 4) + np.uint8(96), scales)


def _u4(raw: Bytes) -> Blocks:
    codes = np.stack([raw[..., 3:] & 15, raw[..., 3:] >> 4], axis=-1)
    return Blocks(codes, _half(raw[..., :2])[..., 0], zero_points=raw[..., 2])


@dataclass(frozen=True)
class Format:
    """The conversion of a type to ``MatMulNBits`` blocks of ``block`` weights in ``bits`` bits."""

    bits: int
    block: int
    unpack: Callable[[Bytes], Blocks]
    stored: tuple[int, int]
    """Weights and bytes of one stored (super-)block."""
    zeros: Literal["middle", "points", "minimums"] = "middle"
    """What represents zero in a block; see ``Blocks``."""
    rounded: bool = False
    """Whether ``block`` is larger than the stored blocks, so that weights are rounded once more."""

    @property
    def has_minimums(self) -> bool:
        """Whether the product has columns for the sums of the input's blocks."""
        return self.zeros == "minimums"

    @property
    def has_zero_points(self) -> bool:
        """Whether ``pack`` gives zero points."""
        return self.zeros != "middle"


_STORED = {name: (weights, size) for name, weights, size in BLOCK_FORMATS.values()}

FORMATS = {
    "Q4_0": Format(4, 32, _q4_0, _STORED["Q4_0"]),
    "Q4_1": Format(4, 32, _q4_1, _STORED["Q4_1"], "minimums"),
    "Q5_0": Format(8, 32, _q5_0, _STORED["Q5_0"]),
    "Q8_0": Format(8, 32, _q8_0, _STORED["Q8_0"]),
    "Q4_K": Format(4, 32, _q4_k, _STORED["Q4_K"], "minimums"),
    "Q5_K": Format(8, 32, _q5_k, _STORED["Q5_K"], "minimums"),
    "Q6_K": Format(8, 64, _q6_k, _STORED["Q6_K"], rounded=True),
    "U4_32": Format(4, 32, _u4, (32, 19), "points"),
    "U4_64": Format(4, 64, _u4, (64, 35), "points"),
    "U4_128": Format(4, 128, _u4, (128, 67), "points"),
    "I8_64": Format(8, 64, _q8_0, (64, 66)),
}


def row_bytes(type: str, columns: int) -> int:
    """Bytes of a stored row; its last block may be filled up."""
    block, size = FORMATS[type].stored
    return -(-columns // block) * size


def unpack(raw: Bytes, format: Format) -> Blocks:
    """Stored rows ``[rows, bytes]`` to codes, scales, minimums and zero points."""
    rows = len(raw)
    blocks = format.unpack(raw.reshape(rows, -1, format.stored[1]))
    minimums, zero_points = blocks.minimums, blocks.zero_points
    return Blocks(
        blocks.codes.reshape(rows, -1),
        blocks.scales.reshape(rows, -1),
        None if minimums is None else minimums.reshape(rows, -1),
        None if zero_points is None else zero_points.reshape(rows, -1),
    )


def encode(codes: Bytes, scales: FloatArray, zero_points: Bytes | None, type: str) -> Bytes:
    """Stored rows ``[rows, bytes]`` of one of the project's own formats; ``unpack`` gives all back.

    ``codes`` uint8 ``[rows, columns]``, ``scales`` ``[rows, ⌈columns / block⌉]``, exact in float16, ``zero_points`` uint8 like ``scales``. ``I8_64`` takes ``None`` for them; its
    codes lie around 128. Raises ``ValueError`` for scales that are not exact in float16.
    """
    format = FORMATS[type]
    rows, columns = codes.shape
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not (np.isfinite(half) & (half == scales)).all():
        raise ValueError("float16 does not hold every scale")
    middle = 1 << (format.bits - 1)
    zeros = np.full(scales.shape, middle, np.uint8) if zero_points is None else zero_points
    filler = np.repeat(zeros[:, -1:], -columns % format.block, axis=1)  # so that it weighs nothing
    codes = np.concatenate([codes, filler], axis=1).reshape(rows, -1, format.block)
    parts = [half[..., None].view(np.uint8)]
    if format.bits == 4:
        parts += [zeros[..., None], _nibble_pairs(codes)]
    else:
        parts += [codes ^ np.uint8(128)]
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


def dequantize(raw: Bytes, type: str, columns: int | None = None) -> FloatArray:
    """Stored rows ``[rows, bytes]`` of any type in ``FORMATS``, or F32, F16 and BF16, as float32.

    ``columns`` leaves out what fills up the last block.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as dequantize_gguf

    if type in GGMLQuantizationType.__members__:
        return np.asarray(dequantize_gguf(raw, GGMLQuantizationType[type]), np.float32)
    blocks = unpack(raw, FORMATS[type])
    middle = np.uint8(1 << (FORMATS[type].bits - 1))
    zeros = middle if blocks.zero_points is None else blocks.zero_points[..., None]
    codes = blocks.codes.reshape(*blocks.scales.shape, -1).astype(np.float32)
    weights = blocks.scales[..., None] * (codes - zeros)
    return weights.reshape(len(raw), -1)[:, :columns]


@dataclass(frozen=True)
class Packed:
    """The constant inputs of a ``MatMulNBits``, for some rows of the weight.

    ``weight`` uint8 ``[rows, blocks, block · bits / 8]``, ``scales`` float32 ``[rows, blocks]``,
    ``zero_points`` uint8 ``[rows, ⌈blocks · bits / 8⌉]`` or ``None`` for the middle of the range.
    """

    weight: Bytes
    scales: FloatArray
    zero_points: Bytes | None


def _quantize(values: FloatArray, bits: int) -> tuple[Bytes, FloatArray, Bytes]:
    """Round ``[rows, blocks, block]`` to codes, with a scale and a zero point for each block."""
    top = (1 << bits) - 1
    low = np.minimum(values.min(axis=-1), 0)
    high = np.maximum(values.max(axis=-1), 0)
    scales = np.maximum((high - low) / top, np.float32(1e-30)).astype(np.float32)
    zero_points = np.rint(-low / scales).astype(np.uint8)
    codes = np.clip(np.rint(values / scales[..., None]) + zero_points[..., None], 0, top)
    return codes.astype(np.uint8), scales, zero_points


def _nibble_pairs(codes: Bytes) -> Bytes:
    """Two codes a byte along the last axis, the first in the low nibble."""
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    return codes[..., ::2] | np.left_shift(codes[..., 1::2], 4, dtype=np.uint8)


def _round(blocks: Blocks, format: Format) -> Packed:
    """Weights rounded to larger blocks of 8 bits, symmetric around the middle of the range."""
    weights = blocks.codes.reshape(*blocks.scales.shape, -1).astype(np.float32) - 128
    weights = (weights * blocks.scales[..., None]).reshape(len(weights), -1, format.block)
    scales = np.maximum(np.abs(weights).max(axis=-1) / 127, np.float32(1e-30))
    codes = np.rint(weights / scales[..., None]) + 128
    return Packed(codes.astype(np.uint8), scales, None)


def pack(raw: Bytes, format: Format) -> Packed:
    """Stored rows ``[rows, bytes]`` to what ``MatMulNBits`` takes.

    Formats with minimums get one more input column for each block: the sums of the block's inputs.
    """
    blocks = unpack(raw, format)
    rows = len(raw)
    if format.rounded:
        return _round(blocks, format)
    codes = blocks.codes.reshape(rows, -1, format.block)
    scales, zero_points = blocks.scales, blocks.zero_points
    if blocks.minimums is not None:
        top = (1 << format.bits) - 1
        ratio = np.divide(blocks.minimums, scales, out=np.zeros_like(scales), where=scales != 0)
        zero_points = np.clip(np.rint(ratio), 0, top).astype(np.uint8)
        rest = scales * zero_points - blocks.minimums
        padding = -rest.shape[1] % format.block
        rest = np.pad(rest, [(0, 0), (0, padding)]).reshape(rows, -1, format.block)
        rest_codes, rest_scales, rest_zero_points = _quantize(rest, format.bits)
        codes = np.concatenate([codes, rest_codes], axis=1)
        scales = np.concatenate([scales, rest_scales], axis=1)
        zero_points = np.concatenate([zero_points, rest_zero_points], axis=1)
    if format.bits == 4:
        codes = _nibble_pairs(codes)
        zero_points = None if zero_points is None else _nibble_pairs(zero_points)
    return Packed(codes, np.ascontiguousarray(scales), zero_points)
