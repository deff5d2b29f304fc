"""GPTQ (Frantar et al. 2023): weights rounded one input after the other, each rounding's error made
good by the inputs still to come, as far as the layer's inputs go together.

``w = scale · (code − zero_point)`` in groups of consecutive inputs; zero points are whole, or as GGUF's Q4_1
has them: ``minimum / scale``, whatever that is. Everything is NumPy on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec.core.runtime import FloatArray

Bytes = npt.NDArray[np.uint8]

DAMPING = 0.01
"""Share of the mean of the Hessian's diagonal that is added to it, so that inputs that hardly vary stay solvable."""
_SHRINKS = np.linspace(1.0, 0.6, 17, dtype=np.float32)
"""Parts of a group's range that are tried: clipping its ends may cost less than coarser steps."""


@dataclass(frozen=True)
class Codes:
    """``codes`` uint8 ``[rows, K]``; ``scales`` float16, ``zero_points`` float32 ``[rows, ⌈K / group⌉]``."""

    codes: Bytes
    scales: npt.NDArray[np.float16]
    zero_points: FloatArray
    group: int

    def weights(self) -> FloatArray:
        """The dequantized weights, float32 ``[rows, K]``."""
        columns = self.codes.shape[1]
        scales, zero_points = (
            np.repeat(each.astype(np.float32), self.group, axis=1)[:, :columns]
            for each in (self.scales, self.zero_points)
        )
        return scales * (self.codes - zero_points)


def nearest(weights: FloatArray, bits: int, group: int, whole: bool = True) -> Codes:
    """Every weight rounded to the nearest step of its group's range; ``whole`` zero points or not."""
    short = -weights.shape[1] % group
    parts = np.pad(weights, [(0, 0), (0, short)]).reshape(len(weights), -1, group)
    scales, zero_points = _range(parts.min(axis=-1), parts.max(axis=-1), bits, whole)
    codes = _codes(parts, scales.astype(np.float32)[..., None], zero_points[..., None], bits)
    codes = codes.reshape(len(weights), -1)[:, : weights.shape[1]]
    return Codes(codes.astype(np.uint8), scales, zero_points, group)


def gptq(
    weights: FloatArray, factor: FloatArray | None, bits: int, group: int, whole: bool = True
) -> Codes:
    """Codes for ``weights`` ``[rows, K]`` whose products with the inputs differ least.

    ``factor`` is ``inverse_factor`` of the inputs' Hessian; ``None``: nothing is known of them, and each
    weight is rounded alone, in the range of its group that errs least. Zero points are ``whole`` or not.
    Rows do not depend on each other.
    """
    columns = weights.shape[1]
    importance = np.ones(columns, np.float32)
    if factor is not None:
        # What an error in each input costs, once the inputs after it have made up for it.
        importance = np.asarray(1 / np.diag(factor) ** 2, np.float32)
    left = np.array(weights.T, np.float32, order="C")
    codes = np.empty(left.shape, np.uint8)
    scales: list[npt.NDArray[np.float16]] = []
    zero_points: list[FloatArray] = []
    for start in range(0, columns, group):
        end = min(start + group, columns)
        block = left[start:end]
        scale, offset = _search(block, importance[start:end], bits, whole)
        scales.append(scale)
        zero_points.append(offset)
        step = scale.astype(np.float32)
        if factor is None:
            codes[start:end] = _codes(block, step, offset, bits)
            continue
        errors = np.empty_like(block)
        for i, column in enumerate(range(start, end)):
            code = _codes(block[i], step, offset, bits)
            codes[column] = code
            errors[i] = (block[i] - step * (code - offset)) / factor[column, column]
            block[i + 1 :] -= factor[column, column + 1 : end, None] * errors[i]
        left[end:] -= factor[start:end, end:].T @ errors
    return Codes(
        np.ascontiguousarray(codes.T),
        np.stack(scales, axis=1),
        np.stack(zero_points, axis=1),
        group,
    )


def inverse_factor(hessian: FloatArray) -> FloatArray:
    """U, upper triangular, with UᵀU the inverse of the Hessian XᵀX ``[K, K]``, damped."""
    damped = hessian.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * (float(np.diag(damped).mean()) or 1.0)
    # H = LᵀL with a lower factor L is the usual factorization with the inputs in reverse order.
    lower = np.asarray(np.linalg.cholesky(damped[::-1, ::-1]), np.float64)
    inverse = np.tril(_inverse_of_lower(lower))[::-1, ::-1]
    return np.ascontiguousarray(inverse, np.float32)


def _inverse_of_lower(lower: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    size = len(lower)
    if size <= 256:
        return np.asarray(np.linalg.inv(lower), np.float64)
    half = size // 2
    inverse = np.zeros_like(lower)
    inverse[:half, :half] = first = _inverse_of_lower(lower[:half, :half])
    inverse[half:, half:] = last = _inverse_of_lower(lower[half:, half:])
    inverse[half:, :half] = -(last @ (lower[half:, :half] @ first))
    return inverse


def _range(
    low: FloatArray, high: FloatArray, bits: int, whole: bool
) -> tuple[npt.NDArray[np.float16], FloatArray]:
    """The scale and zero point whose codes reach from ``low`` to ``high``.

    ``whole`` zero points are codes themselves, so the range includes 0; the others are what a float16
    minimum makes them.
    """
    top = (1 << bits) - 1
    if whole:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    smallest = np.finfo(np.float16).smallest_subnormal
    scales = np.maximum(((high - low) / top).astype(np.float16), smallest)
    if whole:
        return scales, np.clip(np.rint(-low / scales.astype(np.float32)), 0, top)
    return scales, -low.astype(np.float16).astype(np.float32) / scales.astype(np.float32)


def _codes(
    values: FloatArray, scales: FloatArray, zero_points: FloatArray, bits: int
) -> FloatArray:
    codes: FloatArray = np.clip(np.rint(values / scales + zero_points), 0, (1 << bits) - 1)
    return codes


def _search(
    block: FloatArray, importance: FloatArray, bits: int, whole: bool
) -> tuple[npt.NDArray[np.float16], FloatArray]:
    """The range of each row of ``block`` ``[group, rows]`` with the smallest weighted error."""
    low, high = block.min(axis=0), block.max(axis=0)
    best = np.full(block.shape[1], np.inf, np.float32)
    scales, zero_points = _range(low, high, bits, whole)
    for shrink in _SHRINKS:
        scale, offset = _range(low * shrink, high * shrink, bits, whole)
        step = scale.astype(np.float32)
        error = block - step * (_codes(block, step, offset, bits) - offset)
        error = importance @ (error * error)
        better = error < best
        best[better] = error[better]
        scales[better], zero_points[better] = scale[better], offset[better]
    return scales, zero_points
