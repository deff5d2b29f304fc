"""The operators in real sessions of ONNX Runtime."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgespec import kernels
from edgespec.core.runtime import FloatArray
from edgespec.kernels.native import get_rows, multiply
from tests.kernels.matrices import Matrices
from tests.kernels.sessions import open_session

COLUMNS = 768
SHAPES = {
    "q": ("Q4_K", 100, COLUMNS),
    "k": ("Q6_K", 33, COLUMNS),
    "v": ("U4_128", 16, COLUMNS),
    "w": ("Q8_0", 1, COLUMNS),
    "h": ("F16", 17, COLUMNS),
}


def save(
    folder: Path, packed: kernels.Packed, names: list[str], columns: int | str = COLUMNS
) -> Path:
    """A model: y = the products beside each other, e = rows of the first matrix."""
    chosen = [(name, packed.matrices[name]) for name in names]
    nodes = [
        kernels.matmul_node("x", chosen, "y"),
        kernels.gather_node("ids", *chosen[0], "e"),
    ]
    info = helper.make_tensor_value_info
    inputs = [
        info("x", TensorProto.FLOAT, [None, None, columns]),
        info("ids", TensorProto.INT64, [None]),
    ]
    outputs = [info(name, TensorProto.FLOAT, None) for name in "ye"]
    tensors = [kernels.placeholder(name, matrix, "model.onnx") for name, matrix in chosen]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(kernels.DOMAIN, 1)]
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path


def run(session: Any, x: FloatArray, ids: list[int] | None = None) -> Any:
    rows = np.array(ids or [], np.int64)
    return session.run(None, {"x": x, "ids": rows})


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> kernels.Packed:
    if reason := kernels.why_not():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("packed") / "model.packed"
    return kernels.open_packed(path, kernels.pack(Matrices(SHAPES), path))


def inputs(n: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((1, n, COLUMNS)).astype(np.float32)


def expected(packed: kernels.Packed, names: list[str], x: FloatArray) -> FloatArray:
    parts = [packed.matrices[name] for name in names]
    return np.concatenate(
        [multiply(m.type, m.rows, m.columns, m.data, x[0]) for m in parts], axis=1
    )


def test_products_beside_each_other(packed: kernels.Packed, tmp_path: Path) -> None:
    names = list(SHAPES)
    session = open_session(save(tmp_path, packed, names), packed, names)
    x = inputs(600)
    for n in (1, 2, 3, 8, 17, 33, 256, 257, 600):
        y, _ = run(session, x[:, :n])
        assert y.shape == (1, n, 167)
        assert np.array_equal(y[0], expected(packed, names, x[:, :n])), n


def test_rows_are_read_from_the_matrix_that_is_multiplied(
    packed: kernels.Packed, tmp_path: Path
) -> None:
    session = open_session(save(tmp_path, packed, ["q"]), packed, ["q"])
    ids = [99, 0, 17, 17, 3, 50]
    m = packed.matrices["q"]
    rows = get_rows(m.type, m.rows, m.columns, m.data, np.array(ids, np.int32))
    assert np.array_equal(run(session, inputs(1), ids)[1], rows)
    assert np.array_equal(run(session, inputs(1), ids[:1])[1], rows[:1])
    for wrong in (-1, 100):
        with pytest.raises(Exception, match="a row outside of the matrix"):
            run(session, inputs(1), [wrong])


def test_an_empty_input(packed: kernels.Packed, tmp_path: Path) -> None:
    session = open_session(save(tmp_path, packed, ["q", "k"]), packed, ["q", "k"])
    y, e = run(session, inputs(0))
    assert (y.shape, e.shape) == ((1, 0, 133), (0, COLUMNS))


def test_sessions_and_runs_at_the_same_time(packed: kernels.Packed, tmp_path: Path) -> None:
    names = ["q", "k", "h"]
    path = save(tmp_path, packed, names)
    sessions = [open_session(path, packed, names) for _ in range(3)]
    xs = [inputs(n, seed=n) for n in (1, 5, 40, 300)]
    wanted = [expected(packed, names, x) for x in xs]

    def work(i: int) -> bool:
        return np.array_equal(run(sessions[i % 3], xs[i % 4])[0][0], wanted[i % 4])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(120)))


def test_what_a_node_must_not_be(packed: kernels.Packed, tmp_path: Path) -> None:
    path = save(tmp_path, packed, ["q"], columns="c")
    session = open_session(path, packed, ["q"])
    with pytest.raises(Exception, match="last dimension of X"):
        run(session, np.zeros((1, 2, COLUMNS - 1), np.float32))
    model = onnx.load(str(path), load_external_data=False)

    def changed(name: str, value: int) -> Path:
        for attribute in model.graph.node[0].attribute:
            if attribute.name == name:
                attribute.i = value
        onnx.save(model, str(path))
        return path

    with pytest.raises(Exception, match="no whole number of blocks"):
        open_session(changed("columns", COLUMNS + 1), packed, ["q"])
    with pytest.raises(Exception, match="out of range"):
        open_session(changed("columns", -1), packed, ["q"])
    changed("columns", COLUMNS)
    with pytest.raises(Exception, match="wrong size"):
        run(open_session(changed("rows0", 160), packed, ["q"]), inputs(1))


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from edgespec import kernels
from tests.kernels.sessions import open_session
def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) * 1024
packed = kernels.open_packed(Path(sys.argv[1]))
before = anonymous()
session = open_session(Path(sys.argv[2]), packed, ["w"])
session.run(None, {"x": np.ones((1, 1, 1024), np.float32), "ids": np.zeros(1, np.int64)})
print(anonymous() - before, packed.matrices["w"].data.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_not_copied(tmp_path: Path) -> None:
    source = Matrices({"w": ("Q8_0", 1 << 16, 1024)})
    packed = kernels.open_packed(tmp_path / "p", kernels.pack(source, tmp_path / "p"))
    path = save(tmp_path, packed, ["w"], 1024)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "p"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, size = map(int, done.stdout.split())
    assert size > 70e6
    assert grown < size / 2


FAKE = """
import ctypes
from edgespec.kernels import native
api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
create = status(lambda code, message: print(message.decode()) or 1)
table = (ctypes.c_void_p * 1)(ctypes.cast(create, ctypes.c_void_p))
old = api(lambda version: ctypes.addressof(table) if version == 1 else None)
base = (ctypes.c_void_p * 2)(ctypes.cast(old, ctypes.c_void_p), None)
assert native._library().RegisterCustomOps(None, base)
"""


def test_an_older_onnx_runtime_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", FAKE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"need ONNX Runtime 1\.17", done.stdout)


OTHER = """
import ctypes
import onnxruntime
from edgespec import kernels
from edgespec.kernels import native
kernels.register(onnxruntime.SessionOptions())
api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
create = status(lambda code, message: print(message.decode()) or 1)
table = (ctypes.c_void_p * 300)(ctypes.cast(create, ctypes.c_void_p))
newer = api(lambda version: ctypes.addressof(table))
base = (ctypes.c_void_p * 2)(ctypes.cast(newer, ctypes.c_void_p), None)
assert native._library().RegisterCustomOps(None, base)
"""


def test_a_second_onnx_runtime_in_the_process_is_refused() -> None:
    """The operators keep the functions of the first; values of the other are not theirs to read."""
    done = subprocess.run([sys.executable, "-c", OTHER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "serve another ONNX Runtime" in done.stdout


def test_options_from_many_threads_at_the_same_time() -> None:
    def work(_: int) -> None:
        kernels.register(ort.SessionOptions())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
