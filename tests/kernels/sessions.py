"""Sessions of ONNX Runtime with the kernels' operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from edgespec import kernels
from edgespec.device.machine import physical_cores
from edgespec.runtimes.onnx.session import session_options, share_threads


def start(
    nodes: Sequence[Any],
    inputs: Mapping[str, Any],
    outputs: str,
    path: Path,
    threads: int | None = None,
) -> Any:
    """A session with these nodes; ``inputs``: arrays whose types and numbers of dimensions are declared."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "g",
        [
            info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
            for name, array in inputs.items()
        ],
        [info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(kernels.DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return open_session(path, threads=threads)


def open_session(
    path: Path,
    packed: kernels.Packed | None = None,
    names: Iterable[str] = (),
    threads: int | None = None,
) -> Any:
    """The process has one pool of threads: by default as many as its other sessions take."""
    kernels.set_threads(share_threads(threads or physical_cores()))
    options = session_options()
    options.log_severity_level = 4
    kernels.register(options)
    values = kernels.share(options, packed, names) if packed else []
    session: Any = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.values = values  # they live as long as it does
    return session
