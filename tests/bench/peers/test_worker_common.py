"""What the workers that convert a model share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgespec.bench.peers.workers.common import converted, loss, pieces

Put = Callable[[list[int]], None]


def saying(*steps: list[int]) -> Callable[[Put], None]:
    def run(put: Put) -> None:
        for step in steps:
            put(step)

    return run


def test_pieces_come_as_they_are_put_and_end_at_a_stop() -> None:
    assert list(pieces(saying([1], [2, 3], [4]), [])) == [[1], [2, 3], [4]]
    assert list(pieces(saying([1], [2, 3, 4], [5]), [3])) == [[1], [2, 3]]


def test_what_fails_while_it_streams_is_raised() -> None:
    def run(put: Put) -> None:
        put([1])
        raise ValueError("broken")

    stream = pieces(run, [])
    assert next(stream) == [1]
    with pytest.raises(ValueError, match="broken"):
        next(stream)


def test_a_model_is_converted_once_for_its_content_and_how(tmp_path: Path) -> None:
    source, folder = tmp_path / "model.gguf", tmp_path / "models"
    source.write_bytes(b"one")
    made: list[Path] = []

    def make(target: Path) -> None:
        made.append(target)
        (target / "weights").write_bytes(source.read_bytes())

    first = converted(str(source), str(folder), "int4", make)
    assert first.name == "model-7692c3ad3540-int4"  # of SHA-256
    assert converted(str(source), str(folder), "int4", make) == first
    assert made != [first]
    assert len(made) == 1
    source.write_bytes(b"two")
    second = converted(str(source), str(folder), "int4", make)
    assert [(path / "weights").read_bytes() for path in (first, second)] == [b"one", b"two"]
    assert converted(str(source), str(folder), "int8", make) not in (first, second)
    assert len(list(folder.iterdir())) == 3


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"one")

    def make(target: Path) -> None:
        (target / "weights").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        converted(str(source), str(tmp_path / "models"), "int4", make)
    assert not list((tmp_path / "models").iterdir())


def test_loss() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1, 1, 1]], dtype=np.float32))
    assert math.isclose(loss(logits + 7, [0, 2]), -math.log(0.5 * 0.8), rel_tol=1e-6)
