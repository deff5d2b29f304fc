"""A build is whole or not there: interrupted, by two processes at once, without room or permission."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edgespec.errors import UserError
from edgespec.export import build_onnx, onnx_folder
from edgespec.export.architectures import read_config
from edgespec.export.graph import Graph
from edgespec.export.nbits_decoder import NBitsDecoder
from edgespec.models.gguf import GGUFFile
from edgespec.models.store import sha256_of
from edgespec.progress import silent
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.tiny import tiny_gguf


class Usage(NamedTuple):
    """The result of ``shutil.disk_usage``."""

    free: int


FILES = ["edgespec.json", "model.onnx", "model.onnx.data"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_gguf(tmp_path / "a.gguf", quant="Q4_1")


def left_in(folder: Path) -> list[str]:
    """What is there besides locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_built_folder_holds_a_whole_model(source: Path, tmp_path: Path) -> None:
    folder = build_onnx(source, tmp_path / "out" / "model")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert left_in(tmp_path / "out") == ["model"]
    manifest = json.loads((folder / "edgespec.json").read_text())
    assert {name: (folder / name).stat().st_size for name in manifest["files"]} == manifest["files"]
    runtime = OnnxRuntime(folder, exact=False)
    assert (runtime.info.name, runtime.info.architecture, runtime.info.layers) == ("a", "llama", 2)
    assert runtime.info.vocab_size == GGUFFile(source).tensors["token_embd.weight"].rows
    runtime.close()


def test_builds_of_earlier_versions_are_deleted(source: Path, tmp_path: Path) -> None:
    sha256 = sha256_of(source)
    folder = onnx_folder(source, sha256, tmp_path / "out", packed=False)
    stem = folder.name.rstrip("0123456789")
    kept = [f"{stem.replace('-onnx', '-kernels')}1.1", stem.replace(sha256[:16], "0" * 16) + "1"]
    for name in (f"{stem}1", *kept, "model2"):
        (folder.parent / name).mkdir(parents=True)
    build_onnx(source, folder)
    assert left_in(folder.parent) == sorted([folder.name, *kept, "model2"])


def test_it_is_built_once(source: Path, tmp_path: Path) -> None:
    folder = build_onnx(source, tmp_path / "model")
    times = [(folder / name).stat().st_mtime_ns for name in FILES]
    calls: list[str] = []
    assert build_onnx(source, folder, lambda what, done, total: calls.append(what)) == folder
    assert [(folder / name).stat().st_mtime_ns for name in FILES] == times
    assert calls == []


def test_the_folder_is_named_after_contents_and_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / ("x" * 100 + ".gguf")
    first, second = (onnx_folder(source, digest * 64, tmp_path, packed=False) for digest in "01")
    assert first.parent == tmp_path
    assert first != second
    assert len(first.name) < 100
    assert onnx_folder(source, "0" * 64, tmp_path, packed=True) != first
    monkeypatch.setattr("edgespec.export.BUILDER_VERSION", 999)
    assert onnx_folder(source, "0" * 64, tmp_path, packed=False) != first


@pytest.mark.parametrize("overrides", [{"tied": True}, {"tied": False}, {"architecture": "qwen2"}])
def test_progress_only_grows_and_ends_at_the_total(
    tmp_path: Path, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgespec.export.nbits_decoder._PART_WEIGHTS", 1 << 14
    )  # several parts a tensor
    seen: list[tuple[int, int]] = []
    source = tiny_gguf(tmp_path / "a.gguf", **overrides)
    build_onnx(source, tmp_path / "model", lambda what, done, total: seen.append((done, total)))
    assert len(seen) > 50
    assert seen == sorted(seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1]
    assert seen[-2][0] > 0.98 * seen[-1][1]  # not a jump at the end


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_interrupted_build_leaves_nothing(
    source: Path, tmp_path: Path, share: float, error: type[BaseException]
) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done >= share * total:
            raise error

    with pytest.raises(error):
        build_onnx(source, tmp_path / "out" / "model", interrupt)
    assert left_in(tmp_path / "out") == []
    build_onnx(source, tmp_path / "out" / "model")  # and does not hinder the next


def test_what_a_killed_build_left_is_cleared(source: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out" / ".model.partial"
    (partial / "sub").mkdir(parents=True)
    (partial / "model.onnx").write_bytes(b"half")
    folder = build_onnx(source, tmp_path / "out" / "model")
    assert left_in(tmp_path / "out") == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == FILES


BUILD = """
import sys, time
from pathlib import Path
from edgespec.export import build_onnx

def progress(what, done, total):
    print(what, flush=True)
    time.sleep(0.01)

source, folder = map(Path, sys.argv[1:])
build_onnx(source, folder, progress)
assert (folder / "edgespec.json").is_file()
"""


def test_two_processes_build_it_once(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "model"
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", BUILD, str(source), str(folder)]
    both = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    built = ["building" in out.splitlines() for out, _ in outputs]
    assert sorted(built) == [False, True]
    waited = outputs[built.index(False)][0]
    assert waited in ("", f"waiting for another process to build {folder.name}\n")
    assert left_in(tmp_path / "out") == ["model"]
    OnnxRuntime(folder, exact=False).close()


def test_without_room_it_does_not_begin(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 20))
    with pytest.raises(UserError, match=r"needs \d+ MiB .* 1.0 MiB is free.*EDGESPEC_HOME"):
        build_onnx(source, tmp_path / "out" / "model")
    assert left_in(tmp_path / "out") == []


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("quant", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_the_room_asked_for_is_about_what_is_taken(
    tmp_path: Path, architecture: str, quant: str
) -> None:
    # Large enough for what is lost between its constants to be little.
    larger = {"hidden": 512, "heads": 8, "feed_forward": 2048}
    gguf = GGUFFile(tiny_gguf(tmp_path / "a.gguf", architecture, quant, **larger))
    with Graph(tmp_path) as graph:
        estimate = NBitsDecoder(gguf, read_config(gguf.metadata), graph, silent).estimated_bytes()
    folder = build_onnx(gguf.path, tmp_path / "model")
    taken = (folder / "model.onnx.data").stat().st_size
    assert 0.95 * taken < estimate < 1.15 * taken


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("needs Linux, to mount a small disk")
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_is_an_error_of_one_line(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_gguf(tmp_path / "a.gguf")
    with pytest.raises(UserError, match="is free; make room"):
        build_onnx(source, small_disk / "model")
    # Now as if it had been filled by somebody else after the check.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40))
    with pytest.raises(UserError, match=r"No space left.*EDGESPEC_HOME") as caught:
        build_onnx(source, small_disk / "model")
    assert "\n" not in str(caught.value)
    assert left_in(small_disk) == []


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(
    source: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file" / "model", tmp_path / "file" / "deeper" / "model"):
        with pytest.raises(UserError, match=r"cannot build .*EDGESPEC_HOME") as caught:
            build_onnx(source, folder)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_file_in_the_models_place_is_an_error_of_one_line(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").write_text("in the way")
    with pytest.raises(UserError, match="cannot build"):
        build_onnx(source, tmp_path / "out" / "model")
    assert left_in(tmp_path / "out") == ["model"]


def test_a_read_only_folder_is_an_error_of_one_line(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write into read-only folders")
    with pytest.raises(UserError, match=r"cannot build .*EDGESPEC_HOME"):
        build_onnx(source, folder / "model")
    assert left_in(folder) == []


def test_a_read_only_disk_is_an_error_of_one_line(source: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"Read-only file system.*EDGESPEC_HOME") as caught:
        build_onnx(source, small_disk / "model")
    assert "\n" not in str(caught.value)
    assert left_in(small_disk) == []
