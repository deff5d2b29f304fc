from __future__ import annotations

from pathlib import Path

import click
from click.testing import CliRunner

from edgespec.bench.experiments import common
from edgespec.bench.experiments.__main__ import main
from edgespec.errors import UserError
from tests.bench.conftest import Run


def test_every_experiment_is_a_command_with_help() -> None:
    names = {
        "block-efficiency",
        "exactness",
        "learning",
        "memory",
        "passes",
        "perplexity",
        "rendering",
        "simulation",
        "speed",
    }
    assert main.commands.keys() == names
    for name in names:
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert f"{name} [OPTIONS] MODEL" in result.output
        assert "--json" in result.output


def test_a_table() -> None:
    assert common.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| :-- | --: |\n| 1 | 2 |"


def test_a_users_error_is_one_line(run: Run) -> None:
    @common.experiment
    def failing(model: str, json_path: Path | None) -> None:
        raise UserError(f"there is no {model}")

    assert isinstance(failing, click.Command)
    assert run(failing, "model", code=2).stderr == "Error: there is no model\n"
