"""A graph of one Attention node, and the same attention in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import helper

from edgespec import kernels
from edgespec.core.runtime import FloatArray

Doubles = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
POSITIONS = 128


@dataclass(frozen=True)
class Case:
    """Attributes of the node."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    rope_dims: int = 32
    interleaved: int = 0
    window: int = 0
    biased: int = 0
    normed: int = 0
    layer: int = 1

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def inputs(self, n: int, length: int = 0, seed: int = 0) -> Arrays:
        """A pass over a chain of ``n`` random rows, behind ``length`` in a cache of 64 rows."""
        rng = np.random.default_rng(seed)
        angles = np.outer(np.arange(POSITIONS), 10.0 ** -np.linspace(0, 3, self.rope_dims // 2))
        arrays: dict[str, Any] = {
            "qkv": rng.standard_normal((1, n, self.width)),
            "keys": np.zeros((2, self.kv_heads, 4, self.head_dim, 16), np.float16),
            "values": np.zeros((2, self.kv_heads, -(-self.head_dim // 16), 64, 16), np.float16),
            "parents": np.arange(-1, n - 1, dtype=np.int32),
            "length": np.array([length], np.int32),
            "cosines": np.cos(angles),
            "sines": np.sin(angles),
        }
        rng = np.random.default_rng(99)  # weights are the same in every pass
        if self.biased:
            arrays["bias"] = rng.standard_normal(self.width)
        if self.normed:
            arrays["q_gain"], arrays["k_gain"] = rng.uniform(0.5, 2, (2, self.head_dim))
        return {
            name: array.astype(np.float32) if array.dtype == np.float64 else array
            for name, array in arrays.items()
        }


def node(case: Case, inputs: Sequence[str], **changed: Any) -> Any:
    attributes = {**vars(case), "scale": case.head_dim**-0.5, "epsilon": 1e-6, **changed}
    return helper.make_node("Attention", list(inputs), ["y"], domain=kernels.DOMAIN, **attributes)


def run(session: Any, inputs: Mapping[str, npt.NDArray[Any]]) -> FloatArray:
    """``y [n, heads, head_dim]`` without its first dimension; keys and values are written in place."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    return np.asarray(binding.get_outputs()[0].numpy(), np.float32)[0]


def attention(case: Case, qkv: FloatArray, parents: Sequence[int], weights: Arrays) -> Doubles:
    """Of all rows of a sequence or tree, ``qkv [n, width]``, keys and values rounded to halves."""
    n, half = len(qkv), case.rope_dims // 2
    positions: list[int] = []
    for parent in parents:
        positions.append(positions[parent] + 1 if parent >= 0 else 0)
    x = qkv.astype(np.float64) + (weights["bias"] if case.biased else 0)
    x = x.reshape(n, -1, case.head_dim)
    q, k, v = np.split(x, [case.heads, case.heads + case.kv_heads], axis=1)
    if case.normed:
        q, k = (
            t / np.sqrt((t**2).mean(-1, keepdims=True) + 1e-6) * weights[gain]
            for t, gain in ((q, "q_gain"), (k, "k_gain"))
        )
    one = np.arange(half) * (2 if case.interleaved else 1)
    two = one + (1 if case.interleaved else half)
    cosines, sines = (weights[name][positions][:, None] for name in ("cosines", "sines"))
    for t in (q, k):
        first, second = t[..., one].copy(), t[..., two].copy()
        t[..., one] = first * cosines - second * sines
        t[..., two] = second * cosines + first * sines
    k, v = (t.astype(np.float16).astype(np.float64) for t in (k, v))
    out = np.empty((n, case.heads, case.head_dim))
    for i in range(n):
        path = [i]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        path = path[: case.window] if case.window else path
        for head in range(case.heads):
            kv = head * case.kv_heads // case.heads
            scores = k[path, kv] @ q[i, head] * case.head_dim**-0.5
            weight = np.exp(scores - scores.max())
            out[i, head] = weight @ v[path, kv] / weight.sum()
    return out.reshape(n, -1)
