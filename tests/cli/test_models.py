"""``edgespec models``: the store itself is tested in tests/models."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgespec.loading import copies
from edgespec.models import store
from edgespec.models.catalogue import load_catalogue
from edgespec.units import format_size
from tests.cli.conftest import Run, error_of

NAME = "smollm2-135m-instruct"
ENTRY = load_catalogue()[NAME]


@pytest.fixture
def fake(home: Path) -> Path:
    """A file in the place of the model's."""
    path = store.models_dir() / NAME / ENTRY.file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    return path


def test_list(fake: Path, run: Run) -> None:
    header, *rows = run("models", "list").stdout.splitlines()
    assert header.split() == ["NAME", "SIZE", "LICENSE", "INSTALLED", "WHAT", "FOR"]
    assert [row.split()[0] for row in rows] == list(load_catalogue())
    column = header.index("INSTALLED")
    assert [row.split()[0] for row in rows if row[column:].startswith("yes")] == [NAME]
    assert "94 MiB" in rows[0]


def test_show_a_model_of_the_catalogue(home: Path, run: Run) -> None:
    shown = run("models", "show", NAME.upper()).stdout
    for fact in (ENTRY.description, ENTRY.license, ENTRY.sha256, *ENTRY.sources, *ENTRY.runtimes):
        assert str(fact) in shown
    assert f"no; `edgespec models pull {NAME}`" in shown


def test_show_where_it_is_installed(fake: Path, run: Run) -> None:
    assert str(fake) in run("models", "show", NAME).stdout


def test_show_a_file(tiny_model: Path, run: Run) -> None:
    shown = run("models", "show", tiny_model).stdout
    assert "tiny llama" in shown
    assert "512 tokens" in shown
    assert str(tiny_model) in shown


def test_what_was_built_is_shown_and_removed(
    tiny_model: Path, run: Run, home: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(tiny_model.read_bytes())
    assert "nothing yet" in run("models", "show", own).stdout
    assert "nothing was built from" in error_of(run("models", "remove", own, "--yes"))
    assert run("generate", own, "--runtime", "onnx", "-p", "a", "--max-tokens", 1).exit_code == 0
    shown = run("models", "show", own).stdout
    [folder] = copies(own)
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert f"{format_size(size)} in {folder}" in shown
    assert run("models", "remove", own, input="n\n").exit_code == 1
    assert folder.exists()
    assert run("models", "remove", own, "--yes").exit_code == 0
    assert not folder.exists()
    assert own.exists()


@pytest.mark.parametrize("command", ["show", "pull", "remove"])
def test_an_unknown_name(command: str, home: Path, run: Run) -> None:
    assert f"did you mean {NAME}?" in error_of(run("models", command, "smollm2-135m"))


def test_pull_what_is_here(fake: Path, run: Run) -> None:
    result = run("models", "pull", NAME)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{fake}\n", "")


def test_pull_without_a_network(home: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = run("models", "pull", "qwen2.5-coder-0.5b-instruct")
    assert result.exit_code == 2
    *progress, error = result.stderr.splitlines()
    assert "Error: cannot pull qwen2.5-coder-0.5b-instruct: " in error
    assert all(line.endswith(" ...") for line in progress)
    assert store.installed() == []


def test_remove_asks(fake: Path, run: Run) -> None:
    refused = run("models", "remove", NAME, input="n\n")
    assert refused.exit_code == 1
    assert fake.exists()
    assert run("models", "remove", NAME, input="y\n").exit_code == 0
    assert not fake.exists()


def test_remove_without_asking(fake: Path, run: Run) -> None:
    assert run("models", "remove", NAME, "--yes").exit_code == 0
    assert not fake.parent.exists()
    assert "is not installed" in error_of(run("models", "remove", NAME, "--yes"))
