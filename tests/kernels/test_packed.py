"""Packed files: made once, mapped, and made again where they are not good."""

from __future__ import annotations

import errno
import multiprocessing
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgespec.errors import UserError
from edgespec.export.quants import dequantize
from edgespec.kernels import PackedFileError, fingerprint, native, open_packed, pack, packed
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


def count_packing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of the matrices that are packed from here on."""
    done: list[str] = []

    def counted(type: str, rows: int, columns: int, raw: native.Bytes) -> native.Bytes:
        done.append(type)
        return pack_matrix(type, rows, columns, raw)

    monkeypatch.setattr(packed, "pack_matrix", counted)
    return done


def test_a_file_is_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = count_packing(monkeypatch)
    path = tmp_path / "model.packed"
    check(pack(Matrices(SHAPES), path))
    check(pack(Matrices(SHAPES), path))
    check(open_packed(path))
    assert len(done) == len(SHAPES)
    assert not list(tmp_path.glob("*.part"))


def test_a_key_in_place_of_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(Matrices(SHAPES), tmp_path / "p", key=bytes(32))
    done = count_packing(monkeypatch)
    pack(Matrices(SHAPES), tmp_path / "p", key=bytes(32))
    assert not done
    pack(Matrices(SHAPES), tmp_path / "p", key=bytes(31) + b"1")
    assert len(done) == len(SHAPES)


def test_a_matrix_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_PART", 32 * 1024)
    done = count_packing(monkeypatch)
    check(pack(Matrices(SHAPES), tmp_path / "p"))
    assert len(done) > len(SHAPES)


def test_tensors_that_are_not_multiplied_are_left_out(tmp_path: Path) -> None:
    source = Matrices({**SHAPES, "short": ("Q8_0", 2, 32)})
    source.tensors = {
        **source.tensors,
        "norm": source.tensors["a"].__class__("norm", "F32", (64,), 0, 256),
    }
    assert set(pack(source, tmp_path / "p").matrices) == {*SHAPES, "short"}
    assert set(pack(source, tmp_path / "p", ["short"]).matrices) == {"short"}


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
def test_a_damaged_file_is_packed_again(
    damage: Callable[[bytearray], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "p"
    whole = Matrices(SHAPES)
    pack(whole, path)
    path.write_bytes(damage(bytearray(path.read_bytes())))
    with pytest.raises(PackedFileError):
        open_packed(path, fingerprint(whole, SHAPES))
    check(pack(whole, path))


def test_a_file_of_another_model_is_packed_again(tmp_path: Path) -> None:
    path = tmp_path / "p"
    pack(Matrices(SHAPES, seed=1), path)
    check(pack(Matrices(SHAPES, seed=0), path))


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
    with pytest.raises(PackedFileError, match="b is damaged"):
        pack(Matrices(SHAPES), path)


def test_a_full_disk_and_no_memory_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def none(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(packed.os, "fsync", full)
        with pytest.raises(UserError, match=r"the disk is full; it takes 0\.00 GB"):
            pack(Matrices(SHAPES), tmp_path / "p")
    with monkeypatch.context() as patch:
        patch.setattr(packed, "pack_matrix", none)
        with pytest.raises(UserError, match="out of memory"):
            pack(Matrices(SHAPES), tmp_path / "p")
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def _pack_in_a_process(path: Path, barrier: object, results: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    pack(Matrices(SHAPES), path)
    results.put(path.stat().st_ino)  # type: ignore[attr-defined]


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (tmp_path / "p", barrier, results)
    processes = [context.Process(target=_pack_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert found[0] == found[1]  # the second took the first one's file
    check(open_packed(tmp_path / "p"))


def test_a_real_model(smollm2: Path, tmp_path: Path) -> None:
    source = GGUFFile(smollm2)
    found = pack(source, tmp_path / "p").matrices
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
