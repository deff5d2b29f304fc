"""Checkpoints are read as they were written; damaged and hostile ones are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgespec.errors import UserError
from edgespec.models import safetensors
from edgespec.models.safetensors import Checkpoint
from tests import hf_folder

F32 = np.arange(6, dtype=np.float32).reshape(2, 3)
BF16 = np.arange(4, dtype=np.uint16).reshape(1, 4)
NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_safetensors(path: Path, tensors: dict[str, tuple[str, npt.NDArray[Any]]]) -> None:
    raw = {name: (dtype, a.shape, a.tobytes()) for name, (dtype, a) in tensors.items()}
    hf_folder.write_safetensors(path, raw)


def single(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    write_safetensors(folder / "model.safetensors", {"a": ("F32", F32), "b.c": ("BF16", BF16)})
    return folder


def sharded(folder: Path, index: bool = True) -> Path:
    single(folder)
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / NAMES[0], {"a": ("F32", F32)})
    write_safetensors(folder / NAMES[1], {"b.c": ("BF16", BF16)})
    if index:
        set_index(folder, {"a": NAMES[0], "b.c": NAMES[1]})
    return folder


def set_index(folder: Path, weight_map: Any) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


@pytest.mark.parametrize("make", [single, sharded, lambda folder: sharded(folder, index=False)])
def test_reads_what_was_written(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    checkpoint = Checkpoint(make(tmp_path / "model"))
    assert checkpoint.config == {"model_type": "llama"}
    assert {(t.name, t.dtype, t.shape) for t in checkpoint.tensors.values()} == {
        ("a", "F32", (2, 3)),
        ("b.c", "BF16", (1, 4)),
    }
    np.testing.assert_array_equal(checkpoint.bytes("a").view(np.float32), F32)
    np.testing.assert_array_equal(checkpoint.bytes("b.c").view(np.uint16), BF16)
    assert not checkpoint.bytes("a").flags.writeable


def test_scalars_empty_tensors_and_any_single_file_name(tmp_path: Path) -> None:
    folder = single(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    tensors = {"s": ("I64", np.array(7)), "e": ("F16", np.empty((3, 0), np.float16))}
    write_safetensors(folder / "gptq_model-4bit.safetensors", tensors)
    checkpoint = Checkpoint(folder)
    assert checkpoint.bytes("s").view(np.int64).tolist() == [[7]]
    assert checkpoint.bytes("e").shape == (3, 0)


def test_reads_what_the_reference_implementation_writes(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.numpy")
    folder = single(tmp_path / "model")
    reference.save_file({"x": F32}, folder / "model.safetensors", metadata={"format": "np"})
    np.testing.assert_array_equal(Checkpoint(folder).bytes("x").view(np.float32), F32)


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrite the header of ``model.safetensors``."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(data[8:end])
        changed = change(entries)
        text = changed if isinstance(changed, bytes) else json.dumps(entries).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])

    return damage


def entry(**values: Any) -> Callable[[Path], None]:
    return header(lambda entries: entries["a"].update(values))


def cut(size: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:size])

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "cannot read .*config.json"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "not an object"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "does not parse"),
    "config is deep": (lambda f: (f / "config.json").write_text("[" * 200_000), "does not parse"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "empty": (cut(0), "cannot read"),
    "seven bytes": (cut(7), "ends early"),
    "half a header": (cut(40), "claims a header"),
    "truncated": (cut(-1), "'b.c' ends past"),
    "huge header": (header(lambda _: b"{" + b" " * 99), "does not parse"),
    "header is a list": (header(lambda _: b"[1]"), "not an object"),
    "entry is a number": (header(lambda e: e.update(a=3)), "tensor 'a' is 3"),
    "unknown type": (entry(dtype="Q9"), "'a' has the unknown type Q9"),
    "type is a list": (entry(dtype=["F32"]), "unknown type"),
    "another type": (entry(dtype="F16"), "'a' of type F16 has the shape"),
    "negative": (entry(shape=[-2, -3]), "shape"),
    "not whole": (entry(shape=[2.0, 3]), "shape"),
    "a boolean": (entry(shape=[True, 6]), "shape"),
    "no shape": (entry(shape=None), "shape"),
    "many dimensions": (entry(shape=[1] * 100 + [2, 3]), "shape"),
    "absurd": (entry(shape=[1 << 40], data_offsets=[0, 1 << 42]), "truncated|ends past"),
    "offsets reversed": (entry(data_offsets=[24, 0]), "bytes"),
    "past the end": (entry(data_offsets=[1000, 1024]), "ends past"),
    "overlap": (entry(data_offsets=[4, 28]), "'a' and 'b.c' overlap|'b.c' and 'a' overlap"),
    "into the header": (entry(data_offsets=[-8, 16]), "bytes"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = single(tmp_path / "model")
    make, message = DAMAGE[damage]
    make(folder)
    with pytest.raises(UserError, match=message) as caught:
        Checkpoint(folder)
    assert "\n" not in str(caught.value)


def index(weight_map: Any) -> Callable[[Path], None]:
    return lambda folder: set_index(folder, weight_map)


SHARDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda f: (f / NAMES[1]).unlink(), f"lacks 1 of 2 shards, such as {NAMES[1]}"),
    "out of the folder": (index({"a": "../other/model.safetensors"}), "names the file '../other"),
    "absolute": (index({"a": "/etc/model.safetensors"}), "names the file"),
    "a drive": (index({"a": "C:model.safetensors"}), "names the file"),
    "no name": (index({"a": 3}), "names the file '3'"),
    "no map": (index([]), "no weight_map"),
    "an empty map": (index({}), "no weight_map"),
    "in the wrong shard": (index({"a": NAMES[1], "b.c": NAMES[1]}), "lacks the tensor 'a'"),
    "nowhere": (index({"a": NAMES[0], "b.c": NAMES[1], "d": NAMES[1]}), "lacks the tensor 'd'"),
    "twice": (
        lambda f: write_safetensors(f / NAMES[1], dict.fromkeys(("a", "b.c"), ("F32", F32))),
        "'a' is also in",
    ),
}


@pytest.mark.parametrize("damage", SHARDS)
def test_damaged_shards_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = sharded(tmp_path / "model")
    make, message = SHARDS[damage]
    make(folder)
    with pytest.raises(UserError, match=message) as caught:
        Checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_shards_without_an_index_must_be_whole_too(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", index=False)
    (folder / NAMES[0]).unlink()
    with pytest.raises(UserError, match=f"lacks 1 of 2 shards, such as {NAMES[0]}"):
        Checkpoint(folder)


def test_a_header_larger_than_allowed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = single(tmp_path / "model")
    monkeypatch.setattr(safetensors, "MAX_HEADER", 20)
    with pytest.raises(UserError, match="claims a header"):
        Checkpoint(folder)
