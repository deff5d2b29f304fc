"""Files that are replaced as a whole."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from edgespec import files
from edgespec.files import move_into_place, replacing


def test_the_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")
    with replacing(path) as partial:
        assert partial.parent == tmp_path
        partial.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old", encoding="utf-8")

    def interrupted() -> None:
        with replacing(path) as partial:
            partial.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_contents_are_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(files.os, "replace", lambda *p: (calls.append("rename"), replace(*p)))
    (tmp_path / "partial").write_bytes(b"new")
    move_into_place(tmp_path / "partial", tmp_path / "a")
    assert calls == ["fsync", "rename"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_what_a_killed_process_left_is_overwritten(tmp_path: Path) -> None:
    left = tmp_path / "a.part"
    left.write_bytes(b"left" * 100)
    with replacing(tmp_path / "a", partial=left) as partial:
        partial.open("r+b").close()
        assert partial.read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such permissions there")
@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o644)])
def test_permissions(tmp_path: Path, private: bool, mode: int) -> None:
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "a", private=private) as partial:
            partial.write_bytes(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_folder_that_is_not_there_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "absent" / "a"):
        pytest.fail("it began")
