"""The reader reads what gguf-py writes, and says in one line what is wrong with anything else."""

from __future__ import annotations

import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from tests.tiny import tiny_gguf

U32, STRING, ARRAY, U64 = 4, 8, 9, 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole small file."""
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    return tiny_gguf(
        path, quant="Q4_0", layers=1, hidden=64, heads=2, feed_forward=64, head_dim=32
    ).read_bytes()


def refused(path: Path, data: bytes, message: str | None = None) -> None:
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        GGUFFile(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's description; ``shape`` in the file's order, the row's length first."""
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file_of(
    *entries: bytes,
    tensors: tuple[bytes, ...] = (),
    body: bytes = b"",
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    tensor_count, entry_count = counts or (len(tensors), len(entries))
    head = magic + struct.pack("<IQQ", version, tensor_count, entry_count)
    head += b"".join(entries) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + body


def test_it_reads_what_gguf_py_reads(tmp_path: Path) -> None:
    path = tiny_gguf(
        tmp_path / "a.gguf", "qwen2", "Q4_K", types={"attn_v": "Q6_K", "attn_q": "F16"}
    )
    found, expected = GGUFFile(path), gguf.GGUFReader(path)
    assert found.architecture == "qwen2"
    assert len(found.tensors) == len(expected.tensors) > 20
    for tensor in expected.tensors:
        info = found.tensors[tensor.name]
        assert info.type == tensor.tensor_type.name
        assert info.shape == tuple(tensor.shape.tolist())[::-1]
        stored = found.tensor(tensor.name)
        assert stored.shape == (info.rows, info.row_bytes)
        assert stored.tobytes() == tensor.data.tobytes()
    for key, field in expected.fields.items():
        if not key.startswith("GGUF."):
            assert found.metadata[key] == field.contents(), key


def test_all_kinds_of_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 255)
    writer.add_int8("a.i8", -128)
    writer.add_uint16("a.u16", 65535)
    writer.add_int16("a.i16", -32768)
    writer.add_uint32("a.u32", 2**32 - 1)
    writer.add_int32("a.i32", -(2**31))
    writer.add_uint64("a.u64", 2**64 - 1)
    writer.add_int64("a.i64", -(2**63))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 1e300)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "Grüße, 世界")
    writer.add_array("a.floats", [0.25, -2.0])
    writer.add_array("a.strings", ["", "x", "é"])
    writer.add_array("a.bools", [True, False])
    writer.add_array("a.nested", [[1, 2], [3]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert GGUFFile(path).metadata == {
        "general.architecture": "llama",
        "a.u8": 255,
        "a.i8": -128,
        "a.u16": 65535,
        "a.i16": -32768,
        "a.u32": 2**32 - 1,
        "a.i32": -(2**31),
        "a.u64": 2**64 - 1,
        "a.i64": -(2**63),
        "a.f32": 0.5,
        "a.f64": 1e300,
        "a.bool": True,
        "a.string": "Grüße, 世界",
        "a.floats": [0.25, -2.0],
        "a.strings": ["", "x", "é"],
        "a.bools": [True, False],
        "a.nested": [[1, 2], [3]],
    }


def test_bytes_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(file_of(entry("a", STRING, string(b"\xff\xfeA"))))
    found = GGUFFile(path).metadata["a"]
    assert found.encode("utf-8", "surrogateescape") == b"\xff\xfeA"


def test_tensors_are_mapped_and_read_only(tmp_path: Path) -> None:
    file = GGUFFile(tiny_gguf(tmp_path / "a.gguf"))
    with pytest.raises(ValueError, match="read-only"):
        file.tensor("output.weight")[0, 0] = 1


def test_a_missing_tensor_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tensor blk\.9\.x"):
        GGUFFile(tiny_gguf(tmp_path / "a.gguf")).tensor("blk.9.x")


def test_alignment_moves_the_data(tmp_path: Path) -> None:
    head = file_of(entry("general.alignment", U32, struct.pack("<I", 256)), tensors=(tensor("t"),))
    data = head + b"\0" * (-len(head) % 256) + np.arange(4, dtype=np.float32).tobytes()
    (tmp_path / "a.gguf").write_bytes(data)
    stored = GGUFFile(tmp_path / "a.gguf").tensor("t")
    assert stored.view(np.float32).tolist() == [[0, 1, 2, 3]]


def test_a_file_cut_anywhere_is_refused(tmp_path: Path, data: bytes) -> None:
    lengths = {*range(400), *range(400, len(data), 211), *range(len(data) - 40, len(data))}
    for length in sorted(lengths):
        refused(tmp_path / "a.gguf", data[:length])
    (tmp_path / "a.gguf").write_bytes(data)
    GGUFFile(tmp_path / "a.gguf")


HUGE = 2**63
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty; download or copy it again"),
    "wrong magic": (file_of(magic=b"GGML"), "does not begin with GGUF"),
    "other magic": (file_of(magic=b"PK\3\4"), "does not begin with GGUF"),
    "old version": (file_of(version=1), "version 1"),
    "new version": (file_of(version=4), "version 4"),
    "big endian": (file_of(version=3 << 24), "version"),
    "absurd tensors": (file_of(counts=(2**64 - 1, 0)), "claims"),
    "too many tensors": (file_of(counts=(99_999, 0)), "ends early"),
    "absurd metadata": (file_of(counts=(0, 2**64 - 1)), "claims"),
    "too much metadata": (file_of(counts=(0, 99_999)), "ends early"),
    "absurd key": (file_of(struct.pack("<Q", 2**64 - 1) + b"key"), "ends early"),
    "absurd string": (file_of(entry("a", STRING, struct.pack("<Q", HUGE))), "ends early"),
    "long string": (file_of(entry("a", STRING, struct.pack("<Q", 1 << 30))), "ends early"),
    "absurd array": (file_of(entry("a", ARRAY, struct.pack("<IQ", U32, HUGE))), "ends early"),
    "absurd strings": (
        file_of(entry("a", ARRAY, struct.pack("<IQ", STRING, HUGE))),
        "claims an array",
    ),
    "absurd arrays": (
        file_of(entry("a", ARRAY, struct.pack("<IQ", ARRAY, HUGE))),
        "claims an array",
    ),
    "deep arrays": (
        file_of(entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 5000)),
        "unknown type",
    ),
    "unknown value": (file_of(entry("a", 13, b"\0" * 16)), "unknown type 13"),
    "unknown item": (
        file_of(entry("a", ARRAY, struct.pack("<IQ", 99, 1)), body=b"\0" * 64),
        "unknown type 99",
    ),
    "no alignment": (file_of(entry("general.alignment", U32, b"\0" * 4)), "alignment 0"),
    "odd alignment": (file_of(entry("general.alignment", U32, b"\3\0\0\0")), "alignment 3"),
    "alignment is text": (
        file_of(entry("general.alignment", STRING, string("32"))),
        "alignment '32'",
    ),
    "absurd alignment": (
        file_of(
            entry("general.alignment", U64, struct.pack("<Q", HUGE)),
            tensors=(tensor("t"),),
            body=b"\0" * 16,
        ),
        "truncated",
    ),
    "same name twice": (
        file_of(tensors=(tensor("t"), tensor("t")), body=b"\0" * 64),
        "'t' is there twice",
    ),
    "offset past the end": (
        file_of(tensors=(tensor("t", offset=64),), body=b"\0" * 16),
        "truncated",
    ),
    "absurd offset": (
        file_of(tensors=(tensor("t", offset=2**64 - 32),), body=b"\0" * 64),
        "truncated",
    ),
    "one byte too few": (file_of(tensors=(tensor("t"),), body=b"\0" * 15), "truncated"),
    "absurd shape": (
        file_of(tensors=(tensor("t", (2**62, 2**62, 2**62)),), body=b"\0" * 64),
        "truncated",
    ),
    "product that wraps": (file_of(tensors=(tensor("t", (2**32, 2**32)),)), "truncated"),
    "no rows": (file_of(tensors=(tensor("t", (4, 0)),)), "shape"),
    "no dimensions": (file_of(tensors=(tensor("t", ()),)), "0 dimensions"),
    "many dimensions": (file_of(tensors=(tensor("t", (1,) * 5),)), "5 dimensions"),
    "absurd dimensions": (
        file_of(tensors=(string("t") + struct.pack("<I", 2**32 - 1),), body=b"\0" * 64),
        "dimensions",
    ),
    "unknown type": (file_of(tensors=(tensor("t", kind=77),), body=b"\0" * 64), "unknown type 77"),
    "part of a block": (
        file_of(tensors=(tensor("t", (33,), kind=2),), body=b"\0" * 64),
        "Q4_0 has the shape",
    ),
    "name of two lines": (
        file_of(tensors=(tensor("a\nb\x1b[2J" * 99, kind=77),), body=b"\0" * 64),
        "unknown type",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_at_once(tmp_path: Path, what: str) -> None:
    data, message = BROKEN[what]
    started = time.perf_counter()
    tracemalloc.start()
    refused(tmp_path / "a.gguf", data, message)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20
    assert time.perf_counter() - started < 2


def test_a_broken_name_does_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(BROKEN["name of two lines"][0])
    with pytest.raises(UserError) as caught:
        GGUFFile(tmp_path / "a.gguf")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_that_is_not_there_is_a_user_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            GGUFFile(path)


def head_of(data: bytes, folder: Path) -> int:
    """Where the tensors begin."""
    (folder / "whole.gguf").write_bytes(data)
    return min(info.offset for info in GGUFFile(folder / "whole.gguf").tensors.values())


def mutate_bytes(random: np.random.Generator, data: bytearray) -> None:
    for _ in range(int(random.integers(1, 9))):
        data[int(random.integers(len(data)))] = int(random.integers(256))


def mutate_numbers(random: np.random.Generator, data: bytearray) -> None:
    extremes = (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(data))
    start = int(random.integers(len(data) - 8))
    data[start : start + 8] = struct.pack("<Q", extremes[int(random.integers(len(extremes)))])


def mutate_order(random: np.random.Generator, data: bytearray) -> None:
    start, end = sorted(random.integers(0, len(data), 2).tolist())
    del data[start : min(end, start + 64)]


@pytest.mark.parametrize("mutate", [mutate_bytes, mutate_numbers, mutate_order])
def test_random_damage_is_read_or_refused(
    tmp_path: Path, data: bytes, mutate: Callable[[np.random.Generator, bytearray], None]
) -> None:
    """Nothing but ``UserError``, soon, and in little memory. Damage is done to the description."""
    random, head = np.random.default_rng(7), head_of(data, tmp_path)
    path, refusals = tmp_path / "a.gguf", []
    tracemalloc.start()
    started = time.perf_counter()
    for _ in range(250):
        damaged = bytearray(data[:head])
        mutate(random, damaged)
        path.write_bytes(bytes(damaged) + data[head:])
        try:
            file = GGUFFile(path)
            for name in file.tensors:
                file.tensor(name)
        except UserError as error:
            refusals.append(str(error))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(refusals) > 20
    assert not any("\n" in line for line in refusals)
    assert peak < 16 << 20
    assert time.perf_counter() - started < 60


def test_reading_costs_memory_in_proportion_to_the_file(tmp_path: Path) -> None:
    """Arrays of the smallest items, and of the smallest strings and arrays."""
    size = 1 << 17
    arrays: dict[str, Any] = {
        "bytes": struct.pack("<IQ", 0, size) + b"\1" * size,
        "strings": struct.pack("<IQ", STRING, size // 8) + b"\0" * size,
        "arrays": struct.pack("<IQ", ARRAY, size // 12) + struct.pack("<IQ", 0, 0) * (size // 12),
    }
    for array in arrays.values():
        (tmp_path / "a.gguf").write_bytes(file_of(entry("a", ARRAY, array)))
        tracemalloc.start()
        file = GGUFFile(tmp_path / "a.gguf")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(file.metadata["a"]) >= size // 12
        assert peak < 16 * size
        assert sys.getsizeof(file.metadata["a"]) < 16 * size
