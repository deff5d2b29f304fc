"""The command line as a user has it: in this process where that is enough, else in its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgespec.cli import main
from edgespec.models import store
from tests.tiny import tiny_gguf

COMMAND = [sys.executable, "-m", "edgespec"]
Run = Callable[..., Result]


@pytest.fixture(scope="session")
def model_home(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EDGESPEC_HOME where the default model is installed; built by whoever uses it first."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "models" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    shutil.copyfile(smollm2, folder / smollm2.name)
    return home


@pytest.fixture
def with_model(model_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's EDGESPEC_HOME is ``model_home``."""
    monkeypatch.setenv("EDGESPEC_HOME", str(model_home))
    assert store.installed()
    return model_home


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says nonsense at once."""
    return tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def run() -> Run:
    """Run a command in this process; a bug's exception is the test's."""

    def call(*arguments: object, input: str | bytes | None = None) -> Result:
        return CliRunner().invoke(
            main, [str(a) for a in arguments], input=input, catch_exceptions=False
        )

    return call


def spawn(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command in a process of its own."""
    command = [*COMMAND, *(os.fsencode(str(a)) for a in arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **{**pipes, **options})


def error_of(result: Result) -> str:
    """The one line that an error is."""
    assert result.exit_code == 2, result.output
    # a stage that took long, on a busy machine, says so in a line that ends in dots
    lines = [line for line in result.stderr.splitlines() if not line.endswith(" ...")]
    if lines[0].startswith("Usage:"):  # click's own: two lines of usage, a blank one, the error
        lines = lines[3:]
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    assert result.stdout == ""
    return lines[0]
