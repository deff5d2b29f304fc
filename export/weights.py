"""``--weights``: a source's matrices in other formats, as another source.

``fp16`` and ``int8`` (Q8_0) are rounded when they are asked for; ``int4`` is calibrated when the source is
made: GPTQ, in the format for each matrix that its sensitivity calls for. That takes hours for a large
model, which a target should have: its answers lose what its weights lose. A draft's losses cost acceptance
alone, which is measured, so the int4 of a draft is rounded too, in minutes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError
from edgespec.export.architectures import read_config
from edgespec.export.calibration_data import Layers, States, shared_inputs
from edgespec.export.gptq import Codes, gptq, inverse_factor
from edgespec.export.quants import FORMATS, dequantize, encode, row_bytes
from edgespec.export.source import Source
from edgespec.models.gguf import TensorInfo
from edgespec.models.trimmed import EMBEDDING, HEAD
from edgespec.progress import Progress, silent

Bytes = npt.NDArray[np.uint8]

WEIGHTS = ("exact", "fp16", "int8", "int4")
MAX_BITS = 5.0
"""Bits a weight of an int4 model, over everything stored: what 4-bit groups leave of it goes to the
matrices that need it most."""
_FOUR: dict[str, tuple[int, bool]] = {"U4_64": (64, True), "U4_32": (32, True), "Q4_1": (32, False)}
"""4-bit formats: weights in a group, and whether zero points are whole. 4.4, 4.75 and 5 bits a weight."""
_EIGHT, _EIGHT_GROUP = "I8_64", 64
_DRAFT = "U4_64"
"""The format of a draft's matrices in int4. Groups of 32 read 10 % more for 0.4 points of acceptance
(Qwen2.5-Coder-0.5B)."""
_SAMPLED_ROWS = 2048
"""Rows of a matrix on which the errors of the formats are measured."""
_PART_WEIGHTS = 1 << 24
"""Weights in float32 at a time."""


def with_weights(
    source: Source,
    weights: str,
    windows: Sequence[Sequence[int]] | None = None,
    progress: Progress = silent,
) -> Source:
    """``source`` with its matrices converted to ``weights``, one of ``WEIGHTS``.

    ``windows``: the token ids that int4 is calibrated on (``calibration.calibration_windows``), which
    needs the extra ``[torch]``; ``None``: int4 is rounded, good enough for a draft. Raises ``UserError``
    where a format does not hold the weights.
    """
    if weights == "exact":
        return source
    if weights == "fp16":
        return Rounded(source, dict.fromkeys(matrices(source), "F16"))
    if weights == "int8":
        return Rounded(source, {name: _int8(source.tensors[name]) for name in matrices(source)})
    if weights == "int4":
        if windows is None:
            return Rounded(source, draft_types(source))
        return quantize_int4(source, windows, progress)
    raise UserError(f"--weights {weights[:64]!r} is none of {', '.join(WEIGHTS)}")


def matrices(source: Source) -> list[str]:
    """The tensors that are multiplied or looked up: all but norms, biases and the like."""
    return [name for name, info in source.tensors.items() if len(info.shape) == 2]


def bits_per_weight(source: Source) -> float:
    """Stored bits, scales and all, divided by the weights. A tied embedding is stored once."""
    infos = source.tensors.values()
    return 8 * sum(info.nbytes for info in infos) / sum(math.prod(info.shape) for info in infos)


def _int8(info: TensorInfo) -> str:
    return "F16" if info.shape[-1] % 32 else "Q8_0"  # blocks of 32 must fill the rows


def draft_types(source: Source) -> dict[str, str]:
    """The formats of a draft in int4: of every matrix that is multiplied and not in 4 bits already.

    An embedding that only rows are looked up of stays; one that is the head as well gives the head
    rows of its own.
    """
    infos = {name: source.tensors[name] for name in matrices(source) if name != EMBEDDING}
    infos.setdefault(HEAD, source.tensors[EMBEDDING])
    return {
        name: _DRAFT
        for name, info in infos.items()
        if info.type not in FORMATS or FORMATS[info.type].bits > 4
    }


class Rounded:
    """``source`` with matrices in other formats, ``types``, rounded when they are read.

    A head that ``source`` does not have is made of its embedding.
    """

    def __init__(self, source: Source, types: Mapping[str, str]) -> None:
        self._source = source
        self.path = source.path
        self.metadata = source.metadata
        self._origins = {name: name if name in source.tensors else EMBEDDING for name in types}
        tensors = dict(source.tensors)
        for name, type in types.items():
            info = source.tensors[self._origins[name]]
            size = _row_bytes(type, info.shape[-1])
            tensors[name] = replace(info, name=name, type=type, row_bytes=size)
        self.tensors: Mapping[str, TensorInfo] = tensors

    def tensor(self, name: str) -> Bytes:
        origin, type = self._origins.get(name, name), self.tensors[name].type
        if type == self._source.tensors[origin].type:
            return self._source.tensor(origin)
        rows = quantized(self._source, origin, type)
        if type == "F16" and not np.isfinite(rows.view(np.float16)).all():
            raise UserError(
                f"float16 does not hold the weights of {name} in {self.path.name}; "
                "take --weights exact"
            )
        return rows


class Replaced:
    """``source`` with some tensors replaced: name → its type and stored rows. More may follow."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.path: Path = source.path
        self.metadata: Mapping[str, Any] = source.metadata
        self.tensors: dict[str, TensorInfo] = dict(source.tensors)
        self._replaced: dict[str, Bytes] = {}

    def replace(self, name: str, type: str, rows: Bytes) -> None:
        self.tensors[name] = replace(self.tensors[name], type=type, row_bytes=rows.shape[1])
        self._replaced[name] = rows

    def tensor(self, name: str) -> Bytes:
        return self._replaced[name] if name in self._replaced else self._source.tensor(name)


def quantize_int4(
    source: Source, windows: Sequence[Sequence[int]], progress: Progress = silent
) -> Source:
    """GPTQ of every matrix, calibrated on ``windows`` of token ids, at ``MAX_BITS`` a weight.

    Twice through the layers. First as they are: how much each format changes each matrix's products
    decides which takes which. Then layer by layer, each calibrated on what the quantized layers before
    it make of the text.
    """
    if not windows:
        raise ValueError("int4 needs a text to be calibrated on")
    count = read_config(source.metadata).layers
    whole, total = Layers(source), 2 * count + 1
    errors: dict[str, dict[str, float]] = {}
    states = whole.embed(windows)
    for layer in range(count):
        progress("calibrating", layer, total)
        states, hessians = observed(whole, layer, states)
        for names in shared_inputs(source, layer):
            hessian = hessians[names[0]]
            factor = inverse_factor(hessian)
            for name in names:
                errors[name] = product_errors(source, name, hessian, factor)
    progress("calibrating", count, total)
    final = sum(inputs.T @ inputs for inputs in whole.normalize(states))
    lookup = np.eye(len(final), dtype=np.float32)  # the products of a table's rows with nothing
    ends = {HEAD: final, EMBEDDING: lookup} if HEAD in source.tensors else {EMBEDDING: final}
    factors = {name: inverse_factor(hessian) for name, hessian in ends.items()}
    for name, hessian in ends.items():
        errors[name] = product_errors(source, name, hessian, factors[name])
    types = choose_types(source, errors)

    result = Replaced(source)
    changed = Layers(result)
    for name, factor in factors.items():
        rows = quantized(source, name, types[name], factor)
        result.replace(name, types[name], rows)
    states = changed.embed(windows)
    for layer in range(count):
        progress("quantizing", count + 1 + layer, total)
        _, hessians = observed(changed, layer, states)
        for names in shared_inputs(source, layer):
            factor = inverse_factor(hessians[names[0]])
            for name in names:
                result.replace(name, types[name], quantized(source, name, types[name], factor))
        states = changed.run(layer, states)
    progress("quantizing", total, total)
    return result


def observed(layers: Layers, layer: int, states: States) -> tuple[States, dict[str, FloatArray]]:
    """The layer's outputs for ``states``, and XᵀX of its products' inputs, by their matrices' names.

    Products that are added to the residual stream count each token relative to its length there: some
    tokens, a text's first above all, have inputs a thousand times as large as the others.
    """
    found: dict[str, FloatArray] = {}

    def observe(name: str, inputs: FloatArray, output: FloatArray) -> None:
        if name.endswith(("attn_output.weight", "ffn_down.weight")):
            inputs = inputs / _lengths(output)[:, None]
        found[name] = inputs.T @ inputs + found.get(name, np.float32(0))

    return layers.run(layer, states, observe), found


def product_errors(
    source: Source, name: str, hessian: FloatArray, factor: FloatArray
) -> dict[str, float]:
    """For each format, what part of a matrix's products it changes: squares, by XᵀX of the inputs.

    ``factor`` is ``inverse_factor(hessian)``; matrices that share their inputs share it. Of a matrix of
    more than ``_SAMPLED_ROWS`` rows, every second is tried, or every third …
    """
    info, size = source.tensors[name], float(np.finfo(np.float32).tiny)
    columns = info.shape[-1]
    changed = dict.fromkeys(formats_for(info), 0.0)
    rows = source.tensor(name)[:: -(-info.rows // _SAMPLED_ROWS)]
    for part in row_parts((len(rows), columns)):
        values = dequantize(rows[part], info.type, columns)
        size += _product(values, hessian)
        for type in changed:
            changed_rows = quantized_rows(values, type, factor)
            changed[type] += _product(values - dequantize(changed_rows, type, columns), hessian)
    return {type: error / size for type, error in changed.items()}


def formats_for(info: TensorInfo) -> list[str]:
    """The formats that a matrix may take, the smallest first. GGUF's blocks must fill its rows."""
    return [type for type in (*_FOUR, _EIGHT) if type != "Q4_1" or info.shape[-1] % 32 == 0]


def _product(weights: FloatArray, hessian: FloatArray) -> float:
    """The squared length of the products of ``weights`` with the inputs."""
    return float(((weights @ hessian) * weights).sum())


def _lengths(rows: FloatArray) -> FloatArray:
    """Of every row, never 0."""
    squares: FloatArray = np.maximum((rows * rows).sum(axis=-1), np.finfo(np.float32).tiny)
    return np.sqrt(squares)


def choose_types(source: Source, errors: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The smallest formats, then larger ones where a byte saves most error, up to ``MAX_BITS``."""
    infos = {name: source.tensors[name] for name in errors}
    types = {name: formats_for(info)[0] for name, info in infos.items()}

    def size(name: str, type: str) -> int:
        return infos[name].rows * row_bytes(type, infos[name].shape[-1])

    rest = sum(info.nbytes for name, info in source.tensors.items() if name not in infos)
    weights = sum(math.prod(info.shape) for info in source.tensors.values())
    left = MAX_BITS * weights / 8 - rest - sum(size(*pair) for pair in types.items())
    while True:
        upgrades = [
            ((errors[name][now] - errors[name][type]) / more, name, type)
            for name, now in types.items()
            for type in formats_for(infos[name])
            if 0 < (more := size(name, type) - size(name, now)) <= left
            and errors[name][type] < errors[name][now]
        ]
        if not upgrades:
            return types
        _, name, type = max(upgrades)
        left -= size(name, type) - size(name, types[name])
        types[name] = type


def quantized(source: Source, name: str, type: str, factor: FloatArray | None = None) -> Bytes:
    """The rows of a matrix in another format."""
    info, raw = source.tensors[name], source.tensor(name)
    rows = np.empty((info.rows, _row_bytes(type, info.shape[-1])), np.uint8)
    for part in row_parts(info.shape):
        values = dequantize(raw[part], info.type, info.shape[-1])
        rows[part] = quantized_rows(values, type, factor)
    return rows


def quantized_rows(values: FloatArray, type: str, factor: FloatArray | None = None) -> Bytes:
    """Rows in 4 bits, by GPTQ where there is a ``factor``, in 8, or in float16."""
    if type in _FOUR:
        return stored_rows(gptq(values, factor, 4, *_FOUR[type]), type)
    if type == _EIGHT:
        return symmetric_rows(values)
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    with np.errstate(over="ignore"):
        return np.asarray(quantize(values, GGMLQuantizationType[type])).view(np.uint8)


def _row_bytes(type: str, columns: int) -> int:
    return 2 * columns if type == "F16" else row_bytes(type, columns)


def stored_rows(found: Codes, type: str) -> Bytes:
    """Codes as a 4-bit format stores them."""
    scales = found.scales.astype(np.float32)
    if type != "Q4_1":
        return encode(found.codes, scales, found.zero_points.astype(np.uint8), type)
    minimums = (-found.zero_points * scales).astype(np.float16)
    blocks = found.codes.reshape(*found.scales.shape, 2, 16)
    halves = [each[..., None].view(np.uint8) for each in (found.scales, minimums)]
    packed = blocks[..., 0, :] | np.left_shift(blocks[..., 1, :], 4, dtype=np.uint8)
    return np.concatenate([*halves, packed], axis=-1).reshape(len(found.codes), -1)


def symmetric_rows(values: FloatArray) -> Bytes:
    """Rounded to ``I8_64``."""
    short = -values.shape[1] % _EIGHT_GROUP
    blocks = np.pad(values, [(0, 0), (0, short)]).reshape(len(values), -1, _EIGHT_GROUP)
    scales = np.abs(blocks).max(axis=-1) / 127
    scales = np.maximum(scales.astype(np.float16), np.finfo(np.float16).smallest_subnormal)
    steps = scales.astype(np.float32)
    codes = np.clip(np.rint(blocks / steps[..., None]), -127, 127) + 128
    codes = codes.reshape(len(values), -1)[:, : values.shape[1]].astype(np.uint8)
    return encode(codes, steps, None, _EIGHT)


def row_parts(shape: tuple[int, ...]) -> list[slice]:
    """A matrix's rows, some at a time."""
    step = max(1, _PART_WEIGHTS // shape[-1])
    return [slice(start, start + step) for start in range(0, shape[0], step)]
