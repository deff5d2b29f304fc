"""``edgespec index``: the index itself is tested in tests/drafting."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from edgespec.drafting.stores.datastore import Datastore, index_paths, indexes_dir
from edgespec.units import format_size
from tests.cli.conftest import COMMAND, Run, error_of, spawn
from tests.cli.terminal import Terminal


@pytest.fixture
def folder(tmp_path: Path, home: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_text("hello world " * 1000, encoding="utf-8")
    (folder / ".hidden").write_text("hello", encoding="utf-8")
    return folder


def test_index_list_and_remove(folder: Path, tiny_model: Path, run: Run) -> None:
    built = run("index", folder, "--model", tiny_model)
    assert built.stdout.startswith("Indexed notes: 1 file with 12 KiB of text, ")
    assert "[skipped 1 hidden]\n" in built.stderr
    header, row = run("index", "--list").stdout.splitlines()
    assert header.split()[0] == "NAME"
    assert row.split() == [
        *("notes", str(tiny_model), "1", "12", "KiB"),
        *format_size(index_paths()[0].stat().st_size).split(),
        *(Datastore(index_paths()[0]).facts.created[:10], str(folder)),
    ]
    assert run("index", "--remove", "notes").stdout == "Removed notes.\n"
    assert index_paths() == []
    empty = run("index", "--list")
    assert (empty.stdout, empty.exit_code) == ("", 0)
    assert empty.stderr == "[there are no indexes; `edgespec index PATH…` makes one]\n"


def test_names(folder: Path, tiny_model: Path, run: Run) -> None:
    run("index", folder, "--model", tiny_model, "--name", "mine")
    assert Datastore(index_paths()[0]).facts.name == "mine"
    assert "cannot be called 'a b'" in error_of(
        run("index", folder, "--model", tiny_model, "--name", "a b")
    )


def test_errors(folder: Path, tiny_model: Path, run: Run) -> None:
    assert "there is no file or folder nowhere" in error_of(
        run("index", "nowhere", "--model", tiny_model)
    )
    assert "there is no file or folder nowhere" in error_of(run("index", "nowhere", "--model", "x"))
    assert "no model is named 'x'" in error_of(run("index", folder, "--model", "x"))
    assert "there is no index 'x'; `edgespec index --list`" in error_of(
        run("index", "--remove", "x")
    )
    for arguments in ([], [folder, "--list"], ["--list", "--remove", "x"]):
        assert "Give files or folders to index" in error_of(run("index", *arguments))
    for option in ("--model", "--name"):
        assert "for files or folders" in error_of(run("index", "--list", option, "x"))


def test_list_tells_of_a_damaged_index(folder: Path, tiny_model: Path, run: Run) -> None:
    for name in ("one", "two"):
        run("index", folder, "--model", tiny_model, "--name", name)
    [path, _] = index_paths()
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    listed = run("index", "--list")
    assert [row.split()[0] for row in listed.stdout.splitlines()] == ["NAME", "two"]
    assert f"[{path} is not used: it is damaged; `edgespec index` builds it again]" in listed.stderr


def test_two_processes_build_the_same(folder: Path, tiny_model: Path) -> None:
    builds = [spawn("index", folder, "--model", tiny_model) for _ in range(2)]
    for process in builds:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    [path] = index_paths()
    Datastore(path).check()
    assert not list(indexes_dir().glob("*.partial"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal and signals")
def test_ctrl_c_leaves_nothing(folder: Path, tiny_model: Path) -> None:
    for i in range(400):
        (folder / f"{i}").write_text(f"{i} " * 5000, encoding="utf-8")
    command = [*COMMAND, "index", str(folder), "--model", str(tiny_model)]
    with Terminal(command) as terminal:
        terminal.until("reading and tokenizing .*%.*:")  # a bar with the remaining time
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ends(60) == 130
    assert [path for path in indexes_dir().iterdir() if path.suffix != ".lock"] == []


def test_an_absent_path_is_one_line(run: Run, tmp_path: Path) -> None:
    error = error_of(run("index", tmp_path / "absent"))
    assert "there is no file or folder" in error
    assert error.endswith("; check the path")
