"""What the scheduler chose: ``--explain``, ``/why``, ``--trace`` and ``plan --trace``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgespec.cli.explain import explanation
from edgespec.core.statistics import Statistics
from edgespec.device.profile_files import dumps
from tests.cli.conftest import Run, error_of
from tests.device.test_profile import PROFILE

COUNT = ("generate", "--raw", "-p", "one two three four " * 8, "--max-tokens", 24)


def test_an_explanation_adds_up(with_model: Path, run: Run) -> None:
    result = run(*COUNT, "--explain", "--json")
    stats = json.loads(result.stdout)["stats"]
    lines = result.stderr.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("drafter "))
    blank = lines.index("", start)
    for table in (lines[start + 1 : blank], lines[blank + 2 : -2]):
        rows = [[int(cell) for cell in row.split()[1:4]] for row in table]
        sums = [sum(column) for column in zip(*rows, strict=True)]
        assert sums == [stats["target_passes"], stats["drafted"], stats["accepted"]]
    assert f"{stats['decode_tokens_per_s']:.1f} got" in lines[-1]
    assert max(map(len, lines)) <= 100


def test_why_explains_the_last_answer(with_model: Path, run: Run) -> None:
    result = run("chat", "--max-tokens", 8, input="/why\nSay yes.\n/why\n")
    assert result.exit_code == 0
    assert "No token was decoded" in result.stderr
    assert result.stderr.count("drafter ") == 1
    always = run("chat", "--max-tokens", 4, "--explain", input="Say yes.\nSay no.\n")
    assert always.stderr.count("drafter ") == 2


def test_nothing_decoded_is_explained_too() -> None:
    assert list(explanation(Statistics())) == ["No token was decoded."]


def test_a_trace_predicts_what_was_traced(with_model: Path, run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    answer = json.loads(run(*COUNT, "--trace", trace, "--json").stdout)
    kept = json.loads(trace.read_text("utf-8"))
    assert kept["answer"] == answer["token_ids"]
    assert len(kept["prompt"]) == answer["stats"]["prompt_tokens"]
    profile = tmp_path / "profile.json"
    profile.write_text(dumps(replace(PROFILE, model={**PROFILE.model, "name": kept["model"]})))
    files = ("--device-profile", profile, "--trace", trace)
    found = json.loads(run("plan", *files, "--json").stdout)
    none, suffix, hierarchy = found["predictions"]
    assert (none["drafter"], none["speed_up"], none["block_efficiency"]) == ("none", 1, 1)
    assert (suffix["drafter"], hierarchy["drafter"]) == ("suffix", "hierarchy")
    assert suffix["block_efficiency"] == pytest.approx(answer["stats"]["block_efficiency"], abs=2)
    shown = run("plan", *files).stdout
    assert f"{suffix['tokens_per_s']:.1f}" in shown
    assert "unknown" in shown, "nobody measured the energy"


@pytest.mark.parametrize(
    "prompt", [COUNT[1:], ("-p", "Say yes.", "--max-tokens", 40)], ids=["repeats", "stops"]
)
def test_a_replay_reproduces_every_choice(
    prompt: tuple[str, ...], with_model: Path, run: Run, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    answer = json.loads(run("generate", *prompt, "--trace", trace, "--json").stdout)
    steps = answer["stats"]["target_passes"]
    result = run("plan", "--trace", trace, "--json")
    assert result.stderr == ""
    [replay] = json.loads(result.stdout)["replays"]
    rate = pytest.approx(answer["stats"]["decode_tokens_per_s"])
    assert replay == {
        "trace": str(trace),
        "steps": steps,
        "same": steps,
        "tokens_per_s": rate,
        "block_efficiency": answer["stats"]["block_efficiency"],
    }
    [line] = [x for x in run("plan", "--trace", trace).stdout.splitlines() if "reproduced" in x]
    assert f"{steps} of {steps} choices reproduced" in line
    assert f"{replay['tokens_per_s']:.1f} tokens/s" in line


def test_a_replay_notes_that_drafters_knew_earlier_answers(
    with_model: Path, run: Run, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.json"
    run(*COUNT, "--trace", trace)
    recorded = json.loads(trace.read_text("utf-8"))
    recorded["recording"]["fresh"] = False
    recorded["recording"]["steps"][3]["drafter"] = "another"
    trace.write_text(json.dumps(recorded), "utf-8")
    result = run("plan", "--trace", trace)
    assert "the drafters knew earlier answers: choices may differ" in result.stderr
    assert f"3 of {len(recorded['recording']['steps'])} choices reproduced" in result.stdout


def test_a_trace_is_never_written_over_a_file(with_model: Path, run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    trace.write_text("mine")
    assert "exists" in error_of(run(*COUNT, "--trace", trace))
    assert trace.read_text() == "mine"


def test_plan_refuses_what_does_not_go_together(with_model: Path, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text("{}")
    assert "not a trace" in error_of(run("plan", "--trace", file))
    assert "--device-profile needs --trace" in error_of(run("plan", "--device-profile", file))
    both = ("plan", "--trace", file, "--device-profile", file)
    assert "not a device profile" in error_of(run(*both))
    absent = ("plan", "--trace", file, "--device-profile", tmp_path / "absent")
    assert "cannot read" in error_of(run(*absent))
