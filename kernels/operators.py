"""The operators in graphs and sessions of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgespec.errors import UserError
from edgespec.kernels.native import TYPES, library, packed_bytes, why_not

if TYPE_CHECKING:
    from edgespec.kernels.packed import Packed

DOMAIN = "edgespec"
"""The operators' domain, version 1: it belongs into the model's ``opset_import``."""


class Placed(Protocol):
    """A tensor in a file: its type, as GGUF calls it, and its shape, columns last."""

    @property
    def type(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Shape:
    """A matrix's type, as GGUF calls it, and its size."""

    type: str
    rows: int
    columns: int

    @staticmethod
    def of(tensor: Placed) -> Shape:
        return Shape(tensor.type, tensor.rows, tensor.shape[-1])

    @property
    def packed_bytes(self) -> int:
        return packed_bytes(self.type, self.rows, self.columns)


def matmul_node(x: str, weights: Sequence[tuple[str, Shape]], output: str) -> Any:
    """An ``onnx.NodeProto``: ``x [..., columns]`` times the matrices, ``[..., Σ rows]`` beside each other.

    ``weights``: at most 8 names of packed initializers, with their matrices, of the same columns.
    """
    from onnx import helper

    attributes: dict[str, int] = {"columns": weights[0][1].columns, "parts": len(weights)}
    for i, (_, shape) in enumerate(weights):
        attributes |= {f"type{i}": TYPES[shape.type], f"rows{i}": shape.rows}
    names = [x, *(name for name, _ in weights)]
    return helper.make_node("GgufMatMul", names, [output], domain=DOMAIN, **attributes)


def gather_node(ids: str, weight: str, shape: Shape, output: str) -> Any:
    """An ``onnx.NodeProto``: rows ``ids [...]`` (int64) of a packed matrix, float32 ``[..., columns]``."""
    from onnx import helper

    attributes = {"columns": shape.columns, "type0": TYPES[shape.type], "rows0": shape.rows}
    return helper.make_node("GgufGatherRows", [ids, weight], [output], domain=DOMAIN, **attributes)


def placeholder(name: str, shape: Shape, location: str) -> Any:
    """An ``onnx.TensorProto`` that ``share`` replaces.

    ``location``: the name of any file in the model's folder, the model itself for example. ONNX Runtime
    checks that it exists, and does not read it.
    """
    from onnx import TensorProto

    size = shape.packed_bytes
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[size])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def register(options: Any) -> None:
    """Make the operators known to sessions with these ``onnxruntime.SessionOptions``.

    Raises ``UserError`` where there is no library, or ONNX Runtime is older than 1.17.
    """
    found = library()
    if found is None:
        raise UserError(f"no kernels: {why_not()}")
    try:
        options.register_custom_ops_library(str(found))
    except Exception as error:
        raise UserError(f"ONNX Runtime does not take the kernels: {error}") from error


def share(options: Any, packed: Packed, names: Iterable[str] | None = None) -> list[Any]:
    """Give sessions with these options the mapped matrices as their initializers, without a copy.

    The graph has a ``placeholder`` for each. Keep what is returned as long as the session lives.
    """
    import onnxruntime

    values = []
    for name in packed.matrices if names is None else names:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(packed.matrices[name].data)
        options.add_initializer(name, value)
        values.append(value)
    return values
