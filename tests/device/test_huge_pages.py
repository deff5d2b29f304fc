"""Pages of 2 MiB are asked for once, and only where that is wanted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgespec.device import huge_pages

EXECUTED = list[tuple[str, list[str]]]


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EXECUTED:
    """What the process would have become, on a system that leaves the choice to programs."""
    modes, calls = tmp_path / "enabled", EXECUTED()
    modes.write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "_MODES", modes)
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    monkeypatch.setattr(sys, "argv", ["edgespec", "chat"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "utf8", "edgespec", "chat"])
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    return calls


def test_a_process_restarts_once_with_its_own_arguments(executed: EXECUTED) -> None:
    assert not huge_pages.in_use()
    huge_pages.restart()
    huge_pages.restart()
    assert executed == [(sys.executable, [sys.executable, "-X", "utf8", "edgespec", "chat"])]
    assert huge_pages.in_use()


def test_other_settings_are_kept(executed: EXECUTED, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    huge_pages.restart()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    assert len(executed) == 1


@pytest.mark.parametrize("decided", ["0", "1", "2"])
def test_what_the_user_decided_stands(
    executed: EXECUTED, monkeypatch: pytest.MonkeyPatch, decided: str
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", f"glibc.malloc.hugetlb={decided}")
    huge_pages.restart()
    assert not executed


@pytest.mark.parametrize("limit", [["--memory-budget", "1GiB"], ["--memory-budget=1GiB"]])
def test_a_memory_budget_is_kept_by_small_pages(
    executed: EXECUTED, monkeypatch: pytest.MonkeyPatch, limit: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["edgespec", "chat", *limit])
    huge_pages.restart()
    assert not executed


@pytest.mark.parametrize("modes", ["[always] madvise never", "always madvise [never]", "", None])
def test_other_systems_are_left_alone(executed: EXECUTED, modes: str | None) -> None:
    if modes is None:
        huge_pages._MODES.unlink()
    else:
        huge_pages._MODES.write_text(modes)
    huge_pages.restart()
    assert not executed
    assert huge_pages.in_use() == (modes == "[always] madvise never")


def test_the_command_answers_after_its_restart() -> None:
    """On a system where there is one; elsewhere it answers at once."""
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-m", "edgespec", "doctor"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    wanted = "not in use" if huge_pages._mode() in (None, "", "never") else "in use"
    assert f"huge pages         {wanted}\n" in done.stdout
