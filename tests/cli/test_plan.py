from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgespec.device import machine
from edgespec.export.dimensions import dimensions_of
from edgespec.models.gguf import GGUFFile
from tests.cli.conftest import Run, error_of, spawn


def _sizes(table: str) -> dict[str, int]:
    rows = re.findall(r"^(\S.*?) +([\d,]+) bytes$", table, re.M)
    return {name: int(size.replace(",", "")) for name, size in rows}


def test_the_table_adds_up(with_model: Path, run: Run) -> None:
    result = run("plan", "--runtime", "onnx", "--memory-budget", "2GB")
    assert result.exit_code == 0
    sizes = _sizes(result.stdout)
    total, reserve, budget, least = (
        sizes.pop(name) for name in ("total", "reserve", "budget", "smallest budget")
    )
    assert {"Python and libraries", "tokenizer", "weights", "key-value cache"} < set(sizes)
    assert sum(sizes.values()) == total
    assert total + reserve <= budget == 2 * 10**9
    assert least < total
    assert "Given up" not in result.stdout


def test_what_is_given_up_is_said(with_model: Path, run: Run) -> None:
    least = json.loads(run("plan", "--runtime", "onnx", "--json").stdout)["smallest_budget_bytes"]
    result = run("plan", "--runtime", "onnx", "--memory-budget", least)
    left = re.search(r"^context +(\d+) tokens$", result.stdout, re.M)
    assert left
    lost = f"{4096 - int(left[1])} of 4096 tokens of context (saves "
    assert lost in result.stdout.partition("Given up:\n")[2]


def test_json_is_one_object_of_the_same(with_model: Path, run: Run, smollm2: Path) -> None:
    found = json.loads(run("plan", "--runtime", "onnx", "--context", "512", "--json").stdout)
    assert (found["runtime"], found["context"], found["max_rows"]) == ("onnx", 512, 16)
    assert (found["cache_type"], found["draft_model"]) == ("float32", False)
    assert sum(found["memory"].values()) == found["total_bytes"]
    assert found["memory"]["weights"] == dimensions_of(GGUFFile(smollm2), 49152, {}).packed_bytes
    assert (found["budget_bytes"], found["given_up"]) == (None, [])


def test_a_draft_model_is_part_of_the_plan(with_model: Path, run: Run, smollm2: Path) -> None:
    options = ("plan", "--runtime", "onnx", "--draft", smollm2, "--json")
    whole = json.loads(run(*options).stdout)
    assert whole["draft_model"]
    assert whole["memory"]["draft_weights"] == whole["memory"]["weights"]
    without = json.loads(run(*options, "--memory-budget", whole["total_bytes"] * 2 // 3).stdout)
    assert not without["draft_model"]
    assert "the draft model" in " ".join(without["given_up"])


def test_no_model_is_loaded(with_model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("edgespec.engine.load", load)
    assert run("plan").exit_code == 0
    with pytest.raises(AssertionError, match="loaded"):  # what answering does
        run("generate", "-p", "Hi")


def test_an_impossible_budget_names_the_smallest(with_model: Path, run: Run) -> None:
    error = error_of(run("plan", "--runtime", "onnx", "--memory-budget", "50MiB"))
    named = re.search(r"smallest --memory-budget that it runs in is (\d+) MiB", error)
    assert named
    assert run("plan", "--runtime", "onnx", "--memory-budget", f"{named[1]}MiB").exit_code == 0
    less = f"{int(named[1]) - 1}MiB"
    assert run("plan", "--runtime", "onnx", "--memory-budget", less).exit_code == 2
    generated = run("generate", "-p", "Hi", "--runtime", "onnx", "--memory-budget", "50MiB")
    assert error_of(generated) == error


@pytest.mark.parametrize("size", ["lots", "-5", "0", "1.2.3GB"])
def test_what_is_no_size_is_one_line(with_model: Path, run: Run, size: str) -> None:
    assert "is no amount" in (error := error_of(run("plan", "--memory-budget", size))) or (
        "holds nothing" in error
    )


def test_a_budget_is_for_the_processors_memory(with_model: Path, run: Run) -> None:
    error = error_of(run("plan", "--memory-budget", "1GB", "--device", "npu"))
    assert "use --device cpu with it" in error


def test_a_budget_is_kept(with_model: Path) -> None:
    least = spawn("plan", "--runtime", "onnx", "--json").communicate()[0]
    budget = json.loads(least)["smallest_budget_bytes"]
    options = ("-p", "Tell me a story.", "--max-tokens", "100", "--json", "--runtime", "onnx")
    process = spawn("generate", *options, "--memory-budget", budget)
    told, notices = process.communicate()
    assert json.loads(told)["stats"]["peak_memory_bytes"] <= budget
    assert b"of 4096 tokens of context" in notices


@pytest.mark.parametrize("available", [300 << 20, 1 << 20, 0])
def test_short_memory_is_said(
    available: int, with_model: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (1 << 34, available))
    result = run("generate", "-p", "Hi", "--max-tokens", "1", "--runtime", "onnx")
    assert result.exit_code == 0
    [line] = [line for line in result.stderr.splitlines() if "are available now" in line]
    if available > 200 << 20:
        assert "--memory-budget 300MiB would make it fit" in line
    else:
        assert "a smaller model" in line


def test_memory_that_is_not_known_is_no_cause_for_alarm(
    with_model: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> tuple[int, int]:
        raise KeyError("MemAvailable")

    monkeypatch.setattr(machine, "memory", unknown)
    result = run("generate", "-p", "Hi", "--max-tokens", "1", "--runtime", "onnx")
    assert result.exit_code == 0
    assert "available" not in result.stderr
