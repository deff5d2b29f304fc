"""``edgespec chat``: piped into, and typed at in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from edgespec.export.pipeline import export
from edgespec.export.recipe import Recipe
from edgespec.models import store
from edgespec.models.gguf import GGUFFile
from tests.cli.conftest import COMMAND, Run, error_of
from tests.cli.terminal import Terminal

posix = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")


def test_lines_from_a_pipe_are_answered_then_it_exits(
    with_model: Path, run: Run, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.json"
    turns = f"My name is Ada.\n\n  \nWhat is my name?\n/save {saved}\n"
    result = run("chat", "--max-tokens", 20, input=turns)
    assert result.exit_code == 0
    messages = json.loads(saved.read_text(encoding="utf-8"))
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    assert messages[0]["content"] == "My name is Ada."
    for message in messages[1::2]:
        assert message["content"] in result.stdout
    assert result.stderr.count("tokens/s") == 2


def test_commands(with_model: Path, run: Run, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = [
        *("/help", "Say yes.", "/stats", "/bogus", "/reset", f"/save {saved}"),
        *(" /slash is what?", "/exit", "Never said."),
    ]
    result = run("chat", "--max-tokens", 4, "--system", "Be kind.", input="\n".join(lines))
    assert result.exit_code == 0
    for command in ("/help", "/stats", "/reset", "/save FILE", "/exit"):
        assert f"\n{command} " in "\n" + result.stdout
    assert "generated_tokens     4\n" in result.stdout
    assert "There is no command /bogus; /help lists them.\n" in result.stderr
    assert json.loads(saved.read_text()) == [{"role": "system", "content": "Be kind."}]
    assert result.stderr.count("tokens/s") == 2, "the turn that begins with a space, not the last"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/save", "name a file: /save FILE"),
        ("/save here.txt", "here.txt exists; name another file"),
        ("/save absent/talk.json", "cannot write "),
        ("/save ~nobody-here/talk.json", "cannot write "),
        ("/save /", "exists; name another file"),
        ("/save a\0b", "cannot write "),
    ],
)
def test_what_cannot_be_saved(
    line: str,
    message: str,
    tiny_model: Path,
    home: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.txt").write_text("mine")
    assert message in run("chat", tiny_model, input=line).stderr.splitlines()[-1]
    assert Path("here.txt").read_text() == "mine"
    assert set(os.listdir()) == {"here.txt", "home"}, "something half-written is left"


def test_no_input_at_all(tiny_model: Path, home: Path, run: Run) -> None:
    result = run("chat", tiny_model, input="")
    assert (result.exit_code, result.stdout) == (0, "")


def test_bytes_that_are_not_utf8(tiny_model: Path, home: Path, run: Run) -> None:
    result = run("chat", tiny_model, "--max-tokens", 3, input=b"caf\xe9\n\xff\xfe\n")
    assert result.exit_code == 0
    assert result.stderr.count("tokens/s") == 2


def test_a_turn_that_does_not_fit_ends_a_pipe_with_an_error(
    tiny_model: Path, home: Path, run: Run
) -> None:
    result = run("chat", tiny_model, "--context", 64, input="x" * 500)
    assert result.exit_code == 2
    assert "the context holds 64" in result.stderr.splitlines()[-1]


def test_a_conversation_that_outgrows_the_context_says_so_and_goes_on(
    tiny_model: Path, home: Path, run: Run
) -> None:
    turns = "tell me more of that\n" * 6
    result = run("chat", tiny_model, "--context", 128, "--max-tokens", 20, input=turns)
    assert result.exit_code == 0
    assert "the conversation outgrew the context of 128 tokens" in result.stderr
    assert result.stderr.count("tokens/s") == 6


def test_a_base_model_is_refused(tiny_model: Path, home: Path, run: Run, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    base.write_bytes(tiny_model.read_bytes().replace(b"tokenizer.chat", b"tokenizer.ch_t"))
    assert "tokenizer.chat_template" not in GGUFFile(base).metadata
    assert "edgespec generate" in error_of(run("chat", base, input="hello"))
    assert run("generate", base, "-p", "hello", "--max-tokens", 2).exit_code == 0


@posix
def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(
    with_model: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.json"
    options = ["--temperature", "1", "--seed", "1", "--max-tokens", "3000"]
    with Terminal([*COMMAND, "chat", *options]) as terminal:
        terminal.until("> $")
        terminal.type("Write a very long story about a lighthouse, with many chapters.\n")
        terminal.until(r"chapters\.\s+(\w+\W+){3}")
        terminal.type("\x03")
        assert "Traceback" not in terminal.until(r"stopped\].*\n.*> $", 10)
        terminal.type("/nonsense\n")
        terminal.until("no command /nonsense")
        terminal.until("> $")
        terminal.type("/save\n")
        terminal.until("Error: name a file")
        terminal.until("> $")
        terminal.type(f"/save {saved}\n")
        terminal.until("saved 2 messages")
        terminal.until("> $")
        terminal.type("And")
        terminal.until("And")
        time.sleep(0.3)  # a signal in the instant before readline waits is seen at the next key
        terminal.type("\x03")  # at the prompt: leave
        assert terminal.ends() == 0
    user, assistant = json.loads(saved.read_text(encoding="utf-8"))
    assert user["content"].startswith("Write a very long story")
    assert assistant["content"].strip()


@posix
def test_ctrl_d_at_the_prompt_leaves_and_history_is_kept(tiny_model: Path, home: Path) -> None:
    with Terminal([*COMMAND, "chat", str(tiny_model), "--max-tokens", "3"]) as terminal:
        terminal.until("/help lists the commands")
        terminal.until("> $")
        terminal.type("/stats\n")
        terminal.until("exact +False|exact +True")
        terminal.until("> $")
        terminal.type("\x1b[A")  # the arrow up
        terminal.until("/stats")
        terminal.type("\n")
        terminal.until("exact")
        terminal.until("> $")
        terminal.type("x" * 3 + "\n")
        terminal.until("tokens/s")
        terminal.until("> $")
        terminal.type("\x04")
        assert terminal.ends() == 0


@posix
def test_a_model_cannot_drive_the_terminal() -> None:
    """Escape sequences in an answer could set the clipboard or hide text."""
    code = r"""
from edgespec.cli.answer import print_answer
from edgespec.cli.progress import ProgressBar
print_answer((piece for piece in ["a\x1b]52;c;eA==\x07b", "\x9b2J|\n", "end"]), ProgressBar())
"""
    with Terminal([sys.executable, "-c", code]) as terminal:
        shown = terminal.until("end")
    assert shown == "a\ufffd]52;c;eA==\ufffdb\ufffd2J|\r\nend"


def test_a_bundle_recommends_how_to_sample(run: Run, with_model: Path, tmp_path: Path) -> None:
    """What the command line leaves open; the options that are given win."""
    folder = tmp_path / "bundle"
    [model] = store.installed()
    export(model.path, folder, Recipe())
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    manifest["sampling"] = {"temperature": 1.5, "top_k": 50}
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")

    def answer(*options: object) -> str:
        result = run("chat", folder, "--max-tokens", 12, *options, input="Tell me a story.\n")
        assert result.exit_code == 0, result.output
        return result.stdout

    greedy = answer("--temperature", 0)
    assert answer("--temperature", 0) == greedy
    assert answer("--seed", 3) == answer("--seed", 3) != greedy
