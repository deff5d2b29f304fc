"""A file that is no whole model is named for what it is; only damage is called damage."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from edgespec.errors import UserError
from edgespec.export.sources import open_source
from edgespec.loading import built_folder, candidates
from edgespec.local_model import find
from edgespec.models.gguf import GGUFFile
from edgespec.models.gguf_kinds import shard_paths
from edgespec.progress import silent
from tests.gguf_copy import changed_copy, header_only
from tests.tiny import tiny_gguf


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


NO_MODELS = {
    "adapter": ("llama", "adapter", "adapter .LoRA.*llama-export-lora"),
    "projector": ("clip", "mmproj", "projector .*mmproj"),
    "projector by its architecture": ("clip", None, "projector .*mmproj"),
    "importance matrix": ("llama", "imatrix", "importance matrix"),
    "control vector": ("controlvector", None, "control vector"),
    "encoder": ("nomic-bert", None, "encoder .*embeddings"),
    "pictures": ("flux", None, "pictures"),
    "draft head": ("eagle3", None, "draft head"),
}


@pytest.mark.parametrize("what", NO_MODELS)
def test_what_is_no_language_model_is_named(tmp_path: Path, what: str) -> None:
    architecture, kind, message = NO_MODELS[what]
    path = header_only(tmp_path / "a.gguf", architecture, kind)
    for opened in (lambda: find(str(path), silent), lambda: open_source(path)):
        with pytest.raises(UserError, match=message) as caught:
            opened()
        assert "a.gguf" in str(caught.value)
        assert "give" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "download it again" not in str(caught.value)


def test_files_without_a_type_are_known_by_their_keys(tmp_path: Path, base: Path) -> None:
    for key, message in (("adapter.lora.alpha", "adapter"), ("imatrix.chunk_count", "importance")):
        path = changed_copy(base, tmp_path / f"{message}.gguf", keys={key: (16, "UINT32")})
        with pytest.raises(UserError, match=message):
            find(str(path), silent)


def test_a_vocabulary_alone(tmp_path: Path, base: Path) -> None:
    path = changed_copy(base, tmp_path / "a.gguf", tensors=lambda name, data: None)
    with pytest.raises(UserError, match="vocabulary without a model"):
        find(str(path), silent)


STARTS = {
    "GGML": (b"tjgg\3\0\0\0", "before August 2023"),
    "zip": (b"PK\3\4 archive", "zip archive or a PyTorch file"),
    "gzip": (b"\x1f\x8b\x08", "gzip"),
    "safetensors": (struct.pack("<Q", 64) + b'{"__metadata__":{}}', "safetensors"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "web page": (b"\n<!doctype html><html>", "web page"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian.*gguf-convert-endian"),
    "the oldest version": (b"GGUF" + struct.pack("<III", 1, 0, 0) + b"\0" * 8, "version 1"),
    "a newer version": (b"GGUF" + struct.pack("<IQQ", 7, 0, 0), "version 7.*upgrade edgespec"),
}


@pytest.mark.parametrize("what", STARTS)
def test_other_files_are_named(tmp_path: Path, what: str) -> None:
    start, message = STARTS[what]
    (tmp_path / "a.gguf").write_bytes(start)
    with pytest.raises(UserError, match=message) as caught:
        GGUFFile(tmp_path / "a.gguf")
    assert "download it again" not in str(caught.value) or what == "web page"
    assert "\n" not in str(caught.value)


def split(base: Path, folder: Path, tensors: int = 5) -> list[Path]:
    folder.mkdir()
    changed_copy(base, folder / "whole.gguf", shards=tensors)
    return sorted(folder.iterdir())


def test_a_split_model_is_read_as_one(tmp_path: Path, base: Path) -> None:
    files = split(base, tmp_path / "split")
    assert len(files) > 3
    found, whole = GGUFFile(files[0]), GGUFFile(base)
    assert found.tensors.keys() == whole.tensors.keys()
    assert found.metadata["tokenizer.ggml.tokens"] == whole.metadata["tokenizer.ggml.tokens"]
    for name in whole.tensors:
        np.testing.assert_array_equal(found.tensor(name), whole.tensor(name))
    assert shard_paths(files[0]) == files
    assert shard_paths(base) == [base]


def test_any_other_part_names_the_first(tmp_path: Path, base: Path) -> None:
    first, *others = split(base, tmp_path / "split")
    for file in others:
        with pytest.raises(UserError, match=f"give {first.name}") as caught:
            find(str(file), silent)
        assert file.name in str(caught.value)


def test_a_part_that_is_absent_is_named(tmp_path: Path, base: Path) -> None:
    files = split(base, tmp_path / "split")
    files[2].unlink()
    with pytest.raises(UserError, match=f"{files[2].name} is not beside it"):
        find(str(files[0]), silent)


def test_renamed_parts(tmp_path: Path, base: Path) -> None:
    files = split(base, tmp_path / "split")
    renamed = files[0].rename(tmp_path / "model.gguf")
    with pytest.raises(UserError, match=r"must end in -00001-of-0000\d\.gguf"):
        find(str(renamed), silent)


def test_a_part_of_another_model_has_tensors_twice(tmp_path: Path, base: Path) -> None:
    files = split(base, tmp_path / "split")
    files[1].write_bytes(files[2].read_bytes())
    with pytest.raises(UserError, match="is in two files"):
        GGUFFile(files[0])


def test_another_part_builds_another_model(tmp_path: Path, base: Path) -> None:
    files = split(base, tmp_path / "split")
    before = built_folder(files[0], silent, packed=False)
    data = bytearray(files[-1].read_bytes())
    data[-1] ^= 1
    files[-1].write_bytes(data)
    assert built_folder(files[0], silent, packed=False) != before


def retyped(base: Path, path: Path, name: str, number: int) -> Path:
    data, full = bytearray(base.read_bytes()), name.encode()
    start = data.index(full) + len(full) + 4 + 2 * 8
    data[start : start + 4] = struct.pack("<I", number)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("number", "kind", "runtimes"),
    [
        (40, "NVFP4", ["llama-cpp"]),
        (55, "type 55", ["llama-cpp"]),
        (139, "type 139", ["ik-llama-cpp"]),
    ],
)
def test_a_format_that_only_a_runtime_knows(
    tmp_path: Path, base: Path, number: int, kind: str, runtimes: list[str]
) -> None:
    path = retyped(base, tmp_path / "a.gguf", "blk.1.ffn_down.weight", number)
    file = GGUFFile(path)
    assert file.tensors["blk.1.ffn_down.weight"].type == kind
    assert file.tensors["blk.0.ffn_down.weight"].type == "F32"
    model = find(str(path), silent)
    assert kind in model.refusals["onnx"]
    installed = [spec.name for spec in candidates(model) if not spec.why_not_here()]
    assert set(installed) - {"onnx"} <= {*runtimes, "ik-llama-cpp"}
    assert ("llama-cpp" in model.refusals) == ("llama-cpp" not in runtimes)


def test_a_format_that_llama_cpp_dropped(tmp_path: Path, base: Path) -> None:
    model = find(str(retyped(base, tmp_path / "a.gguf", "blk.1.ffn_down.weight", 31)), silent)
    assert "Q4_0_4_4" in model.refusals["llama-cpp"]
    assert "dropped" in model.refusals["llama-cpp"]
