from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgespec import kernels
from edgespec.cli.plan import _NAMES
from edgespec.device import machine
from edgespec.device.planning import show_bytes
from edgespec.export.dimensions import dimensions_of
from edgespec.models.gguf import GGUFFile
from edgespec.units import format_size
from tests.cli.conftest import Run, error_of, spawn


def _sizes(table: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S.*?) +([\d.]+ (?:bytes|[KMG]iB))$", table, re.M))


def test_the_table_shows_the_figures_of_json(with_model: Path, run: Run) -> None:
    options = ("plan", "--runtime", "onnx", "--memory-budget", "2GB")
    result = run(*options)
    assert result.exit_code == 0
    found = json.loads(run(*options, "--json").stdout)
    memory = found["memory"]
    assert sum(memory.values()) == found["total_bytes"]
    assert found["total_bytes"] + found["reserve_bytes"] <= found["budget_bytes"] == 2 * 10**9
    assert found["smallest_budget_bytes"] <= found["total_bytes"] + found["reserve_bytes"]
    sizes = _sizes(result.stdout)
    shown = {name: memory[name] for name in memory if memory[name]}
    assert [sizes.pop(_NAMES[name]) for name in shown] == [format_size(x) for x in shown.values()]
    assert sizes == {
        "total": format_size(found["total_bytes"]),
        "reserve": format_size(found["reserve_bytes"]),
        "budget": "1.86 GiB",
        "smallest budget": show_bytes(found["smallest_budget_bytes"]),
    }
    assert "Given up" not in result.stdout


def test_given_up_context_is_shown(with_model: Path, run: Run) -> None:
    least = json.loads(run("plan", "--runtime", "onnx", "--json").stdout)["smallest_budget_bytes"]
    result = run("plan", "--runtime", "onnx", "--memory-budget", least)
    left = re.search(r"^context +(\d+) tokens$", result.stdout, re.M)
    assert left
    lost = f"{4096 - int(left[1])} of 4096 tokens of context (saves "
    assert lost in result.stdout.partition("Given up:\n")[2]


def test_json_is_one_object_of_the_same(with_model: Path, run: Run, smollm2: Path) -> None:
    found = json.loads(run("plan", "--runtime", "onnx", "--context", "512", "--json").stdout)
    assert (found["runtime"], found["context"], found["max_rows"]) == ("onnx", 512, 16)
    assert (found["cache_type"], found["draft_model"]) == (
        "float16" if kernels.library() else "float32",
        False,
    )
    assert sum(found["memory"].values()) == found["total_bytes"]
    model = dimensions_of(GGUFFile(smollm2), 49152)
    assert found["memory"]["weights"] == (model.kernel_bytes or model.packed_bytes)
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


def test_a_budget_that_is_too_small_names_the_smallest(with_model: Path, run: Run) -> None:
    error = error_of(run("plan", "--runtime", "onnx", "--memory-budget", "50MiB"))
    named = re.search(r"smallest --memory-budget that it runs in is (\d+) MiB", error)
    assert named
    assert run("plan", "--runtime", "onnx", "--memory-budget", f"{named[1]}MiB").exit_code == 0
    less = f"{int(named[1]) - 1}MiB"
    assert run("plan", "--runtime", "onnx", "--memory-budget", less).exit_code == 2
    generated = run("generate", "-p", "Hi", "--runtime", "onnx", "--memory-budget", "50MiB")
    assert error_of(generated) == error


@pytest.mark.parametrize("size", ["lots", "-5", "0", "1.2.3GB"])
def test_an_invalid_size_is_one_line(with_model: Path, run: Run, size: str) -> None:
    assert "is not a size" in (error := error_of(run("plan", "--memory-budget", size))) or (
        "too small" in error
    )


def test_a_budget_is_for_the_processors_memory(with_model: Path, run: Run) -> None:
    error = error_of(run("plan", "--memory-budget", "1GB", "--device", "npu"))
    assert "use --device cpu with it" in error


def test_a_budget_is_kept(with_model: Path) -> None:
    least = spawn("plan", "--runtime", "onnx", "--json").communicate()[0]
    budget = json.loads(least)["smallest_budget_bytes"]
    options = ("-p", "Tell me a story.", "--max-tokens", "100", "--json", "--runtime", "onnx")
    process = spawn("generate", *options, "--memory-budget", budget)
    answer, notices = process.communicate()
    assert json.loads(answer)["stats"]["peak_memory_bytes"] <= budget
    assert b"of 4096 tokens of context" in notices


@pytest.mark.parametrize("available", [300 << 20, 1 << 20, 0])
def test_a_notice_reports_short_memory(
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


def test_unknown_memory_gives_no_notice(
    with_model: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> tuple[int, int]:
        raise KeyError("MemAvailable")

    monkeypatch.setattr(machine, "memory", unknown)
    result = run("generate", "-p", "Hi", "--max-tokens", "1", "--runtime", "onnx")
    assert result.exit_code == 0
    assert "available" not in result.stderr
