"""``--reasoning`` in ``edgespec generate`` and ``chat``, on a model that writes given pieces."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgespec.models import vocabulary
from edgespec.models.reasoning import Marks
from edgespec.session import Session
from tests.cli.conftest import COMMAND, Run, error_of
from tests.cli.terminal import Terminal

PIECES = ["<th", "ink>\ntwo and", " two\n</t", "hink>", "\n\nIt is", " 4."]
SHOWN = "<think>\ntwo and two\n</think>\n\nIt is 4.\n"


@pytest.fixture
def thinking(tiny_model: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with reasoning whose answers are ``PIECES``."""

    def stream(session: Session, *_: Any) -> Iterator[str]:
        session.token_ids = [min(session._stop)]
        yield from PIECES

    marks = Marks("<think>", "</think>")
    monkeypatch.setattr(vocabulary, "find_marks", lambda *_: marks)
    monkeypatch.setattr(Session, "_stream", stream)
    return tiny_model


@pytest.mark.parametrize(
    ("options", "stdout", "stderr"),
    [
        ((), SHOWN, ""),
        (("--reasoning", "show"), SHOWN, ""),
        (("--reasoning", "hide"), "It is 4.\n", ""),
        (("--reasoning", "separate"), "It is 4.\n", "\ntwo and two\n"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_reasoning_is_shown_hidden_or_on_stderr(
    thinking: Path, run: Run, command: str, options: tuple[str, ...], stdout: str, stderr: str
) -> None:
    few = ("--draft", "none", *options)
    if command == "generate":
        result = run(command, thinking, "-p", "2+2", *few)
    else:
        result = run(command, thinking, *few, input="2+2\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == stdout
    assert "think>" not in result.stderr
    assert ("two and two" in result.stderr) == bool(stderr)
    assert stderr in result.stderr


def test_json_has_the_reasoning_apart(thinking: Path, run: Run) -> None:
    def answer(*options: str) -> Any:
        command = ("generate", thinking, "-p", "2+2", "--json", "--draft", "none")
        result = run(*command, *options)
        assert "two" not in result.stderr
        return json.loads(result.stdout)

    assert answer("--reasoning", "separate")["text"] == "It is 4."
    assert answer("--reasoning", "separate")["reasoning"] == "two and two"
    assert answer("--reasoning", "hide")["text"] == "It is 4."
    assert answer()["text"] == SHOWN.removesuffix("\n")
    assert "reasoning" not in answer() | answer("--reasoning", "hide")


def test_another_value_is_refused(tiny_model: Path, run: Run) -> None:
    assert "'show', 'hide', 'separate'" in error_of(
        run("generate", tiny_model, "-p", "x", "--reasoning", "some")
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal of POSIX")
def test_reasoning_cannot_drive_the_terminal(home: Path) -> None:
    code = r"""
from edgespec.cli.answer import ReasoningPrinter, print_answer
from edgespec.cli.progress import ProgressBar
reasoning = ReasoningPrinter(ProgressBar())
def pieces():
    reasoning("a\x1b]52;c;eA==\x07b")
    yield "end"
print_answer(pieces(), ProgressBar(), reasoning)
"""
    with Terminal([*COMMAND[:1], "-c", code]) as terminal:
        shown = terminal.until("end")
    assert "a\ufffd]52;c;eA==\ufffdb" in shown
    assert shown.endswith("\r\nend")


def test_a_refused_system_prompt_is_noticed(
    tiny_model: Path, home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgespec.engine import ChatTemplate

    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}|{% endfor %}"
    )
    monkeypatch.setattr(
        "edgespec.engine.ChatTemplate", lambda _, tokenizer: ChatTemplate(source, tokenizer)
    )
    command = ("generate", tiny_model, "-p", "Hi", "--max-tokens", 2)
    result = run(*command, "--system", "Be brief.")
    assert result.exit_code == 0, result.output
    assert "takes no system prompt: it is put before your first message" in result.stderr
    assert "system prompt" not in run(*command).stderr
