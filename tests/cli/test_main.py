"""What holds for every command."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edgespec.cli import main
from edgespec.engine import Engine
from edgespec.models import store
from edgespec.runtimes import specs
from tests.cli.conftest import COMMAND, Run, error_of

HEAVY = ["numpy", "onnxruntime", "onnx", "rich", "tokenizers", "jinja2", "huggingface_hub"]
README = Path(__file__).parents[2] / "README.md"


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def examples(text: str) -> list[list[str]]:
    """The arguments of every edgespec command in a text: lines that run it, pipes cut off."""
    found = []
    for line in re.sub(r"\\\n *", "", text).splitlines():
        match = re.match(r"^ *(?:\$ )?(?:[^`]*\| )?(?:python -m )?edgespec\s+([a-z-].*)$", line)
        if match:
            lexer = shlex.shlex(match[1], posix=True, punctuation_chars="|<>;&")
            lexer.whitespace_split = True
            words = list(lexer)
            end = next((i for i, word in enumerate(words) if set(word) <= set("|<>;&")), None)
            found.append(words[:end])
    return found


def parse(words: list[str]) -> None:
    """Parse a command line without running it; click.UsageError if it is not one."""
    command: click.Command | None = main
    words, name = list(words), "edgespec"
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        command = command.get_command(click.Context(command), name)
        assert command is not None, f"no command {name}"
    if "--help" not in words and "--version" not in words:
        assert command is not None
        command.make_context(name, words)


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_help_is_a_document_whose_examples_parse(path: tuple[str, ...], run: Run) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    found = examples(result.stdout)
    assert any(words[: len(path)] == list(path) for words in found), "no example"
    for words in found:
        parse(words)


def test_examples_are_really_parsed() -> None:
    with pytest.raises(click.UsageError):
        parse(examples("  edgespec generate --no-such-option | cat")[0])
    assert examples("  cat x | edgespec generate - --json > y") == [["generate", "-", "--json"]]


@pytest.mark.skipif(not README.exists(), reason="the README is not part of what is installed")
def test_commands_in_the_readme_parse() -> None:
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", README.read_text("utf-8"), re.M | re.S))
    found = examples(blocks)
    assert found
    for words in found:
        parse(words)


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.stdout.split() == ["edgespec", importlib.metadata.version("edgespec")]


def test_python_dash_m() -> None:
    shown = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("Usage: edgespec [OPTIONS]")
    for name in ("chat", "generate", "models", "doctor"):
        assert re.search(rf"^  {name} ", shown, re.M)


def test_help_loads_nothing_heavy() -> None:
    code = "import sys; from edgespec.cli import main; main(['--help'], standalone_mode=False); "
    code += f"sys.exit(' '.join(sorted(set(sys.modules) & set({HEAVY}))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert "Usage:" in done.stdout


def test_an_unknown_command_is_an_error(run: Run) -> None:
    assert "No such command 'fly'" in error_of(run("fly"))


def test_running_out_of_memory_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Engine, "open", fail)
    assert "out of memory" in error_of(run("generate", tiny_model, "-p", "x"))


def test_a_bug_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "installed", lambda: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        run("models", "list")


def test_a_runtime_that_there_is_not_is_refused_with_the_names_of_those_there_are(run: Run) -> None:
    error = error_of(run("generate", "--runtime", "tpu", "-p", "x"))
    assert "there is no runtime 'tpu'" in error
    assert all(name in error for name in specs())


def test_bench_takes_the_name_of_a_runtime(run: Run) -> None:
    assert "--runtime auto|onnx|llama-cpp|ik-llama-cpp" in run("bench", "run", "--help").stdout
    error = error_of(run("bench", "--runtime", "onxx"))
    assert "there is no runtime 'onxx'; take auto or onnx" in error
