"""The plain graph that Optimum writes, on the onnx runtime: the contract, its mathematics, bad folders.

The graph is made here; ``tests/export/test_via_optimum.py`` has those that Optimum itself writes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgespec.core.runtime import DEFAULT_CONTEXT, FloatArray
from edgespec.errors import UserError
from edgespec.export import build_onnx
from edgespec.export.graph import Graph
from edgespec.models.optimum_folder import is_optimum_folder
from edgespec.runtimes.onnx.optimum import OptimumRuntime
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.runtimes.contract import OTHERS, TOKENS, RuntimeContract
from tests.tiny import tiny_gguf

VOCAB, CONTEXT, LAYERS, HEADS, HEAD_DIM = 300, 64, 2, 3, 8
HIDDEN = HEADS * HEAD_DIM

Weights = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def random_weights() -> Weights:
    """An embedding of tokens and of positions, two layers of attention, a head."""
    random = np.random.default_rng(3)
    shapes = {"tokens": (VOCAB, HIDDEN), "positions": (CONTEXT, HIDDEN), "head": (HIDDEN, VOCAB)}
    for layer in range(LAYERS):
        shapes |= {f"{name}.{layer}": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "out")}
    return {
        name: random.normal(0, 1 if name in ("tokens", "positions") else HIDDEN**-0.5, shape)
        for name, shape in shapes.items()
    }


def expected_logits(tokens: list[int]) -> FloatArray:
    """What the model says after each of ``tokens``, without a cache, in float64."""
    weights, n = random_weights(), len(tokens)
    x = weights["tokens"][tokens] + weights["positions"][:n]
    for layer in range(LAYERS):
        q, k, v = (
            (x @ weights[f"{name}.{layer}"]).reshape(n, HEADS, HEAD_DIM).transpose(1, 0, 2)
            for name in "qkv"
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(HEAD_DIM)) * np.tri(n)
        attended = scores / scores.sum(axis=-1, keepdims=True) @ v
        x = x + attended.transpose(1, 0, 2).reshape(n, HIDDEN) @ weights[f"out.{layer}"]
    return (x @ weights["head"]).astype(np.float32)


def plain_folder(folder: Path, dtype: str = "float32", position_ids: bool = True) -> Path:
    """The model as Optimum would write it; like some of its graphs, it may count positions itself."""
    folder.mkdir()
    past_axes, all_axes = ("past_sequence_length", "past_sequence_length + sequence_length")
    with Graph(folder) as graph:

        def number(value: float, kind: str = "int64") -> str:
            return graph.constant(f"c{len(graph.constants)}", np.array([value], kind))

        def node(kind: str, *inputs: str, **attributes: Any) -> str:
            return graph.node(kind, inputs, **attributes)[0]

        weights = {n: graph.constant(n, w.astype(dtype)) for n, w in random_weights().items()}
        ids = graph.input("input_ids", np.int64, ["batch_size", "sequence_length"])
        mask = graph.input("attention_mask", np.int64, ["batch_size", all_axes])
        rows = node("Shape", ids, start=1, end=2)
        total = node("Shape", mask, start=1, end=2)
        scalar = graph.constant("scalar", np.array([], np.int64))
        columns = node(
            "Range", number_0d(graph, 0), node("Reshape", total, scalar), number_0d(graph, 1)
        )
        if position_ids:
            positions = graph.input("position_ids", np.int64, ["batch_size", "sequence_length"])
        else:
            positions = node("Slice", columns, node("Sub", total, rows), total, number(0))
            positions = node("Unsqueeze", positions, number(0))
        seen = node(
            "LessOrEqual", columns, node("Reshape", positions, graph.constant("column", np.array([1, 1, -1, 1])))
        )  # fmt: skip
        seen = node("And", seen, node("Cast", mask, to=onnx.TensorProto.BOOL))
        bias = node("Where", seen, number(0, dtype), number(-1e4, dtype))
        split = graph.constant("split", np.array([1, -1, HEADS, HEAD_DIM]))
        joined = graph.constant("joined", np.array([1, -1, HIDDEN]))
        x = node(
            "Add",
            node("Gather", weights["tokens"], ids),
            node("Gather", weights["positions"], positions),
        )
        for layer in range(LAYERS):
            heads = {}
            for name in "qkv":
                product = node("MatMul", x, weights[f"{name}.{layer}"])
                heads[name] = node("Transpose", node("Reshape", product, split), perm=[0, 2, 1, 3])
            for name, kind in (("k", "key"), ("v", "value")):
                past, present = f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}"
                graph.input(past, dtype, ["batch_size", HEADS, past_axes, HEAD_DIM])
                graph.output(present, dtype, ["batch_size", HEADS, all_axes, HEAD_DIM])
                graph.node("Concat", [past, heads[name]], [present], axis=2)
                heads[name] = present
            keys = node("Transpose", heads["k"], perm=[0, 1, 3, 2])
            scores = node("Mul", node("MatMul", heads["q"], keys), number(HEAD_DIM**-0.5, dtype))
            chances = node("Softmax", node("Add", scores, bias), axis=-1)
            attended = node("Transpose", node("MatMul", chances, heads["v"]), perm=[0, 2, 1, 3])
            out = node("MatMul", node("Reshape", attended, joined), weights[f"out.{layer}"])
            x = node("Add", x, out)
        graph.node("MatMul", [x, weights["head"]], ["logits"])
        graph.output("logits", dtype, ["batch_size", "sequence_length", VOCAB])
        graph.save("plain")
    config = {"model_type": "plain", "vocab_size": VOCAB, "n_positions": CONTEXT}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def number_0d(graph: Graph, value: int) -> str:
    return graph.constant(f"n{value}", np.array(value, np.int64))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return plain_folder(tmp_path / "plain")


@pytest.mark.parametrize(
    ("dtype", "position_ids"),
    [("float32", True), ("float32", False), ("float16", True)],
    scope="class",
)
class TestPlain(RuntimeContract):
    trees = False
    tolerance = 0.03  # of float16 logits; of float32 ones, test_logits_are_those_of_numpy

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(
        cls, dtype: str, position_ids: bool, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[OptimumRuntime]:
        folder = plain_folder(tmp_path_factory.mktemp("plain") / "a", dtype, position_ids)
        runtime = OptimumRuntime(folder, context=40)
        yield runtime
        runtime.close()


@pytest.mark.parametrize("position_ids", [True, False])
def test_logits_are_those_of_numpy(tmp_path: Path, position_ids: bool) -> None:
    """Also after rejected rows, forgotten tokens and passes that nobody kept."""
    runtime = OptimumRuntime(plain_folder(tmp_path / "a", position_ids=position_ids))
    tokens = np.random.default_rng(0).integers(0, VOCAB, CONTEXT).tolist()
    expected = expected_logits(tokens)
    for kept, rejected in ((5, 0), (1, 3), (4, 4), (1, 0), (6, 2), (8, 0), (2, 1)):
        start = runtime.length
        runtime.forward(OTHERS)
        runtime.keep([])
        found = runtime.forward(tokens[start : start + kept] + OTHERS[:rejected])
        np.testing.assert_allclose(found[:kept], expected[start : start + kept], rtol=0, atol=1e-4)
        runtime.keep(range(kept))
    for length in (20, 19, 7, 0):
        runtime.truncate(length)
        np.testing.assert_allclose(
            runtime.forward(tokens[length:]), expected[length:], rtol=0, atol=1e-4
        )
    runtime.close()


def test_only_rows_of_the_last_pass_are_kept(folder: Path) -> None:
    runtime = OptimumRuntime(folder)
    runtime.forward(TOKENS[:3])
    for rows in ([1], [0, 2], [0, 1, 2, 3]):
        with pytest.raises(ValueError, match="not a path"):
            runtime.keep(rows)
    runtime.keep([0, 1])
    runtime.forward(TOKENS[2:4])
    runtime.truncate(1)  # forgets the pass too
    with pytest.raises(ValueError, match="not a path"):
        runtime.keep([0])
    with pytest.raises(ValueError, match="cannot truncate"):
        runtime.truncate(2)
    assert runtime.length == 1


def test_information(folder: Path) -> None:
    runtime = OptimumRuntime(folder, context=50)
    info = runtime.info
    assert (info.name, info.architecture, info.layers) == ("plain", "plain", LAYERS)
    assert (info.vocab_size, info.context) == (VOCAB, 50)
    assert (info.device, info.runtime, info.pass_sizes) == ("cpu", "onnx", ())
    weights = sum(array.size * 4 for array in random_weights().values())
    assert weights <= info.weight_bytes < 1.3 * weights
    assert runtime.length == 0
    runtime.close()
    runtime.close()  # closing twice is harmless


def test_the_context_is_the_model_s(folder: Path) -> None:
    assert OptimumRuntime(folder).info.context == CONTEXT
    with pytest.raises(UserError, match=f"supports 1 to {CONTEXT} tokens"):
        OptimumRuntime(folder, context=CONTEXT + 1)
    edit_config(n_positions=None)(folder)
    assert OptimumRuntime(folder).info.context == DEFAULT_CONTEXT


def test_it_shares_the_threads_of_other_models(folder: Path, tmp_path: Path) -> None:
    plain = OptimumRuntime(folder)
    expected = plain.forward(TOKENS).copy()
    built = OnnxRuntime(
        build_onnx(tiny_gguf(tmp_path / "a.gguf", layers=1), tmp_path / "built"), exact=False
    )
    built.forward(TOKENS)
    np.testing.assert_array_equal(plain.forward(TOKENS), expected)
    with pytest.raises(UserError, match="this process already runs models on"):
        OptimumRuntime(folder, threads=77)


def test_a_provider_that_is_not_installed_is_a_user_error(folder: Path) -> None:
    with pytest.raises(UserError, match="has no provider tpu"):
        OptimumRuntime(folder, provider="tpu")


def test_which_folders_are_optimum_s(folder: Path, tmp_path: Path) -> None:
    assert is_optimum_folder(folder)
    built = build_onnx(tiny_gguf(tmp_path / "a.gguf", layers=1), tmp_path / "built")
    (built / "config.json").write_text("{}")
    assert not is_optimum_folder(built)
    (folder / "config.json").unlink()
    assert not is_optimum_folder(folder)
    assert not is_optimum_folder(tmp_path / "none")


def edit_config(**changes: Any) -> Callable[[Path], object]:
    """``config.json`` with other values; ``None`` removes a key."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        config = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def write_config(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(text)


def edit_graph(edit: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        edit(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return damage


def cut(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give a value of the graph another name."""
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def named(values: Any, name: str) -> Any:
    return next(value for value in values if value.name == name)


def forget_heads(model: onnx.ModelProto) -> None:
    value = named(model.graph.input, "past_key_values.0.key")
    value.type.tensor_type.shape.dim[1].dim_param = "heads"


def unexpected_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("use_cache_branch", 9, [1]))


def narrow_tokens(model: onnx.ModelProto) -> None:
    named(model.graph.input, "input_ids").type.tensor_type.elem_type = 6


def double_logits(model: onnx.ModelProto) -> None:
    rename(model, "logits", "single")
    model.graph.node.append(onnx.helper.make_node("Cast", ["single"], ["logits"], to=11))
    output = named(model.graph.output, "single")
    output.name, output.type.tensor_type.elem_type = "logits", 11


def unasked_rows(model: onnx.ModelProto) -> None:
    """A graph that gives logits for another number of tokens than it says."""
    rename(model, "logits", "every")
    twice = onnx.helper.make_node("Concat", ["every", "every"], ["logits"], axis=1)
    model.graph.node.append(twice)
    named(model.graph.output, "every").name = "logits"


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no graph": (lambda folder: (folder / "model.onnx").unlink(), "No such file"),
    "cut graph": (cut("model.onnx"), "cannot load"),
    "scrambled graph": (
        lambda folder: (folder / "model.onnx").write_bytes(b"\xff" * 500),
        "cannot load",
    ),
    "empty graph": (lambda folder: (folder / "model.onnx").write_bytes(b""), "cannot load"),
    "no weights": (lambda folder: (folder / "model.onnx.data").unlink(), "No such file"),
    "cut weights": (cut("model.onnx.data"), "cannot load"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "No such file"),
    "configuration is no text": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"),
        "cannot read",
    ),
    "configuration is a list": (write_config("[1]"), "no JSON object"),
    "configuration is deep": (write_config("[" * 500_000), "cannot read"),
    "configuration is long": (write_config(" " * (1 << 21) + "{}"), "more than"),
    "context is text": (edit_config(n_positions="many"), "n_positions"),
    "context is negative": (edit_config(n_positions=-1), "n_positions"),
    "context is huge": (edit_config(n_positions=10**40), "n_positions"),
    "another input": (edit_graph(unexpected_input), "use_cache_branch"),
    "no tokens": (edit_graph(lambda m: rename(m, "input_ids", "ids")), "ids"),
    "tokens of 32 bits": (edit_graph(narrow_tokens), "input_ids is a tensor.int32."),
    "no logits": (edit_graph(lambda m: rename(m, "logits", "scores")), "no decoder"),
    "no present": (
        edit_graph(lambda m: rename(m, "present.1.value", "present.1.worth")),
        "past_key_values.1.value",
    ),
    "heads not said": (edit_graph(forget_heads), "past_key_values.0.key"),
    "logits of another type": (edit_graph(double_logits), "double"),
    "twice the rows": (edit_graph(unasked_rows), "cannot load"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_is_not_usable_is_an_error_of_one_line(folder: Path, damage: str) -> None:
    do, message = DAMAGES[damage]
    do(folder)
    with pytest.raises(UserError, match=message) as caught:
        OptimumRuntime(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 500


def place_weights(location: str) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        entries = named(model.graph.initializer, "head").external_data
        next(entry for entry in entries if entry.key == "location").value = location

    return edit


def hide_in_a_node(model: onnx.ModelProto) -> None:
    """The head as a constant inside of a node, where it may lie in a file too."""
    place_weights("../outside")(model)
    tensor = named(model.graph.initializer, "head")
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["head"], value=tensor))
    model.graph.initializer.remove(tensor)


@pytest.mark.parametrize("where", ["above", "absolute", "linked", "in a node"])
def test_weights_outside_of_the_folder_are_refused(folder: Path, where: str) -> None:
    """Older versions of ONNX Runtime would read any file that a graph names."""
    outside = folder.parent / "outside"
    outside.write_bytes((folder / "model.onnx.data").read_bytes())
    if where == "linked":
        try:
            os.symlink("../outside", folder / "link")
        except OSError:
            pytest.skip("this system makes no links for everybody")
    edits = {
        "above": place_weights("../outside"),
        "absolute": place_weights(str(outside)),
        "linked": place_weights("link"),
        "in a node": hide_in_a_node,
    }
    edit_graph(edits[where])(folder)
    with pytest.raises(UserError, match=r"outside of the folder") as caught:
        OptimumRuntime(folder)
    assert "\n" not in str(caught.value)
