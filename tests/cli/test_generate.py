"""``edgespec generate`` on the real SmolLM2, and on a tiny model where the words do not matter."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, Run, error_of, spawn

STATS = [
    *("prompt_tokens", "generated_tokens", "ttft_s", "decode_s", "decode_tokens_per_s"),
    *("target_passes", "drafted", "accepted", "block_efficiency", "acceptance_rate", "mbsu"),
    *("peak_memory_bytes", "energy_j", "runtime", "device", "drafter", "acceptance", "exact"),
]
# It goes on saying this for many seconds.
ENDLESS = ("--raw", "-p", "la " * 40, "--max-tokens", 600, "--draft", "none")
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of POSIX")


def test_the_answer_is_on_stdout_and_its_cost_on_stderr(with_model: Path, run: Run) -> None:
    result = run("generate", "-p", "What colour is the sky?", "--max-tokens", 20)
    assert result.exit_code == 0
    assert "blue" in result.stdout
    assert result.stdout.endswith("\n")
    assert "blue" not in result.stderr
    status = result.stderr.splitlines()[-1]
    for figure in ("tokens/s", "block efficiency", "acceptance", "suffix"):
        assert figure in status or (figure == "acceptance" and "no drafts" in status)


def test_one_prompt_by_every_way_has_one_answer(with_model: Path, run: Run, tmp_path: Path) -> None:
    text = "Name a colour.\nÜse one word."
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\n")  # Notepad's
    few = ("--max-tokens", 8, "--json")
    answers = [
        run("generate", "-p", text, *few),
        run("generate", "smollm2-135m-instruct", "--prompt", text, *few, "--draft", "none"),
        run("generate", "-f", file, *few),
        run("generate", "-f", "-", *few, input=text + "\n"),
        run("generate", "-", *few, input=text),
        run("generate", "smollm2-135m-instruct", "-", *few, input=text),
    ]
    assert {answer.exit_code for answer in answers} == {0}
    said = [json.loads(answer.stdout) for answer in answers]
    assert len({answer["stats"]["prompt_tokens"] for answer in said}) == 1
    assert len({answer["text"] for answer in said}) == 1
    assert said[0]["text"].strip()


def test_json_is_one_object_with_the_documented_keys(with_model: Path, run: Run) -> None:
    prompt = ("-p", "Count: one two three one two three one two", "--raw")
    plain = run("generate", *prompt, "--max-tokens", 16)
    result = run("generate", *prompt, "--max-tokens", 16, "--json")
    answer = json.loads(result.stdout)
    assert list(answer) == ["text", "token_ids", "finish_reason", "stats"]
    assert list(answer["stats"]) == STATS
    assert answer["finish_reason"] == "length"
    assert len(answer["token_ids"]) == answer["stats"]["generated_tokens"] == 16
    assert answer["text"].rstrip("\n") == plain.stdout.rstrip("\n")
    assert answer["stats"]["energy_j"] is None
    assert answer["stats"]["runtime"] == "onnx"
    assert answer["stats"]["peak_memory_bytes"] > 50e6
    undrafted = json.loads(
        run("generate", *prompt, "--max-tokens", 16, "--json", "--draft", "none").stdout
    )
    assert undrafted["stats"]["drafter"] == "none"
    if answer["stats"]["exact"]:
        assert undrafted["token_ids"] == answer["token_ids"]


def test_no_tokens_at_all(with_model: Path, run: Run) -> None:
    result = run("generate", "-p", "Hello", "--max-tokens", 0)
    assert (result.exit_code, result.stdout) == (0, "")
    answer = json.loads(run("generate", "-p", "Hello", "--max-tokens", 0, "--json").stdout)
    assert answer["text"] == ""
    assert answer["token_ids"] == []
    assert answer["finish_reason"] == "length"
    assert answer["stats"]["decode_tokens_per_s"] == 0


def test_raw_goes_on_with_the_text_and_chat_answers_it(with_model: Path, run: Run) -> None:
    def tokens(*options: object) -> int:
        shown = run("generate", "-p", "Once upon", "--max-tokens", 1, "--json", *options).stdout
        return int(json.loads(shown)["stats"]["prompt_tokens"])

    raw, chat, told = tokens("--raw"), tokens(), tokens("--system", "Be brief. " * 20)
    assert raw < 6 < chat < told
    assert tokens("--chat") == chat


@pytest.mark.parametrize("way", ["--raw", "--chat"])
def test_an_empty_prompt_is_answered(with_model: Path, run: Run, way: str) -> None:
    result = run("generate", way, "-", "--max-tokens", 3, "--json", input="")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["stats"]["prompt_tokens"] >= 1


def test_a_seed_draws_the_same_words_again(tiny_model: Path, home: Path, run: Run) -> None:
    def draw(seed: int) -> str:
        result = run(
            *("generate", tiny_model, "-p", "hello", "--max-tokens", 20),
            *("--temperature", 1, "--top-k", 40, "--top-p", 0.95, "--min-p", 0.01, "--seed", seed),
        )
        assert result.exit_code == 0, result.stderr
        return result.stdout

    assert draw(1) == draw(1) != draw(2)


def test_a_prompt_longer_than_the_context(with_model: Path, run: Run) -> None:
    result = run("generate", "-p", "word " * 200, "--context", 64)
    assert "the context holds 64" in error_of(result)


def test_a_prompt_of_a_megabyte(with_model: Path, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("The quick brown fox, 1234567, said: “No!”\n" * 24_000, encoding="utf-8")
    assert file.stat().st_size > 1_000_000
    started = time.monotonic()
    error = error_of(run("generate", "-f", file))
    assert "tokens long" in error
    assert time.monotonic() - started < 20


def test_a_prompt_without_an_end_is_refused(
    tiny_model: Path, home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgespec.cli.generate._LONGEST", 1 << 20)
    error = error_of(run("generate", tiny_model, "-", input="y\n" * 600_000))
    assert "standard input holds more than 1 million characters" in error


def test_text_that_is_not_utf8_is_read_as_well_as_it_goes(
    tiny_model: Path, home: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "latin1").write_bytes(b"caf\xe9 cr\xe8me")
    options = ("--max-tokens", 2, "--raw", "--json")
    read = run("generate", tiny_model, "-f", tmp_path / "latin1", *options)
    piped = run("generate", tiny_model, "-", *options, input=b"caf\xe9 cr\xe8me")
    typed = run("generate", tiny_model, "-p", "caf\ufffd cr\ufffdme", *options)
    ids = [json.loads(result.stdout)["token_ids"] for result in (read, piped, typed)]
    assert ids[0] == ids[1] == ids[2] != []


@posix
def test_an_argument_that_is_not_utf8(tiny_model: Path, home: Path) -> None:
    prompt = os.fsdecode(b"caf\xe9")
    process = spawn("generate", tiny_model, "-p", prompt, "--max-tokens", 2)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one prompt: -p TEXT, -f FILE or - for standard input"),
        (["-p", "x", "-f", "x"], "give one prompt"),
        (["-p", "x", "-"], "give one prompt"),
        (["-f", "absent.txt"], "cannot read absent.txt: No such file"),
        (["-f", "."], "cannot read .: "),
        (["-f", "binary"], "binary is not UTF-8 text"),
        (["smollm2-135m", "-p", "x"], "did you mean smollm2-135m-instruct?"),
        (["no-such-model", "-p", "x"], "no model is named 'no-such-model'"),
        (["absent.gguf", "-p", "x"], "there is no file absent.gguf"),
        ([".", "-p", "x"], ". is a folder without bundle.json or config.json"),
        (["magic.gguf", "-p", "x"], "magic.gguf is not a usable GGUF file"),
        (["cut.gguf", "-p", "x"], "cut.gguf is not a usable GGUF file"),
        (["empty.gguf", "-p", "x"], "cannot read empty.gguf"),
        (["tiny.gguf", "-p", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["tiny.gguf", "-p", "x", "--temperature", "nan"], "temperature is nan"),
        (["tiny.gguf", "-p", "x", "--top-p", "1.5"], "top_p is 1.5"),
        (["tiny.gguf", "-p", "x", "--max-tokens", "-1"], "-1 is not in the range x>=0"),
        (["tiny.gguf", "-p", "x", "--threads", "0"], "0 is not in the range x>=1"),
        (["tiny.gguf", "-p", "x", "--runtime", "abacus"], "no runtime 'abacus'; take auto or onnx"),
        (["tiny.gguf", "-p", "x", "--draft", "psychic"], "there is no drafter 'psychic'"),
        (["tiny.gguf", "-p", "x", "--draft", "cut.gguf"], "cut.gguf is not a usable GGUF file"),
        (["tiny.gguf", "-p", "x", "--device", "toaster"], "there is no device 'toaster'"),
        (["tiny.gguf", "-p", "x", "--provider", "Nonesuch"], "no provider Nonesuch"),
        (["tiny.gguf", "-p", "x", "--raw", "--system", "y"], "leave --system or --raw out"),
    ],
    ids=" ".join,
)
def test_what_a_user_can_put_right_is_one_line(
    arguments: list[str],
    message: str,
    home: Path,
    run: Run,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = tiny_model.read_bytes()
    files = {"tiny.gguf": whole, "cut.gguf": whole[:-100], "magic.gguf": b"GGML" + whole[4:]}
    for name, content in {**files, "empty.gguf": b"", "binary": bytes(range(256))}.items():
        Path(name).write_bytes(content)
    error = error_of(run("generate", *arguments))
    assert message in error or (message.endswith(": ") and sys.platform == "win32")
    left = [p for p in home.rglob("*") if ".partial" in p.name] if home.exists() else []
    assert left == [], "something half-written is left"


@posix
def test_it_streams_and_a_closed_stdout_ends_it_quietly(with_model: Path) -> None:
    process = spawn("generate", *ENDLESS)
    assert process.stdout
    assert process.stderr
    assert process.stdout.read(1)
    with pytest.raises(subprocess.TimeoutExpired):  # it did not print only at its end
        process.wait(0.5)
    process.stdout.close()
    errors = process.stderr.read()
    process.wait(timeout=10)
    assert b"Traceback" not in errors
    assert b"rror" not in errors
    process.stderr.close()


@posix
def test_stdout_that_was_never_open(tiny_model: Path, home: Path) -> None:
    script = '"$@" >&- <&-'
    command = [*COMMAND, "generate", str(tiny_model), "-", "--max-tokens", "3"]
    done = subprocess.run(["sh", "-c", script, "sh", *command], stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        b"Error: standard output is closed, where the answer goes; open it, or add > FILE"
    ]


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
@pytest.mark.parametrize("options", [(), ("--json",), ("--explain",)])
def test_a_full_disk_is_one_line(tiny_model: Path, home: Path, options: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        command = [*COMMAND, "generate", str(tiny_model), "-p", "x", "--max-tokens", "3", *options]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == (
        b"Error: cannot write to standard output: No space left on device; make room, or write elsewhere"
    )


@posix
def test_other_commands_too(home: Path) -> None:
    for command in ("models list", "--help", "doctor"):
        script = f"{shlex.join(COMMAND)} {command} >/dev/full"
        done = subprocess.run(["sh", "-c", script], stderr=subprocess.PIPE, timeout=60, check=False)
        assert done.returncode != 0
        assert b"Traceback" not in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


@posix
@pytest.mark.parametrize("pause", [0.0, 0.01, 0.05, 0.2])
def test_a_second_ctrl_c_ends_it_at_once(with_model: Path, pause: float) -> None:
    process = spawn("generate", *ENDLESS)
    assert process.stdout
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    time.sleep(pause)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert b"Aborted" not in errors


@posix
def test_ctrl_c_stops_it(with_model: Path) -> None:
    process = spawn("generate", *ENDLESS)
    assert process.stdout
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert said.endswith(b"\n")
    assert b"Traceback" not in errors


def test_any_text_can_be_printed_on_an_old_console(tiny_model: Path, home: Path) -> None:
    """A model of random weights says random bytes."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    random = ("--temperature", 1, "--seed", 1)
    process = spawn("generate", tiny_model, "-p", "x", *random, env=environment)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert b"?" in said
