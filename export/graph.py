"""A small builder of ONNX graphs whose weights stream into one external file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgespec.models.onnx_folder import MODEL_FILE, WEIGHTS_FILE

MICROSOFT = "com.microsoft"
_INLINE_BYTES = 1024  # shape inference wants small constants at hand
_PAGE = 65536  # mapped tensors begin on a boundary that every operating system can map


class Graph:
    """Collects nodes and constants; large constants go to ``folder`` as they come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.external: list[tuple[str, str, list[int], int]] = []
        """Name, dtype, shape and offset of every constant in the weights file."""
        self._weights: BinaryIO = open(folder / WEIGHTS_FILE, "wb")  # noqa: SIM115 (see __exit__)
        self._count = 0
        self._end = 0

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> None:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def node(
        self, kind: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1,
        domain: str = "", **attributes: Any,
    ) -> list[str]:  # fmt: skip
        """Add a node; ``outputs`` are names, or how many to name. An empty name is an absent value."""
        name = f"{kind}_{self._count}"
        self._count += 1
        if isinstance(outputs, int):
            outputs = [f"{name}_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes)
        )
        return list(outputs)

    def append(self, node: onnx.NodeProto) -> str:
        """Add a node that was made elsewhere; returns its first output."""
        self.nodes.append(node)
        return str(node.output[0])

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        if array.nbytes > _INLINE_BYTES:
            return self.stream([(name, array.dtype, array.shape)], [(array,)])[0]
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def stream(
        self,
        constants: Sequence[tuple[str, npt.DTypeLike, Sequence[int]]],
        parts: Iterable[Sequence[npt.NDArray[Any]]],
    ) -> list[str]:
        """Add constants (name, dtype, shape) that arrive together in parts, along their first axis."""
        ends = []
        for name, dtype, shape in constants:
            dtype = np.dtype(dtype)
            size = int(np.prod(shape)) * dtype.itemsize
            self._end += -self._end % (_PAGE if size > _PAGE else 64)
            tensor = TensorProto(
                name=name,
                data_type=helper.np_dtype_to_tensor_dtype(dtype),
                dims=shape,
                data_location=TensorProto.EXTERNAL,
            )
            entries = {"location": WEIGHTS_FILE, "offset": self._end, "length": size}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            self.constants[name] = tensor
            self.external.append((name, dtype.name, list(shape), self._end))
            ends.append(self._end)
            self._end += size
        for part in parts:
            for i, (array, (_, dtype, _)) in enumerate(zip(part, constants, strict=True)):
                self._weights.seek(ends[i])
                ends[i] += self._weights.write(np.ascontiguousarray(array, dtype).tobytes())
        return [name for name, _, _ in constants]

    def save(self, name: str) -> None:
        """Write ``model.onnx`` and finish the weights file."""
        self._weights.truncate(self._end)
        self._weights.close()
        graph = helper.make_graph(
            self.nodes, name, self.inputs, self.outputs, list(self.constants.values())
        )
        domains = sorted({node.domain for node in self.nodes} - {""})
        opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(d, 1) for d in domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        onnx.save(model, str(self.folder / MODEL_FILE))

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *_: object) -> None:
        self._weights.close()
