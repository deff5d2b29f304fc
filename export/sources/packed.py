"""Checkpoints whose linear layers are already quantized, with GPTQ or AWQ, to 4 bits.

Both pack eight codes into an int32 and compute ``w = scale · (code − zero point)`` over groups of a
row's weights, so codes, scales and zero points become blocks of ``U4_32``, ``U4_64`` or ``U4_128`` as
they are. A layer of N outputs and K inputs in groups of g:

- GPTQ: ``qweight`` int32 ``[K / 8, N]``, each word eight inputs, the first in the lowest bits; ``qzeros``
  int32 ``[⌈K / g⌉, N / 8]``, each word eight outputs; ``scales`` ``[⌈K / g⌉, N]``; ``g_idx`` int32 ``[K]``,
  the group of each input. Version 1 stores zero points less one. The subtraction is undone as GPTQModel
  does it, on whole words, so that what a zero point of 0 borrowed from its neighbours comes back.
  https://github.com/AutoGPTQ/AutoGPTQ/blob/main/auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py
  https://github.com/ModelCloud/GPTQModel/blob/main/gptqmodel/utils/model.py (v1 and v2)
- AWQ, version gemm: ``qweight`` int32 ``[K, N / 8]``, ``qzeros`` int32 ``[K / g, N / 8]``, each word eight
  outputs in the order 0, 2, 4, 6, 1, 3, 5, 7; ``scales`` ``[K / g, N]``.
  https://github.com/casper-hansen/AutoAWQ/blob/main/awq/modules/linear/gemm.py

``config.json`` distinguishes them:
https://github.com/huggingface/transformers/blob/main/src/transformers/utils/quantization_config.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.export.quants import Bytes, dequantize, encode, row_bytes
from edgespec.models.safetensors import Checkpoint, StoredTensor

Words = npt.NDArray[np.uint32]

GROUP_SIZES = (32, 64, 128)
_PART_WEIGHTS = 1 << 22
"""Weights unpacked at a time, so that a layer needs little memory."""


@dataclass(frozen=True, eq=False)
class PackedTensor(StoredTensor):
    """A weight ``[N, K]`` in the checkpoint's parts, mapped; ``dtype`` is the format they become."""

    method: str
    qweight: Words
    qzeros: Words
    scales: Bytes
    scales_dtype: str

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.dtype, self.shape[-1])


class PackedCheckpoint(Checkpoint):
    """A checkpoint in which a layer that GPTQ or AWQ packed looks like any other.

    Its ``weight`` has the type ``U4_32``, ``U4_64`` or ``U4_128``, and ``bytes`` gives the rows in that
    format. Layers that were left alone, and checkpoints that are not quantized, are as ``Checkpoint``
    has them. Raises ``UserError`` for other methods and for layers that do not match the method.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        layers = [name[: -len(".qweight")] for name in self.tensors if name.endswith(".qweight")]
        if layers or self.config.get("quantization_config") is not None:
            method = _read_method(self.path, self.config.get("quantization_config"))
            for layer in layers:
                self._join(layer, *method)

    def bytes(self, name: str) -> Bytes:
        tensor = self.tensors[name]
        if not isinstance(tensor, PackedTensor):
            return super().bytes(name)
        rows, columns = tensor.shape
        scales = dequantize(tensor.scales, tensor.scales_dtype)
        found = np.empty((rows, tensor.row_bytes), np.uint8)
        step = max(1, _PART_WEIGHTS // columns // 8) * 8
        for start in range(0, rows, step):
            part = slice(start, start + step)
            codes, zero_points = _unpack(tensor, part)
            try:
                found[part] = encode(codes, scales[:, part].T, zero_points, tensor.dtype)
            except ValueError as error:
                raise self._fail(name, f"cannot be kept exactly: {error}") from error
        return found

    def _join(self, layer: str, method: str, group: int, ordered: bool) -> None:
        """Put the layer's weight in the place of its parts."""
        name, stored = f"{layer}.weight", self.tensors[f"{layer}.qweight"]
        if name in self.tensors:
            raise self._fail(name, "is there both packed and not packed")
        input_pack, output_pack = (1, 8) if method == "awq" else (8, 1)  # numbers in a word
        if len(stored.shape) != 2 or 0 in stored.shape or stored.shape[1] * output_pack % 8:
            raise self._fail(
                stored.name, f"has the shape {stored.shape}, which {method} does not give"
            )
        inputs, outputs = stored.shape[0] * input_pack, stored.shape[1] * output_pack
        groups = -(-inputs // group)
        qweight, _ = self._take(stored.name, ("I32",), stored.shape)
        qzeros, _ = self._take(f"{layer}.qzeros", ("I32",), (groups, outputs // 8))
        scales, dtype = self._take(f"{layer}.scales", ("F16", "BF16", "F32"), (groups, outputs))
        if ordered or f"{layer}.g_idx" in self.tensors:
            order, _ = self._take(f"{layer}.g_idx", ("I32",), (inputs,))
            if not np.array_equal(order.view("<i4")[0], np.arange(inputs) // group):
                raise self._fail(
                    name,
                    "has its inputs in another order (desc_act), which no runtime here multiplies; "
                    "quantize the model with desc_act off",
                )
        self.tensors[name] = PackedTensor(
            name, f"U4_{group}", (outputs, inputs), stored.file, stored.offset,
            method, qweight.view("<u4"), qzeros.view("<u4"), scales, dtype,
        )  # fmt: skip

    def _take(
        self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]
    ) -> tuple[Bytes, str]:
        """The bytes and the type of a layer's part, which then is no tensor any more."""
        if name not in self.tensors:
            raise self._fail(name, "is missing")
        tensor = self.tensors[name]
        if tensor.dtype not in dtypes or tensor.shape != shape:
            raise self._fail(
                name, f"is {tensor.dtype} {tensor.shape}, not {' or '.join(dtypes)} {shape}"
            )
        raw = super().bytes(name)
        del self.tensors[name]
        return raw, tensor.dtype

    def _fail(self, name: str, what: str) -> UserError:
        return UserError(f"{self.path}: tensor {name[:128]!r} {what}")


def _unpack(tensor: PackedTensor, part: slice) -> tuple[Bytes, Bytes]:
    """Codes ``[n, K]`` and zero points ``[n, groups]`` of n outputs, both counts multiples of 8."""
    words = slice(part.start // 8, part.stop // 8)
    qzeros = tensor.qzeros[:, words]
    if tensor.method == "awq":
        order = np.array([0, 4, 1, 5, 2, 6, 3, 7])
        return _nibbles(tensor.qweight[:, words], order).T, _nibbles(qzeros, order).T
    if tensor.method == "gptq":
        qzeros = qzeros + np.uint32(0x11111111)
    order = np.arange(8)
    return _nibbles(tensor.qweight[:, part].T, order), _nibbles(qzeros, order).T


def _nibbles(words: Words, order: npt.NDArray[np.int64]) -> Bytes:
    """Eight numbers of 4 bits for each word of the last axis; ``order`` is where each lies in it."""
    numbers = words[..., None] >> (4 * order).astype(np.uint32) & 15
    return numbers.astype(np.uint8).reshape(*words.shape[:-1], -1)


def _read_method(path: Path, config: Any) -> tuple[str, int, bool]:
    """The packing (gptq, gptq_v2 or awq), the group's size, and whether ``g_idx`` must be there."""

    def unsupported(what: str, value: Any, *supported: Any) -> UserError:
        known = " and ".join(map(str, supported))
        return UserError(
            f"{path} is quantized with {what} {value!r:.64}; only {known} can be imported"
        )

    if not isinstance(config, dict):
        raise UserError(
            f"{path}/config.json has no quantization_config, which packed tensors need; "
            "add it as transformers writes it"
        )
    method, bits, group = (config.get(key) for key in ("quant_method", "bits", "group_size"))
    if method not in ("gptq", "awq"):
        raise unsupported("the method", method, "gptq", "awq")
    if bits != 4:
        raise unsupported("bits =", bits, 4)
    if not isinstance(group, int) or group not in GROUP_SIZES:
        raise unsupported("group_size =", group, *GROUP_SIZES)
    known = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}[method]
    keys = {"gptq": ("checkpoint_format", "format"), "awq": ("version", "format")}[method]
    packing = str(next((config[key] for key in keys if config.get(key)), known[0])).lower()
    if config.get("is_marlin_format"):
        packing = "marlin"
    if config.get("backend") == "llm-awq":
        packing = "llm-awq"
    if packing not in known:
        raise unsupported("the packing", packing, *known)
    if not config.get("zero_point", True):
        raise unsupported("zero_point =", config["zero_point"], True)
    return method if method == "awq" else packing, group, bool(config.get("desc_act"))
