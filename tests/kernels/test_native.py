"""Finding the library, and what is reported where it is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgespec import kernels
from edgespec.errors import UserError
from edgespec.kernels import native

SHOW = """
from edgespec import kernels
print(kernels.library(), kernels.why_not(), kernels.library() and kernels.isa(), sep="|")
"""


def shown(**environment: str) -> list[str]:
    command = [sys.executable, "-c", SHOW]
    found = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip().split("|")


def test_the_environment_chooses_the_instruction_set() -> None:
    for name in kernels.isas():
        assert shown(EDGESPEC_ISA=name) == [str(native.FILE), "None", name]
    assert shown()[2] == kernels.isas()[0]
    library, reason, _ = shown(EDGESPEC_ISA="mmx")
    assert library == "None"
    assert "this machine has" in reason


def test_the_environment_switches_the_kernels_off() -> None:
    assert shown(EDGESPEC_KERNELS="0")[:2] == ["None", "EDGESPEC_KERNELS=0"]


@pytest.mark.parametrize(
    ("content", "note", "reason"),
    [
        (b"not a library", None, "does not load"),
        (None, "cc failed: error", "is missing: cc failed: error"),
        (None, None, "is missing: it was not built"),
    ],
)
def test_without_a_library(
    content: bytes | None,
    note: str | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    monkeypatch.setattr(native, "FILE", tmp_path / native.FILE.name)
    if content:
        native.FILE.write_bytes(content)
    if note:
        (tmp_path / "not_built.txt").write_text(note + "\n")
    native._load.cache_clear()
    try:
        assert kernels.library() is None
        assert reason in (kernels.why_not() or "")
        with pytest.raises(UserError, match="no kernels"):
            kernels.isa()
        with pytest.raises(UserError, match="no kernels"):
            kernels.register(object())
    finally:
        monkeypatch.undo()
        native._load.cache_clear()
    assert kernels.why_not() is None


def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(native, "LAYOUT_VERSION", native.LAYOUT_VERSION + 1)
        native._load.cache_clear()
        reason = kernels.why_not() or ""
    native._load.cache_clear()
    assert "of another version; install the package again" in reason
