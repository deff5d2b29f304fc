"""One home for all of these tests, so that SmolLM2 is built once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def bench_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench-home")


@pytest.fixture
def run(bench_home: Path) -> Run:
    """Runs a program; fails unless it exits with ``code``."""

    def runner(program: click.Command, *arguments: object, code: int = 0) -> Result:
        environment = {"EDGESPEC_HOME": str(bench_home)}
        result = CliRunner(env=environment).invoke(program, [str(a) for a in arguments])
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    return runner
