"""The bits of products and layers on any number of threads, which is one for a whole process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgespec import kernels
from tests.kernels.attention import Case, node, run
from tests.kernels.matrices import Matrices
from tests.kernels.sessions import open_session, start
from tests.kernels.test_layers import normal
from tests.kernels.test_operators import SHAPES, inputs, save

CASES = (
    Case(heads=9, kv_heads=3, window=11),
    Case(heads=8, kv_heads=1, biased=1),
    Case(heads=2, head_dim=20, rope_dims=20),
)


def outputs(folder: Path, threads: int) -> bytes:
    """Of passes of many sizes through every operator, a tree among them."""
    packed = kernels.open_packed(folder / "packed")
    names = list(SHAPES)
    products = open_session(save(folder, packed, names), packed, names, threads)
    found = [products.run(None, {"x": inputs(n), "ids": np.arange(20)}) for n in (1, 2, 7, 40, 300)]
    layers = {"x": normal(40, 1200), "d": normal(40, 1200, seed=1), "g": normal(1200)}
    nodes = [
        helper.make_node(
            "AddRmsNorm", list(layers), ["n", "s"], domain=kernels.DOMAIN, epsilon=1e-5
        ),
        helper.make_node("GatedUnit", ["n"], ["y"], domain=kernels.DOMAIN, gelu=0),
    ]
    found.append(start(nodes, layers, "ys", folder / "layers.onnx", threads).run(None, layers))
    for case in CASES:
        past = case.inputs(20)
        session = start([node(case, past)], past, "y", folder / "attention.onnx", threads)
        found.append([run(session, past)])
        for n in (1, 2, 9, 40):
            for tree in (False, True):
                step = case.inputs(n, 20, seed=n)
                step["parents"][2:] -= tree
                step["keys"], step["values"] = past["keys"], past["values"]
                found.append([run(session, step)])
    return b"".join(array.tobytes() for arrays in found for array in arrays)


RUN = """
import sys
from pathlib import Path
from tests.kernels.test_threads import outputs
sys.stdout.buffer.write(outputs(Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.parametrize("threads", [2, 3])
def test_the_bits_do_not_depend_on_the_threads(threads: int, tmp_path: Path) -> None:
    kernels.pack(Matrices(SHAPES), tmp_path / "packed")
    one, many = (
        subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path), str(n)], capture_output=True, check=True
        ).stdout
        for n in (1, threads)
    )
    assert len(one) > 100_000
    assert one == many
