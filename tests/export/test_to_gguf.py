from __future__ import annotations

import errno
import importlib.util
import json
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError
from edgespec.export import to_gguf
from edgespec.export.source import Source
from edgespec.export.sources import open_source
from edgespec.export.to_gguf import write_gguf
from edgespec.models.gguf import GGUFFile, TensorInfo
from edgespec.models.tokenizer import Tokenizer
from tests.hf_folder import safetensors_folder
from tests.models.corpus import CORPUS, random_texts
from tests.models.llama_reference import LlamaVocabulary
from tests.tiny import TINY, tiny_gguf

TOKENS = list(range(3, 60))


@dataclass(frozen=True)
class Changed:
    """A source with something else in its place."""

    source: Source
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def path(self) -> Path:
        return self.source.path

    def tensor(self, name: str) -> npt.NDArray[np.uint8]:
        return self.source.tensor(name)


def changed(path: Path, values: Mapping[str, Any]) -> Changed:
    """``path`` with other metadata."""
    source = open_source(path)
    return Changed(source, {**source.metadata, **values}, source.tensors)


def converted(source: Path, path: Path, **options: Any) -> Path:
    write_gguf(open_source(source), path, **options)
    return path


def assert_same(first: Path, second: Path) -> None:
    a, b = GGUFFile(first), GGUFFile(second)
    assert b.metadata == a.metadata
    assert list(b.tensors) == list(a.tensors)
    for name, info in a.tensors.items():
        assert (b.tensors[name].type, b.tensors[name].shape) == (info.type, info.shape)
        assert np.array_equal(b.tensor(name), a.tensor(name))


def llama_logits(path: Path, tokens: list[int] = TOKENS) -> FloatArray:
    pytest.importorskip("llama_cpp", reason="pip install .[llama]")
    from edgespec.runtimes.llama_cpp.runtime import LlamaCppRuntime

    runtime = LlamaCppRuntime(path, threads=2)
    logits = runtime.forward(tokens).copy()
    runtime.close()
    return logits


def torch_logits(path: Path, tokens: list[int] = TOKENS) -> FloatArray:
    pytest.importorskip("torch", reason="pip install .[torch]")
    from edgespec.export.reference import TorchRuntime

    return TorchRuntime(path, threads=2).forward(tokens)


@pytest.mark.parametrize("architecture", sorted(TINY))
@pytest.mark.parametrize("quant", ["F32", "BF16", "Q4_K"])
def test_gguf_stays_as_it_is(architecture: str, quant: str, tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", architecture, quant)
    assert_same(source, converted(source, tmp_path / "b.gguf"))


def test_a_real_file_comes_out_byte_for_byte(smollm2: Path, tmp_path: Path) -> None:
    written = converted(smollm2, tmp_path / "out.gguf")
    assert written.read_bytes() == smollm2.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_llama_cpp_reads_what_was_written(tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", "qwen2", "Q8_0")
    written = converted(source, tmp_path / "b.gguf")
    assert np.array_equal(llama_logits(written), llama_logits(source))


def test_metadata_of_every_kind_comes_back(tmp_path: Path) -> None:
    values = {
        "test.small": -3,
        "test.large": 1 << 40,
        "test.negative": -(1 << 40),
        "test.float": 0.5,
        "test.truth": True,
        "test.bytes": "a\udcffb",
        "test.ints": [-1, 2],
        "test.large_ints": [1, (1 << 32) - 1],
        "test.floats": [0.5, 0.25],
        "test.truths": [True, False],
        "test.texts": ["ä", "\udcff"],
    }
    source = changed(tiny_gguf(tmp_path / "a.gguf"), values)
    write_gguf(source, tmp_path / "b.gguf")
    assert GGUFFile(tmp_path / "b.gguf").metadata == source.metadata


@pytest.mark.parametrize("value", [[1, "a"], [[1]], 1 << 70, {"a": 1}])
def test_metadata_that_gguf_does_not_have_is_a_user_error(value: Any, tmp_path: Path) -> None:
    source = changed(tiny_gguf(tmp_path / "a.gguf"), {"test.odd": value})
    with pytest.raises(UserError, match=r"test\.odd"):
        write_gguf(source, tmp_path / "b.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.parametrize("architecture", sorted(TINY))
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_safetensors_logits_equal_the_reference(
    architecture: str, dtype: str, tmp_path: Path
) -> None:
    folder = safetensors_folder(tiny_gguf(tmp_path / "a.gguf", architecture), tmp_path / "b", dtype)
    written = converted(folder, tmp_path / "c.gguf")
    found, expected = llama_logits(written), torch_logits(folder)
    # Logits deviate by 3. llama.cpp keeps its cache in F16, and activations in BF16 where weights are.
    assert np.abs(found - expected).mean() < (0.05 if dtype == "BF16" else 0.02)
    assert np.abs(found - expected).max() < (0.5 if dtype == "BF16" else 0.2)


def test_safetensors_give_the_file_they_came_from(tmp_path: Path) -> None:
    """Tokenizer and all: what the folder cannot say is the model's name."""
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    folder = safetensors_folder(source, tmp_path / "b", shards=2)
    original, written = GGUFFile(source), GGUFFile(converted(folder, tmp_path / "c.gguf"))
    for name in original.tensors:
        assert np.array_equal(written.tensor(name), original.tensor(name)), name
    assert written.tensors.keys() == original.tensors.keys()
    for key, value in original.metadata.items():
        if key != "general.name":
            assert written.metadata[key] == value, key


def test_again_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = safetensors_folder(tiny_gguf(tmp_path / "a.gguf", "gemma3"), tmp_path / "b", "BF16")
    first, second = (converted(folder, tmp_path / name) for name in ("c.gguf", "d.gguf"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
def test_a_real_safetensors_folder_runs_on_llama_cpp(smollm2: Path, tmp_path: Path) -> None:
    folder = safetensors_folder(smollm2, tmp_path / "folder", "F16")
    written = converted(folder, tmp_path / "out.gguf")
    tokens = Tokenizer.from_file(folder).encode(CORPUS["prose"] + CORPUS["python"])
    found, expected = llama_logits(written, tokens), torch_logits(folder, tokens)
    assert np.abs(found - expected).max() < 0.1  # they deviate by 8
    ours, theirs = LlamaVocabulary(written), LlamaVocabulary(smollm2)
    for text in [*CORPUS.values(), *random_texts(300, ["<|im_end|>"])]:
        for special in (False, True):
            assert ours.encode(text, special=special) == theirs.encode(text, special=special)
    ours.close()
    theirs.close()


def test_a_tokenizer_larger_than_the_embedding_is_a_user_error(tmp_path: Path) -> None:
    folder = safetensors_folder(tiny_gguf(tmp_path / "a.gguf"), tmp_path / "b")
    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    more = {"id": open_source(folder).tensors["token_embd.weight"].rows, "content": "<more>"}
    description["added_tokens"].append(description["added_tokens"][-1] | more)
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(UserError, match="do not belong together"):
        write_gguf(open_source(folder), tmp_path / "c.gguf")
    assert not (tmp_path / "c.gguf").exists()


def test_a_folder_without_tokenizer_is_a_user_error(tmp_path: Path) -> None:
    folder = safetensors_folder(tiny_gguf(tmp_path / "a.gguf"), tmp_path / "b")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        write_gguf(open_source(folder), tmp_path / "c.gguf")


@pytest.mark.parametrize("kind", ["Q4_K_M", "q8_0"])
def test_quantizing(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="pip install .[llama]")
    source = tiny_gguf(tmp_path / "a.gguf", "qwen3", "F16")
    seen: list[tuple[str, int, int]] = []
    first = converted(
        source, tmp_path / "b.gguf", quantize=kind, progress=lambda *a: seen.append(a)
    )
    second = converted(source, tmp_path / "c.gguf", quantize=kind)
    assert first.read_bytes() == second.read_bytes()
    assert [what for what, _, _ in seen] == sorted((w for w, _, _ in seen), reverse=True)
    assert seen[-1] == ("quantizing", len(GGUFFile(source).tensors), len(GGUFFile(source).tensors))
    types = {info.type for info in GGUFFile(first).tensors.values()}
    assert types <= {"F32", kind.upper()} | (
        {"Q4_K", "Q5_K", "Q6_K"} if kind == "Q4_K_M" else set()
    )
    assert len(types) > 1
    found, expected = llama_logits(first), llama_logits(source)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > (0.9 if kind == "Q4_K_M" else 0.999)


def test_quantizing_what_llama_cpp_refuses_is_a_user_error(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="pip install .[llama]")
    source = changed(tiny_gguf(tmp_path / "a.gguf"), {"general.architecture": "ignore_notice-of"})
    with pytest.raises(UserError, match="ignore_notice-of") as error:
        write_gguf(source, tmp_path / "b.gguf", quantize="Q4_0")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_quantizing_without_llama_cpp_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(to_gguf, "find_spec", lambda name: None if name == "llama_cpp" else found)
    source = open_source(tiny_gguf(tmp_path / "a.gguf"))
    with pytest.raises(UserError, match=r"edgespec\[llama\]"):
        write_gguf(source, tmp_path / "b.gguf", quantize="Q4_0")


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    source = open_source(tiny_gguf(tmp_path / "a.gguf"))
    with pytest.raises(KeyboardInterrupt):
        write_gguf(source, tmp_path / "b.gguf", interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_an_interrupt_stops_llama_cpp_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp", reason="pip install .[llama]")
    children: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def started(*args: Any, **options: Any) -> subprocess.Popen[str]:
        children.append(popen(*args, **options))
        return children[-1]

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "quantizing":
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", started)
    large = tiny_gguf(tmp_path / "a.gguf", "llama", "F16", layers=1, hidden=1024, feed_forward=4096)
    with pytest.raises(KeyboardInterrupt):
        write_gguf(open_source(large), tmp_path / "b.gguf", interrupt, quantize="Q2_K")
    [child] = children
    assert child.returncode  # not that of one that was done
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_an_error_of_the_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = open_source(tiny_gguf(tmp_path / "a.gguf"))
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(UserError, match="No space left"):
        write_gguf(source, tmp_path / "b.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_what_does_not_fit_on_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(tiny_gguf(tmp_path / "a.gguf"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 64 << 20))
    with pytest.raises(UserError, match="64 MiB are free"):
        write_gguf(source, tmp_path / "b.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_what_can_be_known_is_refused_before_any_work(tmp_path: Path) -> None:
    plain = open_source(tiny_gguf(tmp_path / "a.gguf"))
    quantized = open_source(tiny_gguf(tmp_path / "q.gguf", quant="Q4_0"))
    infos = {name: replace(info, type="U4_32") for name, info in plain.tensors.items()}
    odd = Changed(plain, plain.metadata, infos)
    (tmp_path / "there.gguf").write_bytes(b"mine")
    out = tmp_path / "out.gguf"
    for source, path, quantize, expected in (
        (plain, tmp_path / "there.gguf", None, "exists"),
        (plain, tmp_path / "no" / "out.gguf", None, "no folder"),
        (odd, out, None, "--format onnx"),
        (quantized, out, "Q4_K_M", "full-precision"),
        (plain, out, "Q9", "Q4_K_M"),
    ):
        with pytest.raises(UserError, match=expected) as error:
            write_gguf(source, path, quantize=quantize)
        assert "\n" not in str(error.value)
    assert (tmp_path / "there.gguf").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 3
