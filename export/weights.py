"""``--weights``: a source's matrices in other formats, as another source.

``fp16`` and ``int8`` (Q8_0) are rounded when they are asked for; ``int4`` is GPTQ in groups of 64, with
the most sensitive matrices in 8 bits, and is calibrated when the source is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.export.architectures import read_config
from edgespec.export.gptq import gptq, inverse_factor
from edgespec.export.quants import dequantize, encode, row_bytes
from edgespec.export.sources import Source
from edgespec.models.gguf import TensorInfo
from edgespec.progress import Progress, silent
from edgespec.runtimes import FloatArray

if TYPE_CHECKING:
    from edgespec.export.calibration import Layers, States

Bytes = npt.NDArray[np.uint8]

WEIGHTS = ("exact", "fp16", "int8", "int4")
MAX_BITS = 5.0
"""Bits a weight of an int4 model, over everything stored: what is left after 4-bit groups is spent on
8 bits for the matrices that need them most."""
_GROUP = 64
_FOUR, _EIGHT = f"U4_{_GROUP}", f"I8_{_GROUP}"
_PART_WEIGHTS = 1 << 24
"""Weights in float32 at a time."""


def with_weights(
    source: Source,
    weights: str,
    windows: Sequence[Sequence[int]] = (),
    progress: Progress = silent,
) -> Source:
    """``source`` with its matrices as ``weights``, one of ``WEIGHTS``, says.

    ``windows``: the token ids that int4 is calibrated on (``calibration.calibration_windows``); only
    it needs them, and the extra ``[torch]``. Raises ``UserError`` where a format does not hold them.
    """
    if weights == "exact":
        return source
    if weights == "fp16":
        return Rounded(source, "F16")
    if weights == "int8":
        return Rounded(source, "Q8_0")
    if weights == "int4":
        return quantize_int4(source, windows, progress)
    raise UserError(f"--weights {weights[:64]!r} is none of {', '.join(WEIGHTS)}")


def matrices(source: Source) -> list[str]:
    """The tensors that are multiplied or looked up: all but norms, biases and the like."""
    return [name for name, info in source.tensors.items() if len(info.shape) == 2]


def bits_per_weight(source: Source) -> float:
    """Stored bits, scales and all, divided by the weights. A tied embedding is stored once."""
    infos = source.tensors.values()
    return 8 * sum(info.nbytes for info in infos) / sum(math.prod(info.shape) for info in infos)


class Rounded:
    """``source`` with every matrix rounded to ``F16`` or ``Q8_0`` when it is read.

    Rows that are no multiple of Q8_0's blocks become F16.
    """

    def __init__(self, source: Source, type: str) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        self._source = source
        self.path = source.path
        self.metadata = source.metadata
        tensors = dict(source.tensors)
        for name in matrices(source):
            info = tensors[name]
            block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[type]]
            kind = GGMLQuantizationType["F16" if info.shape[-1] % block else type]
            block, size = GGML_QUANT_SIZES[kind]
            row = info.shape[-1] // block * size
            tensors[name] = replace(info, type=kind.name, row_bytes=row)
        self.tensors: Mapping[str, TensorInfo] = tensors

    def tensor(self, name: str) -> Bytes:
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        raw, old, new = self._source.tensor(name), self._source.tensors[name], self.tensors[name]
        if old.type == new.type:
            return raw
        rounded = np.empty((new.rows, new.row_bytes), np.uint8)
        for part in row_parts(new.shape):
            values = dequantize(raw[part], old.type, old.shape[-1])
            with np.errstate(over="ignore"):
                rounded[part] = quantize(values, GGMLQuantizationType[new.type]).view(np.uint8)
            if new.type == "F16" and not np.isfinite(rounded[part].view(np.float16)).all():
                raise UserError(
                    f"float16 does not hold the weights of {name} in {self.path.name}; "
                    "take --weights exact"
                )
        return rounded


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

    Twice through the layers. First as they are: how much each matrix in 4 bits, alone, changes what
    its layer hands on decides which take 8 bits. Then layer by layer, each calibrated on what the quantized
    layers before it make of the text.
    """
    from edgespec.export.calibration import EMBEDDING, HEAD, Layers, shared_inputs

    if not windows:
        raise ValueError("int4 needs a text to be calibrated on")
    count = read_config(source.metadata).layers
    whole, total = Layers(source), 2 * count + 1
    errors: dict[str, float] = {}
    states = whole.embed(windows)
    for layer in range(count):
        progress("calibrating", layer, total)
        before = states
        states, hessians = observed(whole, layer, before)
        for names in shared_inputs(source, layer):
            factor = inverse_factor(hessians[names[0]])
            for name in names:
                trial = Replaced(source)
                trial.replace(name, _FOUR, quantized_rows(source, name, _FOUR, factor))
                [changed] = Layers(trial).run(layer, before[:1])
                errors[name] = relative_error(states[0], changed)
    final = whole.normalize(states)
    factor = inverse_factor(sum(inputs.T @ inputs for inputs in final))
    lookup = np.eye(len(factor), dtype=np.float32)  # the products of a table's rows with nothing
    ends = {HEAD: factor, EMBEDDING: lookup} if HEAD in source.tensors else {EMBEDDING: factor}
    for name, own in ends.items():
        info = source.tensors[name]
        rows = quantized_rows(source, name, _FOUR, own)
        used = slice(None) if name == HEAD else windows[0]
        old, new = (
            dequantize(raw[used], type, info.shape[-1])
            for raw, type in ((source.tensor(name), info.type), (rows, _FOUR))
        )
        if name == HEAD:
            old, new = final[0] @ old.T, final[0] @ new.T
        errors[name] = relative_error(old, new)
    types = choose_types(source, errors)
    progress("calibrating", count + 1, total)

    result = Replaced(source)
    quantized = Layers(result)
    for name, own in ends.items():
        result.replace(name, types[name], quantized_rows(source, name, types[name], own))
    states = quantized.embed(windows)
    for layer in range(count):
        progress("quantizing", count + 1 + layer, total)
        _, hessians = observed(quantized, layer, states)
        for names in shared_inputs(source, layer):
            factor = inverse_factor(hessians[names[0]])
            for name in names:
                result.replace(name, types[name], quantized_rows(source, name, types[name], factor))
        states = quantized.run(layer, states)
    progress("quantizing", total, total)
    return result


def observed(layers: Layers, layer: int, states: States) -> tuple[States, dict[str, FloatArray]]:
    """What a layer makes of ``states``, and XᵀX of its products' inputs, by their matrices' names.

    Products that are added to the residual stream count each token relative to its length there: some
    tokens, a text's first above all, have inputs a thousand times as large as the others.
    """
    found: dict[str, FloatArray] = {}

    def observe(name: str, inputs: FloatArray, output: FloatArray) -> None:
        weighted = inputs
        if name.endswith(("attn_output.weight", "ffn_down.weight")):
            weighted = inputs / _squared_length(output)[:, None]
        found[name] = inputs.T @ weighted + found.get(name, np.float32(0))

    return layers.run(layer, states, observe), found


def relative_error(old: FloatArray, new: FloatArray) -> float:
    """The mean over rows of what changed, relative to the row: squared lengths."""
    return float(np.mean(_squared_length(new - old) / _squared_length(old)))


def _squared_length(rows: FloatArray) -> FloatArray:
    """Of every row, never 0."""
    lengths: FloatArray = np.maximum((rows * rows).sum(axis=-1), np.finfo(np.float32).tiny)
    return lengths


def choose_types(source: Source, errors: Mapping[str, float]) -> dict[str, str]:
    """8 bits where they save most error a bit, as long as the average stays within ``MAX_BITS``."""
    infos = {name: source.tensors[name] for name in errors}
    stored = {
        name: (info.rows * row_bytes(_FOUR, info.shape[-1]), info.rows * row_bytes(_EIGHT, info.shape[-1]))
        for name, info in infos.items()
    }  # fmt: skip
    rest = sum(info.nbytes for name, info in source.tensors.items() if name not in infos)
    weights = sum(math.prod(info.shape) for info in source.tensors.values())
    left = MAX_BITS * weights / 8 - rest - sum(four for four, _ in stored.values())
    types = dict.fromkeys(errors, _FOUR)
    for name in sorted(errors, key=lambda name: -errors[name] / math.prod(infos[name].shape)):
        four, eight = stored[name]
        if eight - four <= left:
            left -= eight - four
            types[name] = _EIGHT
    return types


def quantized_rows(source: Source, name: str, type: str, factor: FloatArray) -> Bytes:
    """A matrix's rows in 4 bits, by GPTQ, or in 8."""
    info, raw = source.tensors[name], source.tensor(name)
    rows = np.empty((info.rows, row_bytes(type, info.shape[-1])), np.uint8)
    for part in row_parts(info.shape):
        values = dequantize(raw[part], info.type, info.shape[-1])
        if type == _FOUR:
            found = gptq(values, factor, 4, _GROUP)
            rows[part] = encode(
                found.codes, found.scales.astype(np.float32), found.zero_points, type
            )
        else:
            rows[part] = symmetric_rows(values)
    return rows


def symmetric_rows(values: FloatArray) -> Bytes:
    """Rounded to ``I8_64``."""
    short = -values.shape[1] % _GROUP
    blocks = np.pad(values, [(0, 0), (0, short)]).reshape(len(values), -1, _GROUP)
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
