"""Packed files: made once, mapped, and made again where they are not good."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgespec.errors import UserError
from edgespec.export.quants import dequantize
from edgespec.kernels import PackedFileError, native, open_packed, pack, packed
from edgespec.kernels.native import multiply, pack_matrix
from edgespec.models.gguf import GGUFFile
from tests.kernels.matrices import Matrices, stored

SHAPES = {"a": ("Q4_K", 40, 512), "b": ("Q8_0", 700, 64), "c": ("Q6_K", 16, 256)}


def check(found: packed.Packed, seed: int = 0) -> None:
    assert set(found.matrices) == set(SHAPES)
    for name, shape in SHAPES.items():
        matrix = found.matrices[name]
        assert (matrix.type, matrix.rows, matrix.columns) == shape
        assert np.array_equal(matrix.data, pack_matrix(*shape, stored(*shape, seed)))
        assert not matrix.data.flags.writeable
        assert matrix.data.ctypes.data % 64 == 0


def packed_and_opened(
    source: Matrices, path: Path, names: list[str] | None = None
) -> packed.Packed:
    return open_packed(path, pack(source, path, names))


def test_a_file_holds_the_packed_matrices(tmp_path: Path) -> None:
    path = tmp_path / "model.packed"
    seen: list[tuple[int, int]] = []
    key = pack(
        Matrices(SHAPES), path, progress=lambda what, done, total: seen.append((done, total))
    )
    check(open_packed(path, key))
    check(open_packed(path))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    first = path.read_bytes()
    assert pack(Matrices(SHAPES), path) == key
    assert path.read_bytes() == first


def test_a_matrix_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_PART", 32 * 1024)
    parts: list[str] = []

    def counted(type: str, rows: int, columns: int, raw: native.Bytes) -> native.Bytes:
        parts.append(type)
        return pack_matrix(type, rows, columns, raw)

    monkeypatch.setattr(packed, "pack_matrix", counted)
    check(packed_and_opened(Matrices(SHAPES), tmp_path / "p"))
    assert len(parts) > len(SHAPES)


def test_tensors_that_are_not_multiplied_are_left_out(tmp_path: Path) -> None:
    source = Matrices({**SHAPES, "short": ("Q8_0", 2, 32)})
    source.tensors = {
        **source.tensors,
        "norm": source.tensors["a"].__class__("norm", "F32", (64,), 0, 256),
    }
    assert set(packed_and_opened(source, tmp_path / "p").matrices) == {*SHAPES, "short"}
    assert set(packed_and_opened(source, tmp_path / "p", ["short"]).matrices) == {"short"}


def _cut(data: bytearray) -> bytes:
    return bytes(data[:-1000])


def _grow(data: bytearray) -> bytes:
    return bytes(data + b"more")


def _older(data: bytearray) -> bytes:
    return bytes(data[:8] + struct.pack("<I", native.LAYOUT_VERSION - 1) + data[12:])


def _foreign(data: bytearray) -> bytes:
    return b"GGUF" + bytes(data[4:])


def _table(data: bytearray) -> bytes:
    data[100] ^= 1
    return bytes(data)


def _matrix(data: bytearray) -> bytes:
    data[4096] ^= 1
    return bytes(data)


@pytest.mark.parametrize("damage", [_cut, _grow, _older, _foreign, _table, _matrix, lambda _: b""])
def test_a_damaged_file_is_refused(damage: Callable[[bytearray], bytes], tmp_path: Path) -> None:
    path = tmp_path / "p"
    key = pack(Matrices(SHAPES), path)
    path.write_bytes(damage(bytearray(path.read_bytes())))
    with pytest.raises(PackedFileError):
        open_packed(path, key)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p"
    pack(Matrices(SHAPES, seed=1), path)
    key = pack(Matrices(SHAPES, seed=0), tmp_path / "q")
    with pytest.raises(PackedFileError, match="another model"):
        open_packed(path, key)


@pytest.mark.parametrize(
    "entry",
    [
        {"offset": -4096},
        {"offset": 1},
        {"offset": 1 << 40},
        {"rows": 1 << 60},
        {"bytes": 1 << 70},
        {"type": "Q9"},
        {"columns": None},
    ],
)
def test_entries_are_checked(
    entry: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p"
    encoded = packed._encoded
    monkeypatch.setattr(packed, "_encoded", lambda t: encoded({**t, "b": {**t["b"], **entry}}))
    pack(Matrices(SHAPES), path)
    with pytest.raises(PackedFileError, match="b is damaged"):
        open_packed(path)


def test_no_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(packed, "pack_matrix", none)
    with pytest.raises(UserError, match="out of memory"):
        pack(Matrices(SHAPES), tmp_path / "p")


def test_a_real_model(smollm2: Path, tmp_path: Path) -> None:
    source = GGUFFile(smollm2)
    found = open_packed(tmp_path / "p", pack(source, tmp_path / "p")).matrices
    assert {name for name in found if name.startswith("blk.0.")} == {
        f"blk.0.{name}.weight"
        for name in (
            *(f"attn_{part}" for part in ("q", "k", "v", "output")),
            *(f"ffn_{part}" for part in ("gate", "up", "down")),
        )
    }
    for type in {matrix.type for matrix in found.values()}:
        name, matrix = next(item for item in found.items() if item[1].type == type)
        weights = dequantize(source.tensor(name), type)
        assert weights.shape == (matrix.rows, matrix.columns)
        x = np.random.default_rng(0).standard_normal((3, matrix.columns)).astype(np.float32)
        y = multiply(type, matrix.rows, matrix.columns, matrix.data, x)
        expected = x @ weights.T
        assert np.sqrt(((y - expected) ** 2).mean() / (expected**2).mean()) < 0.01
