"""The onnx runtime keeps the contract, and promises of batch invariance only what holds.

That its mathematics is right is tested in ``tests/export/test_decoder.py``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgespec.core.runtime import ContextOverflow, FloatArray
from edgespec.errors import UserError
from edgespec.export import build_onnx
from edgespec.runtimes.onnx.invariance import PROBED_SIZES
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.onnx_support import ARCHITECTURES, WINDOWS
from tests.runtimes.contract import (
    OTHERS,
    PARENTS,
    TOKENS,
    TREE,
    RuntimeContract,
    assert_trees_equal_their_chains,
)
from tests.tiny import TINY, tiny_gguf

REMEMBERED = "pass_sizes.json"


CONTEXT = 64


def load_tiny(folder: Path, architecture: str, exact: bool = True, **overrides: Any) -> OnnxRuntime:
    source = tiny_gguf(folder / "a.gguf", architecture, **overrides)
    return OnnxRuntime(build_onnx(source, folder / "built"), context=CONTEXT, exact=exact)


@pytest.mark.parametrize("exact", [True, False], scope="class")
@pytest.mark.parametrize("architecture", ARCHITECTURES, scope="class")
class TestTiny(RuntimeContract):
    tolerance = 1e-3

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(
        cls, architecture: str, exact: bool, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[OnnxRuntime]:
        runtime = load_tiny(tmp_path_factory.mktemp("tiny"), architecture, exact, window=CONTEXT)
        yield runtime
        runtime.close()


@pytest.mark.skipif(not WINDOWS, reason="this ONNX Runtime has other windows")
@pytest.mark.parametrize("exact", [True, False], scope="class")
@pytest.mark.parametrize(
    ("architecture", "window"),
    [("gemma3", {"window": 8}), ("llama", {"window_everywhere": 8})],
    scope="class",
)
class TestWindows(RuntimeContract):
    """Layers that see less than the tests' length: among branches of a tree, they would see too little."""

    tolerance = 1e-3
    trees = False

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(
        cls,
        architecture: str,
        window: dict[str, int],
        exact: bool,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[OnnxRuntime]:
        runtime = load_tiny(tmp_path_factory.mktemp("tiny"), architecture, exact, **window)
        yield runtime
        runtime.close()


class TestSmolLM2(RuntimeContract):
    tolerance = 1.5  # activations are rounded to 8 bits, where a last bit's difference is a step
    rounds = 5

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(cls, smollm2_onnx: Path) -> Iterator[OnnxRuntime]:
        runtime = OnnxRuntime(smollm2_onnx, context=CONTEXT, exact=False)
        yield runtime
        runtime.close()


TREES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tied": True, "rope_factors": True}),
    ("llama", {"kv_heads": 1, "layers": 1}),
    ("llama", {"types": {"attn_v": "F16"}}),  # queries, keys and values come apart
    ("llama", {"hidden": 352, "heads": 11, "kv_heads": 11, "head_dim": 32}),
    ("llama", {"head_dim": 256}),  # wide
    ("llama", {"window_everywhere": CONTEXT}),
    ("phi3", {"rope_dims": 48, "window_everywhere": CONTEXT}),
    ("gemma3", {"rope_scaling": 4.0, "layers": 13, "window": CONTEXT}),  # two global layers
]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [case for case in TREES if WINDOWS or not any("window" in key for key in case[1])],
)
def test_trees_of_variants_equal_their_chains(
    tmp_path: Path, architecture: str, overrides: dict[str, Any], exact: bool
) -> None:
    runtime = load_tiny(tmp_path, architecture, exact, **overrides)
    assert runtime.info.trees
    assert_trees_equal_their_chains(runtime, seed=5, rounds=10, tolerance=1e-3)
    runtime.close()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("quant", ["F32", "Q4_K", "Q8_0"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_trees_first_branch_is_a_chain_to_the_bit(
    tmp_path: Path, architecture: str, quant: str, exact: bool
) -> None:
    """In a pass of the same size, or padded to one that agrees; and what follows is, too."""
    runtime = load_tiny(tmp_path, architecture, exact, quant=quant, window=CONTEXT)
    for length in (0, 1, 20, 45):
        for tree, parents, branch in [
            (TOKENS[:7], [-1, 0, 1, 1, 2, 0, -1], 3),
            (TOKENS[:4], [-1, -1, -1, 1], 1),
            (TOKENS[:10], [-1, 0, 1, 2, 3, 4, 0, 6, 7, 8], 6),
        ]:
            runtime.truncate(0)
            if length:
                runtime.forward((TOKENS * 3)[:length], logits="none")
                runtime.keep(range(length))
            chain = tree[:branch] if exact else tree
            expected = [runtime.forward(chain)[:branch].copy()]
            runtime.keep(range(branch))
            expected.append(runtime.forward(OTHERS).copy())
            runtime.truncate(length)
            found = [runtime.forward(tree, parents)[:branch].copy()]
            runtime.keep(range(branch))
            found.append(runtime.forward(OTHERS).copy())
            for rows, wanted in zip(found, expected, strict=True):
                np.testing.assert_array_equal(rows, wanted)
    runtime.close()


@pytest.mark.skipif(not WINDOWS, reason="this ONNX Runtime has other windows")
def test_a_tree_wants_a_window_as_long_as_the_context(tmp_path: Path) -> None:
    """The kernel counts a window in rows of the cache: other branches would take a row's place in it."""
    short = load_tiny(tmp_path, "llama", exact=False, window_everywhere=CONTEXT - 1)
    before = (TOKENS * 4)[: CONTEXT - 3]
    expected = short.forward([*before, 1, 3])[-1].copy()
    short.forward(before, logits="none")
    short.keep(range(len(before)))
    assert not short.info.trees
    short.info = replace(short.info, trees=True)
    found = short.forward([1, 2, 3], [-1, 0, 0])
    assert np.abs(found[2] - expected).max() > 0.01
    short.close()


def test_keeping_the_first_branch_copies_nothing(built: Path) -> None:
    runtime = OnnxRuntime(built)
    for cache in runtime._caches.values():
        cache.flags.writeable = False  # for NumPy; ONNX Runtime goes on
    runtime.forward(TREE, PARENTS)
    runtime.keep([0, 1])
    runtime.forward(TREE, PARENTS)
    with pytest.raises(ValueError, match="read-only"):
        runtime.keep([0, 2])
    runtime.close()


@pytest.mark.parametrize(
    "parents", [[], [-1, 0], [-1, 0, 2], [-1, 3, 0], [-2, 0, 0], [-1, 0, 0, 0]]
)
def test_what_is_no_tree_is_an_error(built: Path, parents: list[int]) -> None:
    runtime = OnnxRuntime(built, exact=False)
    with pytest.raises(ValueError, match="are not the parents of 3 rows"):
        runtime.forward([1, 2, 3], parents)
    runtime.close()


@pytest.mark.parametrize("rows", [[1], [0, 3], [0, 0], [0, 1, 2], [7], [-1], [0, 1, 3, 5, 6]])
def test_only_a_path_can_be_kept(built: Path, rows: list[int]) -> None:
    runtime = OnnxRuntime(built, exact=False)
    runtime.forward(TREE, PARENTS)
    with pytest.raises(ValueError, match="are not a path of the last pass"):
        runtime.keep(rows)
    assert runtime.length == 0
    runtime.keep([0, 2, 6])
    with pytest.raises(ValueError, match="are not a path of the last pass"):
        runtime.keep([0])  # it was kept or forgotten
    runtime.close()


def test_rows_of_a_refused_pass_cannot_be_kept(built: Path) -> None:
    runtime = OnnxRuntime(built, context=4, exact=False)
    with pytest.raises(ContextOverflow):
        runtime.forward(TREE, PARENTS)
    with pytest.raises(ValueError, match="are not a path of the last pass"):
        runtime.keep([0])
    runtime.close()


def test_a_device_that_refuses_the_graph_when_it_runs_is_a_user_error(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one without 16-bit floats does."""
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no provider that leaves all nodes to the CPU's")

    def refuse(*_: object) -> None:
        raise RuntimeError("shader-f16 is not supported by this device")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", refuse)
    with pytest.raises(UserError, match=r"shader-f16 .*; use --device cpu") as error:
        OnnxRuntime(built, provider="azure", exact=False)
    assert "\n" not in str(error.value)


def test_another_provider_runs_chains(built: Path) -> None:
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no provider that leaves all nodes to the CPU's")
    runtime = OnnxRuntime(built, provider="azure", exact=False)
    assert not runtime.info.trees
    assert runtime.forward(TREE).shape == (len(TREE), runtime.info.vocab_size)
    with pytest.raises(ValueError, match="no trees"):
        runtime.forward(TREE, PARENTS)
    runtime.close()


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A tiny model whose passes of one token take another kernel."""
    source = tiny_gguf(tmp_path / "a.gguf", quant="Q8_0", layers=1)
    return build_onnx(source, tmp_path / "built")


def assert_rows_have_the_same_bits(runtime: OnnxRuntime, lengths: list[int]) -> None:
    """A row's logits depend neither on its pass's size nor on its place there, after any length."""
    sizes, largest = runtime.info.pass_sizes, max(runtime.info.pass_sizes)
    vocab_size = runtime.info.vocab_size
    tokens = np.random.default_rng(5).integers(0, vocab_size, 2000).tolist()
    for length in lengths:
        runtime.truncate(0)
        runtime.forward(tokens[:length], logits="none")
        runtime.keep(range(length))
        tail = tokens[length : length + largest]
        expected = runtime.forward(tail).copy()
        for rows in range(1, largest + 1):  # those that are no such size are padded to one
            found = runtime.forward(tail[:rows])
            assert len(found) == rows
            np.testing.assert_array_equal(found, expected[:rows], f"{rows} rows after {length}")
        for row in (1, 2, largest - 2):
            runtime.forward(tail[:row])
            runtime.keep(range(row))
            found = runtime.forward(tail[row:])
            np.testing.assert_array_equal(found, expected[row:], f"after {length} + {row}")
            runtime.truncate(length)
        for row in (0, 1, sizes[0]):  # what follows a row does not matter
            found = runtime.forward(tail[: row + 1] + OTHERS)[: row + 1]
            np.testing.assert_array_equal(found, expected[: row + 1], f"others after {row}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("quant", ["F32", "Q4_1", "Q8_0", "Q4_K", "Q6_K"])
def test_pass_sizes_keep_their_promise(tmp_path: Path, architecture: str, quant: str) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", architecture, quant)
    runtime = OnnxRuntime(build_onnx(source, tmp_path / "built"))
    assert runtime.info.pass_sizes, "this processor gives no two sizes of pass the same bits"
    assert_rows_have_the_same_bits(runtime, [1, 2, 15, 16, 33, 55, 64, 101, 185, 300])
    runtime.close()


def test_pass_sizes_of_a_real_model_keep_their_promise(smollm2_onnx: Path) -> None:
    runtime = OnnxRuntime(smollm2_onnx, context=600)
    assert_rows_have_the_same_bits(runtime, [1, 64, 129, 510])
    runtime.close()


def test_padding_is_seen_by_nobody(built: Path) -> None:
    """As on a processor where only these sizes agree, also at the end of the context."""
    runtime = OnnxRuntime(built, context=64)
    passes = [TOKENS[:1], TOKENS[1:6], (TOKENS * 3)[:57], [7]]
    largest = max(runtime.info.pass_sizes)

    def logits() -> list[FloatArray]:
        found = []
        runtime.truncate(0)
        for tokens in passes:
            found.append(runtime.forward(tokens).copy())
            runtime.keep(range(len(tokens)))
        assert runtime.length == runtime.info.context
        return found

    expected = logits()
    runtime.info = replace(runtime.info, pass_sizes=(largest - 2, largest))
    for found, wanted in zip(logits(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    runtime.close()


def test_an_onnx_runtime_of_other_windows_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 1.24 a sliding layer saw one token more."""
    local = build_onnx(tiny_gguf(tmp_path / "a.gguf", "gemma3"), tmp_path / "gemma3")
    everywhere = build_onnx(tiny_gguf(tmp_path / "b.gguf", "llama"), tmp_path / "llama")
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    with pytest.raises(UserError, match=r"upgrade it to 1\.24"):
        OnnxRuntime(local)
    OnnxRuntime(everywhere).close()
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.0.dev1+cpu")
    OnnxRuntime(local).close()


def test_pass_sizes_are_remembered(built: Path) -> None:
    heard: list[str] = []

    def listen(what: str, done: int, total: int) -> None:
        heard.append(what)

    first = OnnxRuntime(built, progress=listen)
    assert any("passes of different sizes" in what for what in heard)
    remembered = (built / REMEMBERED).read_bytes()
    assert json.loads(remembered)["pass_sizes"] == list(first.info.pass_sizes)
    assert first.length == 0
    first.close()
    heard.clear()
    second = OnnxRuntime(built, progress=listen)
    assert not any("passes of different sizes" in what for what in heard)
    assert second.info.pass_sizes == first.info.pass_sizes
    assert sorted(path.name for path in built.iterdir() if "pass_sizes" in path.name) == [
        REMEMBERED
    ]
    second.close()


def remember(folder: Path, **changes: Any) -> None:
    path = folder / REMEMBERED
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


UNTRUSTED: dict[str, Callable[[Path], object]] = {
    "empty": lambda folder: (folder / REMEMBERED).write_bytes(b""),
    "no JSON": lambda folder: (folder / REMEMBERED).write_bytes(b"\xff{"),
    "a list": lambda folder: (folder / REMEMBERED).write_text("[]"),
    "a number": lambda folder: (folder / REMEMBERED).write_text("7"),
    "no key": lambda folder: (folder / REMEMBERED).write_text('{"pass_sizes": [2, 4]}'),
    "no sizes": lambda folder: remember(folder, pass_sizes=None),
    "another machine": lambda folder: remember(folder, key="onnxruntime 0.1", pass_sizes=[2, 4]),
    "text": lambda folder: remember(folder, pass_sizes=["2", "4"]),
    "one text": lambda folder: remember(folder, pass_sizes="24"),
    "huge": lambda folder: remember(folder, pass_sizes=[2, 4, 10**9]),
    "negative": lambda folder: remember(folder, pass_sizes=[-2, 2, 4]),
    "zero": lambda folder: remember(folder, pass_sizes=[0, 2]),
    "descending": lambda folder: remember(folder, pass_sizes=[4, 2]),
    "twice": lambda folder: remember(folder, pass_sizes=[2, 2, 4]),
    "fractions": lambda folder: remember(folder, pass_sizes=[2.5, 4]),
    "lists": lambda folder: remember(folder, pass_sizes=[[2], [4]]),
    "an object": lambda folder: remember(folder, pass_sizes={"2": 4}),
}


@pytest.mark.parametrize("what", UNTRUSTED)
def test_remembered_sizes_that_cannot_be_are_found_again(built: Path, what: str) -> None:
    first = OnnxRuntime(built)
    first.close()
    UNTRUSTED[what](built)
    second = OnnxRuntime(built)
    assert second.info.pass_sizes == first.info.pass_sizes
    assert json.loads((built / REMEMBERED).read_text())["pass_sizes"] == list(first.info.pass_sizes)
    second.close()


def test_sizes_remembered_in_a_small_context_do_not_bind_a_larger_one(built: Path) -> None:
    for context in (1, 2, 8, 40):
        runtime = OnnxRuntime(built, context=context)
        assert max(runtime.info.pass_sizes, default=0) <= context
        assert runtime.forward([1]).shape == (1, runtime.info.vocab_size)
        runtime.close()
    runtime = OnnxRuntime(built, context=80)
    assert max(runtime.info.pass_sizes) == PROBED_SIZES
    runtime.close()


def test_sizes_need_not_be_remembered(built: Path) -> None:
    (built / REMEMBERED).mkdir()  # nothing can be written there
    runtime = OnnxRuntime(built)
    assert runtime.info.pass_sizes
    runtime.close()


def test_the_last_token_of_a_full_cache_has_the_same_bits(built: Path) -> None:
    """There is room behind the context for a pass to be padded."""
    found = []
    for context in (64, 128):
        runtime = OnnxRuntime(built, context=context)
        runtime.forward((TOKENS * 4)[:63], logits="none")
        runtime.keep(range(63))
        found.append(runtime.forward([3]).copy())
        runtime.close()
    np.testing.assert_array_equal(*found)


def test_logits_of_a_long_prompt(tmp_path: Path) -> None:
    """More rows than the buffer that the small passes share has."""
    source = tiny_gguf(tmp_path / "a.gguf")
    runtime = OnnxRuntime(build_onnx(source, tmp_path / "built"))
    tokens = np.random.default_rng(2).integers(0, 256, 300).tolist()
    whole = runtime.forward(tokens).copy()
    assert whole.shape == (300, runtime.info.vocab_size)
    runtime.forward(tokens[:290], logits="none")
    runtime.keep(range(290))
    np.testing.assert_allclose(runtime.forward(tokens[290:]), whole[290:], rtol=0, atol=1e-3)
    runtime.close()


def test_information(built: Path) -> None:
    runtime = OnnxRuntime(built, context=100)
    info = runtime.info
    assert (info.name, info.architecture, info.layers) == ("a", "llama", 1)
    assert (info.context, info.device, info.runtime) == (100, "cpu", "onnx")
    # 8-bit codes and a float scale for 32 of them: all but the embedding, which is in the file too.
    stored = (built / "model.onnx.data").stat().st_size
    assert 0.5 * stored < info.weight_bytes < stored
    runtime.close()
    runtime = OnnxRuntime(built)
    assert runtime.info.context == TINY["llama"].context
    runtime.close()


@pytest.mark.parametrize("context", [0, -1, 513])
def test_a_context_that_the_model_cannot_have_is_a_user_error(built: Path, context: int) -> None:
    with pytest.raises(UserError, match="supports 1 to 512 tokens"):
        OnnxRuntime(built, context=context)


def test_another_number_of_threads_is_a_user_error(built: Path) -> None:
    OnnxRuntime(built, exact=False).close()
    with pytest.raises(UserError, match="this process already runs models on"):
        OnnxRuntime(built, threads=77)


def test_two_models_at_once(built: Path, tmp_path: Path) -> None:
    other = build_onnx(tiny_gguf(tmp_path / "b.gguf", seed=9), tmp_path / "other")
    first, second = OnnxRuntime(built), OnnxRuntime(other)
    expected = first.forward(TOKENS).copy()
    assert np.abs(second.forward(TOKENS) - expected).max() > 1
    second.keep(range(5))
    assert (first.length, second.length) == (0, 5)
    second.close()
    np.testing.assert_array_equal(first.forward(TOKENS), expected)
    first.close()


def test_closing_twice_is_harmless(built: Path) -> None:
    runtime = OnnxRuntime(built)
    runtime.close()
    runtime.close()


def edited(key: str, value: Any) -> Callable[[Path], object]:
    """``edgespec.json`` with another value of a key; ``None`` removes it."""

    def edit(folder: Path) -> None:
        path = folder / "edgespec.json"
        manifest = json.loads(path.read_text()) | {key: value}
        if value is None:
            del manifest[key]
        path.write_text(json.dumps(manifest))

    return edit


def cut(name: str, share: float = 0.5) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def scrambled(folder: Path) -> None:
    """A graph of the right size that is none."""
    size = (folder / "model.onnx").stat().st_size
    (folder / "model.onnx").write_bytes(b"\xff" * size)


def moved(folder: Path) -> None:
    """Constants that lie past the end of the weights."""
    path = folder / "edgespec.json"
    manifest = json.loads(path.read_text())
    manifest["constants"][0][3] = 1 << 40
    path.write_text(json.dumps(manifest))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut weights": cut("model.onnx.data"),
    "no weights": lambda folder: (folder / "model.onnx.data").unlink(),
    "empty weights": cut("model.onnx.data", 0),
    "cut graph": cut("model.onnx"),
    "scrambled graph": scrambled,
    "no graph": lambda folder: (folder / "model.onnx").unlink(),
    "no manifest": lambda folder: (folder / "edgespec.json").unlink(),
    "cut manifest": cut("edgespec.json"),
    "empty manifest": cut("edgespec.json", 0),
    "manifest is no text": lambda folder: (folder / "edgespec.json").write_bytes(b"\xff\xfe"),
    "manifest is a list": lambda folder: (folder / "edgespec.json").write_text("[1]"),
    "manifest is an empty object": lambda folder: (folder / "edgespec.json").write_text("{}"),
    "no name": edited("name", None),
    "no vocabulary": edited("vocab_size", None),
    "vocabulary is text": edited("vocab_size", "many"),
    "no layers": edited("layers", None),
    "context is zero": edited("context", 0),
    "context is a list": edited("context", [1]),
    "no files": edited("files", None),
    "files is a list": edited("files", ["model.onnx"]),
    "no file is named": edited("files", {}),
    "no window": edited("window", None),
    "no constants": edited("constants", None),
    "constants are numbers": edited("constants", [1, 2]),
    "constants lie outside": moved,
}


def test_a_model_of_an_older_builder_is_a_user_error(built: Path) -> None:
    """In a bundle; those in the cache are named by the builder's version."""
    model = onnx.load(str(built / "model.onnx"), load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            del node.input[9:]
    for name in ("position_ids", "attention_bias"):
        model.graph.input.remove(next(node for node in model.graph.input if node.name == name))
    onnx.save(model, str(built / "model.onnx"))
    edited(
        "files", {name: (built / name).stat().st_size for name in ("model.onnx", "model.onnx.data")}
    )(built)
    with pytest.raises(UserError, match="built by an older edgespec; export it again"):
        OnnxRuntime(built)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_an_error_of_one_line_that_says_to_delete_it(
    built: Path, damage: str
) -> None:
    DAMAGES[damage](built)
    with pytest.raises(UserError, match="delete it and it will be built again") as caught:
        OnnxRuntime(built)
    assert "\n" not in str(caught.value)
    assert str(built) in str(caught.value)


def test_a_folder_that_is_not_there_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a complete model"):
        OnnxRuntime(tmp_path / "none")


def test_a_deleted_model_is_built_again(built: Path, tmp_path: Path) -> None:
    runtime = OnnxRuntime(built)
    expected = runtime.forward(TOKENS).copy()
    runtime.close()
    cut("model.onnx.data")(built)
    shutil.rmtree(built)
    runtime = OnnxRuntime(build_onnx(tmp_path / "a.gguf", built))
    np.testing.assert_array_equal(runtime.forward(TOKENS), expected)
    runtime.close()


def test_a_provider_that_is_not_installed_is_a_user_error(built: Path) -> None:
    with pytest.raises(UserError, match=r"has no provider tpu .*CPUExecutionProvider"):
        OnnxRuntime(built, provider="tpu")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_a_user_error(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime itself would go on silently on the processor."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it might start here")
    monkeypatch.setattr(
        "edgespec.runtimes.onnx.runtime.choose_provider", lambda *arguments: "CUDAExecutionProvider"
    )
    with pytest.raises(UserError, match=r"cannot start CUDAExecutionProvider.*--device cpu"):
        OnnxRuntime(built)
