"""Norms, gated units and attention, in real sessions of ONNX Runtime, against numpy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgespec import kernels
from edgespec.core.runtime import FloatArray
from tests.kernels.attention import Case, attention, node, run
from tests.kernels.sessions import open_session, start

TREE = [-1, 0, 0, 1, 1, 2, 5, -1, 7]


def normal(*shape: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def operator(path: Path, name: str, arrays: dict[str, Any], outputs: str, **attributes: Any) -> Any:
    made = helper.make_node(name, list(arrays), list(outputs), domain=kernels.DOMAIN, **attributes)
    return start([made], arrays, outputs, path / "model.onnx")


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 576])
def test_norms(columns: int, tmp_path: Path) -> None:
    x, d, gain = normal(1, 40, columns), normal(1, 40, columns, seed=1), normal(columns, seed=2)
    plain = operator(tmp_path, "RmsNorm", {"x": x, "g": gain}, "y", epsilon=1e-5)
    inputs = {"x": x, "d": d, "g": gain}
    added = operator(tmp_path, "AddRmsNorm", inputs, "ys", epsilon=1e-5)
    for n in (40, 1, 0):
        [y] = plain.run(None, {"x": x[:, :n], "g": gain})
        expected = x[:, :n] / np.sqrt((x[:, :n] ** 2).mean(-1, keepdims=True) + 1e-5) * gain
        assert np.allclose(y, expected, rtol=1e-5, atol=1e-6)
        y, s = added.run(None, {"x": x[:, :n], "d": d[:, :n], "g": gain})
        assert np.array_equal(s, x[:, :n] + d[:, :n])
        assert np.array_equal(y, plain.run(None, {"x": s, "g": gain})[0])


@pytest.mark.parametrize("gelu", [0, 1])
def test_gated_units(gelu: int, tmp_path: Path) -> None:
    x = 8 * normal(2, 30, 2 * 130)
    session = operator(tmp_path, "GatedUnit", {"x": x}, "y", gelu=gelu)
    g, up = np.split(x.astype(np.float64), 2, axis=-1)
    activated = g / (1 + np.exp(-g))
    if gelu:
        activated = g / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
    [y] = session.run(None, {"x": x})
    assert np.allclose(y, activated * up, rtol=1e-5, atol=1e-5)
    assert session.run(None, {"x": x[:, :0]})[0].shape == (2, 0, 130)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [("RmsNorm", {"epsilon": 1e-5}), ("GatedUnit", {"gelu": 0}), ("GatedUnit", {"gelu": 1})],
)
def test_what_is_no_number_stays_in_its_row(
    name: str, attributes: dict[str, Any], tmp_path: Path
) -> None:
    x, gain = normal(1, 6, 64), normal(64)
    inputs = {"x": x} | ({"g": gain} if name == "RmsNorm" else {})
    session = operator(tmp_path, name, inputs, "y", **attributes)
    [whole] = session.run(None, inputs)
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        x[0, row, row] = value
    [y] = session.run(None, inputs)
    assert np.array_equal(y[:, 3:], whole[:, 3:])
    assert np.isnan(y[0, 0]).any()


CASES = [
    Case(),
    Case(heads=1, kv_heads=1, head_dim=1, rope_dims=0),
    Case(heads=6, kv_heads=2, head_dim=20, rope_dims=12, biased=1),
    Case(heads=9, kv_heads=3, head_dim=64, rope_dims=64, normed=1),
    Case(heads=5, kv_heads=1, head_dim=48, rope_dims=48, interleaved=1, biased=1, normed=1),
    Case(heads=4, kv_heads=4, head_dim=16, rope_dims=16, window=1),
    Case(heads=12, kv_heads=1, head_dim=24, rope_dims=8, window=5),
    Case(window=18, interleaved=1),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [0, 3, 37])
def test_attention(case: Case, length: int, tmp_path: Path) -> None:
    """Of a chain and of a tree behind what is cached, on every instruction set."""
    past, chain, tree = case.inputs(length), case.inputs(20, length, 1), case.inputs(9, length, 2)
    tree["parents"][:] = TREE
    session = start([node(case, past)], past, "y", tmp_path / "model.onnx")
    for step in (chain, tree):
        qkv = np.concatenate([past["qkv"][0], step["qkv"][0]])
        parents = [length + p if p >= 0 else length - 1 for p in step["parents"].tolist()]
        expected = attention(case, qkv, [*range(-1, length - 1), *parents], past)[length:]
        found = {}
        for name in kernels.isas():
            kernels.set_isa(name)
            run(session, past)
            step["keys"], step["values"] = past["keys"].copy(), past["values"].copy()
            found[name] = run(session, step)
            assert np.allclose(found[name], expected, rtol=0.01, atol=2e-3), name
            assert np.array_equal(found[name], found[kernels.isas()[0]]), name
            assert not step["keys"][0].any(), "another layer's"


@pytest.mark.parametrize("window", [0, 3])
def test_what_a_row_does_not_see_may_be_no_number(window: int, tmp_path: Path) -> None:
    """Queries of several rows share a tile; rows that only some of them see must not reach the others."""
    case = Case(heads=2, window=window)
    inputs = case.inputs(40)
    session = start([node(case, inputs)], inputs, "y", tmp_path / "model.onnx")
    whole = run(session, inputs)
    for row in range(0, 40, 13):
        broken = case.inputs(40)
        broken["qkv"][0, row] = np.nan
        y = run(session, broken)
        last = row + window if window else 40
        assert np.isnan(y[row:last]).any(axis=1).all()
        assert np.array_equal(y[:row], whole[:row])
        assert np.array_equal(y[last:], whole[last:])


def test_sessions_with_caches_of_their_own_at_the_same_time(tmp_path: Path) -> None:
    case = CASES[3]
    steps = [case.inputs(n, seed=n) for n in (1, 5, 30, 60)]
    sessions = [
        start([node(case, step)], step, "y", tmp_path / f"{i}.onnx") for i, step in enumerate(steps)
    ]
    wanted = [run(*pair) for pair in zip(sessions, steps, strict=True)]

    def work(i: int) -> bool:
        step = case.inputs(len(wanted[i % 4]), seed=len(wanted[i % 4]))
        return np.array_equal(run(sessions[i // 4 % 4], step), wanted[i % 4])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(120)))


def test_an_empty_pass_and_a_full_cache(tmp_path: Path) -> None:
    case = Case()
    inputs = case.inputs(64)
    session = start([node(case, inputs)], inputs, "y", tmp_path / "model.onnx")
    run(session, inputs)
    assert inputs["keys"][1].all()
    empty = case.inputs(0, 64)
    assert run(session, empty).shape == (0, 128)


WRONG: list[tuple[str, Any, str]] = [
    ("qkv", np.zeros((2, 5, 256), np.float32), "QKV"),
    ("qkv", np.zeros((1, 5, 255), np.float32), "QKV"),
    ("parents", np.zeros(4, np.int32), "one parent"),
    ("parents", np.array([-2, 0, 1, 2, 3], np.int32), "no tree"),
    ("parents", np.array([0, 0, 1, 2, 3], np.int32), "no tree"),
    ("parents", np.array([-1, 0, 1, 2, 2**31 - 1], np.int32), "no tree"),
    ("length", np.array([60], np.int32), "more rows than the cache"),
    ("length", np.array([2**31 - 1], np.int32), "more rows than the cache"),
    ("length", np.array([-1], np.int32), "more rows than the cache"),
    ("length", np.array([-(2**31)], np.int32), "more rows than the cache"),
    ("length", np.array([1, 1], np.int32), "one length"),
    ("length", np.array([], np.int32), "one length"),
    ("keys", np.zeros((1, 2, 4, 32, 16), np.float16), "cache of another shape"),
    ("keys", np.zeros((2, 1, 4, 32, 16), np.float16), "cache of another shape"),
    ("keys", np.zeros((2, 2, 4, 31, 16), np.float16), "cache of another shape"),
    ("keys", np.zeros((2, 2, 4, 32, 15), np.float16), "cache of another shape"),
    ("keys", np.zeros((2, 2, 3, 32, 16), np.float16), "cache of another shape"),
    ("keys", np.zeros((2, 2, 0, 32, 16), np.float16), "cache of another shape"),
    ("keys", np.zeros((2, 2, 2**40, 32, 0), np.float16), "cache of another shape"),
    ("values", np.zeros((1, 2, 2, 64, 16), np.float16), "cache of another shape"),
    ("values", np.zeros((2, 2, 1, 64, 16), np.float16), "cache of another shape"),
    ("values", np.zeros((2, 2, 2, 48, 16), np.float16), "cache of another shape"),
    ("values", np.zeros((2, 2, 2, 0, 16), np.float16), "cache of another shape"),
    ("cosines", np.zeros((128, 15), np.float32), "rotary tables"),
    ("sines", np.zeros((4, 16), np.float32), "more positions"),
    ("cosines", np.zeros((0, 16), np.float32), "more positions"),
    ("bias", np.zeros(255, np.float32), "bias or gain"),
    ("q_gain", np.zeros(1, np.float32), "bias or gain"),
    ("k_gain", np.zeros(0, np.float32), "bias or gain"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_inputs_that_attention_refuses(name: str, value: Any, message: str, tmp_path: Path) -> None:
    case = Case(biased=1, normed=1)
    inputs = case.inputs(5)
    session = start([node(case, inputs)], inputs, "y", tmp_path / "model.onnx")
    inputs[name] = value
    with pytest.raises(Exception, match=message):
        run(session, inputs)
    assert not inputs["keys"].any()


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("layer", 2, "cache of another shape"),
        ("layer", -1, "out of range"),
        ("heads", 3, "do not go together"),
        ("heads", 0, "do not go together"),
        ("heads", 1 << 40, "out of range"),
        ("kv_heads", 0, "do not go together"),
        ("head_dim", 1025, "out of range"),
        ("head_dim", 0, "do not go together"),
        ("rope_dims", 34, "do not go together"),
        ("rope_dims", 31, "do not go together"),
        ("window", -1, "out of range"),
        ("biased", 1, "too many or too few inputs"),
        ("normed", 1, "too many or too few inputs"),
    ],
)
def test_attributes_that_attention_refuses(
    attribute: str, value: int, message: str, tmp_path: Path
) -> None:
    inputs = Case().inputs(5)
    made = node(Case(), inputs, **{attribute: value})
    with pytest.raises(Exception, match=message):
        run(start([made], inputs, "y", tmp_path / "model.onnx"), inputs)


@pytest.mark.parametrize("cache", ["keys", "values"])
def test_a_cache_that_is_a_constant_is_refused(cache: str, tmp_path: Path) -> None:
    inputs = Case().inputs(5)
    path = tmp_path / "model.onnx"
    start([node(Case(), inputs)], inputs, "y", path)
    model = onnx.load(str(path))
    model.graph.initializer.append(numpy_helper.from_array(inputs[cache], cache))
    del model.graph.input[list(inputs).index(cache)]
    onnx.save(model, str(path))
    with pytest.raises(Exception, match="the cache is a constant"):
        open_session(path)


def test_inputs_that_norms_and_gated_units_refuse(tmp_path: Path) -> None:
    x, gain = normal(2, 3, 64), normal(64)
    norm = operator(tmp_path, "RmsNorm", {"x": x, "g": gain}, "y", epsilon=1e-5)
    for inputs in ({"x": x, "g": gain[1:]}, {"x": x[..., :63], "g": gain}):
        with pytest.raises(Exception, match="one gain"):
            norm.run(None, inputs)
    with pytest.raises(Exception, match="no columns"):
        norm.run(None, {"x": x[..., :0], "g": gain[:0]})
    added = operator(tmp_path, "AddRmsNorm", {"x": x, "d": x, "g": gain}, "ys", epsilon=1e-5)
    with pytest.raises(Exception, match="different shapes"):
        added.run(None, {"x": x, "d": x[:1], "g": gain})
    gate = operator(tmp_path, "GatedUnit", {"x": x}, "y", gelu=0)
    for width in (63, 0):
        with pytest.raises(Exception, match="beside each other"):
            gate.run(None, {"x": x[..., :width]})
    with pytest.raises(Exception, match="out of range"):
        operator(tmp_path, "GatedUnit", {"x": x}, "y", gelu=2)


def test_a_node_that_lacks_an_input_or_output_is_refused(tmp_path: Path) -> None:
    inputs = Case(biased=1).inputs(5)
    made = node(Case(biased=1), [*list(inputs)[:-1], ""])
    with pytest.raises(Exception, match=r"lacks an input|is absent"):
        run(start([made], inputs, "y", tmp_path / "model.onnx"), inputs)
    arrays = {"x": normal(1, 3, 64), "d": normal(1, 3, 64), "g": normal(64)}
    made = helper.make_node(
        "AddRmsNorm", list(arrays), ["y", ""], domain=kernels.DOMAIN, epsilon=1e-5
    )
    with pytest.raises(Exception, match=r"lacks an output|empty string"):
        start([made], arrays, "y", tmp_path / "model.onnx").run(None, arrays)


def test_an_input_that_is_not_aligned_is_refused(tmp_path: Path) -> None:
    inputs = Case(biased=1).inputs(5)
    session = start([node(Case(biased=1), inputs)], inputs, "y", tmp_path / "model.onnx")
    inputs["bias"] = np.zeros(4 * 256 + 1, np.uint8)[1:].view(np.float32)
    with pytest.raises(Exception, match="not aligned"):
        run(session, inputs)
