"""Random matrices in every format, and llama.cpp's rounding of activations in numpy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edgespec.core.runtime import FloatArray
from edgespec.export.quants import FORMATS, dequantize, row_bytes
from edgespec.kernels.native import Bytes
from edgespec.models.gguf import BLOCK_FORMATS, TensorInfo

Doubles = npt.NDArray[np.float64]

_BLOCKS = {name: (block, size) for name, block, size in BLOCK_FORMATS.values()}
_HALVES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}
"""Where a block has its 16-bit scales; at 0 in the other formats."""


def stored(type: str, rows: int, columns: int, seed: int = 0) -> Bytes:
    """Random codes with sane scales, as a file stores them."""
    rng = np.random.default_rng(seed)
    if type in ("F32", "F16", "BF16"):
        values = rng.standard_normal((rows, columns)).astype(np.float32)
        if type == "F32":
            return values.view(np.uint8)
        if type == "F16":
            return values.astype(np.float16).view(np.uint8)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    own = type not in _BLOCKS
    size = FORMATS[type].stored[1] if own else _BLOCKS[type][1]
    width = row_bytes(type, columns) if own else columns // _BLOCKS[type][0] * size
    blocks = rng.integers(0, 256, (rows, width // size, size), dtype=np.uint8)
    if type == "MXFP4":
        blocks[..., 0] = rng.integers(118, 126, blocks.shape[:2])
    else:
        for offset in _HALVES.get(type, (0,)):
            scales = rng.uniform(0.001, 0.01, (*blocks.shape[:2], 1)).astype(np.float16)
            blocks[..., offset : offset + 2] = scales.view(np.uint8)
    if type.startswith("U4"):
        blocks[..., 2] &= 15
    return blocks.reshape(rows, -1)


def weights(type: str, raw: Bytes, columns: int) -> FloatArray:
    return dequantize(raw, type, columns)


def rounded(type: str, x: FloatArray) -> Doubles:
    """``x [n, columns]`` as the product takes it."""
    if type == "F32":
        return x.astype(np.float64)
    if type == "F16":
        return x.astype(np.float16).astype(np.float64)
    if type == "BF16":
        bits = x.view(np.uint32)
        even = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
        return even.view(np.float32).astype(np.float64)
    if type.endswith("_K") or type == "IQ4_XS":  # quantize_row_q8_K
        blocks = x.reshape(-1, 256)
        largest = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
        scales = np.float32(-127) / largest
        codes = np.minimum(np.rint(scales[:, None] * blocks), 127)
        return (codes.astype(np.float64) * (np.float32(1) / scales)[:, None]).reshape(x.shape)
    short = -x.shape[1] % 32
    blocks = np.pad(x, [(0, 0), (0, short)]).reshape(-1, 32)  # quantize_row_q8_0
    top = np.abs(blocks).max(axis=1)
    codes = np.rint(blocks * (np.float32(127) / top)[:, None])
    scales = (top / np.float32(127)).astype(np.float16).astype(np.float64)
    return (codes * scales[:, None]).reshape(len(x), -1)[:, : x.shape[1]]


def rounded_sums(x: FloatArray) -> Doubles:
    """The sums that Q8_1 keeps for each block of 32, as halves, less those of its rounded values."""
    blocks = x.reshape(len(x), -1, 32)
    top = np.abs(blocks).max(axis=2)
    codes = np.rint(blocks * (np.float32(127) / top)[..., None])
    kept = (top / np.float32(127) * codes.sum(axis=2, dtype=np.float32)).astype(np.float16)
    exact = rounded("Q8_0", x).reshape(blocks.shape).sum(axis=2)
    return np.asarray(kept.astype(np.float64) - exact, np.float64)


class Matrices:
    """A source of matrices: name → type, rows, columns."""

    def __init__(self, shapes: Mapping[str, tuple[str, int, int]], seed: int = 0) -> None:
        self._raw = {name: stored(*shape, seed) for name, shape in shapes.items()}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, type, (rows, columns), 0, self._raw[name].shape[1])
            for name, (type, rows, columns) in shapes.items()
        }

    def tensor(self, name: str) -> Bytes:
        return self._raw[name]
