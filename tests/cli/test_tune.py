"""``edgespec tune``: on models that are here, for a shorter time than a user's."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from edgespec import kernels, tuning
from edgespec.cli import tune as tune_module
from edgespec.device import profile, profile_files
from edgespec.device.machine import physical_cores
from edgespec.device.profile import Profile
from edgespec.errors import UserError
from edgespec.models import store
from edgespec.progress import Progress, silent
from edgespec.runtimes import get
from tests.cli.conftest import Run, spawn
from tests.tiny import tiny_gguf


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FULL_S", "_DRAFT_S", "_THREADS_S"):
        monkeypatch.setattr(tuning, name, 1.0)


def kept() -> list[Profile]:
    return [profile_files.read_profile(path) for path in sorted(store.profiles_dir().iterdir())]


def test_a_real_model_is_measured_and_kept(with_model: Path, run: Run) -> None:
    result = run("tune", "--runtime", "onnx")
    assert result.exit_code == 0
    path = store.models_dir() / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    found = profile_files.load(profile.key(profile.setup(path, get("onnx"))), pytest.fail)
    assert found is not None
    assert not found.quick
    assert found.exact
    assert found.threads == physical_cores()
    assert set(found.thread_counts) == {1, physical_cores()}
    assert float(found.machine["memory_bytes_per_s"]) > 0
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("Kept in")) <= 80
    like_ours = [p for p in kept() if p.machine["pages"] == found.machine["pages"]]
    shown = {p.threads: p for p in like_ours}[found.best_threads].curve
    rows = re.findall(r"^ *(\d+) +([\d.]+) +([\d.]+) +\d+% +([\d.]+)", result.stdout, re.M)
    assert [int(row[0]) for row in rows] == list(shown.rows)
    for row, seconds in zip(rows, shown.seconds[0], strict=True):
        assert float(row[1]) == pytest.approx(1e3 * seconds, abs=0.051)
        assert float(row[2]) == pytest.approx(seconds / shown.seconds[0][0], abs=0.0051)
        assert float(row[3]) == pytest.approx(1e3 * seconds / int(row[0]), abs=0.051)
    bars = re.findall(r"ms (█*[▏▎▍▌▋▊▉]?)$", result.stdout, re.M)
    slowest = shown.seconds[0].index(max(shown.seconds[0]))
    assert len(bars) == len(shown.rows)
    assert len(bars[slowest]) == max(map(len, bars)) == tune_module._BAR
    fastest = max(like_ours, key=lambda profile: profile.tokens_per_s())
    assert f"Use --runtime onnx --threads {fastest.threads}:" in result.stdout
    assert "GB/s that reading alone gets here" in result.stdout
    assert str(profile_files._path(profile.key(found.setup))) in result.stdout


def test_json(home: Path, tiny_model: Path, run: Run) -> None:
    result = run("tune", tiny_model, "--runtime", "onnx", "--json")
    told = json.loads(result.stdout)
    assert told["use"]["runtime"] == "onnx"
    paths = sorted(Path(found.pop("path")) for found in told["profiles"])
    assert paths == sorted(store.profiles_dir().iterdir())
    for found in told["profiles"]:
        assert profile_files._parse(json.dumps(found)) in kept()
    best = next(p for p in kept() if p.threads == told["use"]["threads"])
    assert told["rows"] == list(best.curve.rows)
    assert told["ms"] == pytest.approx([1e3 * s for s in best.curve.seconds[0]], abs=1e-3)
    assert told["prefill_tokens_per_s"] == best.prefill_tokens_per_s
    assert told["bytes_read"] == best.model["weight_bytes"] > 0
    assert told["isa"] == (kernels.isa() if kernels.library() else None)


def test_options_reach_what_is_measured(home: Path, tiny_model: Path, run: Run) -> None:
    options = ("--threads", 1, "--no-exact", "--device", "cpu", "--provider", "cpu")
    assert run("tune", tiny_model, *options).exit_code == 0
    (found,) = kept()
    assert (found.runtime, found.threads, found.exact, found.device) == ("onnx", 1, False, "cpu")
    assert found.pass_sizes == (tuple(range(1, 17)) if kernels.library() else ())
    assert list(found.thread_counts) == [1]
    without = profile.setup(tiny_model, get("onnx"), threads=1, exact=False)
    assert profile.key(found.setup) == profile.key(without)


def test_auto_measures_every_runtime_and_names_the_faster(
    home: Path, tiny_model: Path, run: Run
) -> None:
    pytest.importorskip("llama_cpp")
    told = json.loads(run("tune", tiny_model, "--threads", 1, "--json").stdout)
    found = kept()
    assert {p.runtime for p in found} - {"ik-llama-cpp"} == {"llama-cpp", "onnx"}
    best = max(found, key=lambda p: p.tokens_per_s())
    assert told["use"] == {"runtime": best.runtime, "threads": 1}


def test_a_runtime_that_fails_does_not_keep_the_others_from_being_measured(
    home: Path, tiny_model: Path, run: Run
) -> None:
    pytest.importorskip("llama_cpp")
    # llama.cpp has no such device, and the graph for ONNX Runtime runs on it
    result = run("tune", tiny_model, "--threads", 1, "--device", "gpu")
    assert "drives no gpu" in result.stderr or "without GPU support" in result.stderr
    assert result.exit_code == (2 if not store.profiles_dir().exists() else 0)


def test_a_draft_is_measured_as_drafts_run(
    home: Path, tiny_model: Path, tmp_path: Path, run: Run
) -> None:
    draft = tiny_gguf(tmp_path / "draft.gguf", seed=1)
    result = run("tune", tiny_model, "--runtime", "onnx", "--draft", draft, "--threads", 1)
    assert result.exit_code == 0
    setup = profile.setup(draft, get("onnx"), exact=False, threads=1)
    found = profile_files.load(profile.key(setup), pytest.fail)
    assert found is not None
    assert set(found.curve.rows) >= {1, 2}
    assert len(kept()) == 2


def test_other_threads_are_measured_where_they_are_faster(
    home: Path, tiny_model: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if physical_cores() < 2:
        pytest.skip("one core")
    monkeypatch.setattr(Profile, "best_threads", property(lambda self: 1))
    told = json.loads(run("tune", tiny_model, "--runtime", "onnx", "--json").stdout)
    assert [p["threads"] for p in told["profiles"]] == [physical_cores(), 1]
    assert len({json.dumps(p["thread_counts"]) for p in told["profiles"]}) == 1


@pytest.mark.parametrize(
    ("cores", "logical", "counts"),
    [
        (1, 1, []),
        (1, 2, [2]),
        (2, 2, [1]),
        (4, 8, [2, 3, 8]),
        (6, 6, [3, 4]),
        (64, 128, [32, 48, 128]),
    ],
)
def test_threads_worth_trying(cores: int, logical: int, counts: list[int]) -> None:
    assert tuning._other_counts(cores, logical) == counts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-model"], "no model is named"),
        (["{model}", "--threads", "100000"], "cannot use 100000 threads"),
        (["{model}", "--device", "tpu"], "tpu"),
        (["{model}", "--runtime", "onnx", "--provider", "none"], "no provider none"),
        (
            ["{model}", "--runtime", "llama-cpp", "--provider", "cpu"],
            "use --runtime onnx, or leave --provider out",
        ),
        (["{model}", "--draft", "no-such-model"], "no model is named"),
    ],
)
def test_what_a_user_can_put_right(
    home: Path, tiny_model: Path, run: Run, arguments: list[str], message: str
) -> None:
    result = run("tune", *(word.format(model=tiny_model) for word in arguments))
    lines = [line for line in result.stderr.splitlines() if not line.startswith("[")]
    assert message in lines[-1]
    assert result.exit_code == 2
    assert not store.profiles_dir().exists()


def test_a_folder_that_takes_no_profile(home: Path, tiny_model: Path, run: Run) -> None:
    home.mkdir()
    (home / "profiles").touch()
    result = run("tune", tiny_model, "--runtime", "onnx", "--threads", 1)
    assert result.exit_code == 0
    assert "cannot keep the profile" in result.stderr
    assert "Kept in" not in result.stdout


def test_a_busy_machine_is_named(
    home: Path, tiny_model: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("tune", tiny_model, "--runtime", "onnx", "--threads", 1)
    monkeypatch.setattr(tune_module, "_NOISY", -1.0)
    assert "the machine was busy" in run(*options).stderr
    monkeypatch.setattr(tune_module, "_NOISY", 1e9)
    assert "the machine was busy" not in run(*options).stderr


def test_bars_without_block_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Plain())
    assert tune_module._bar(1.0) == "#" * tune_module._BAR
    assert tune_module._bar(0.0) == "#"


# -- processes ---------------------------------------------------------------------------------


def test_a_child_reports_and_returns() -> None:
    reports: list[tuple[str, int, int]] = []
    result = tuning.in_child(_pid, 5, progress=lambda *report: reports.append(report))
    assert result[0] == 5
    assert result[1] != os.getpid()
    assert reports == [("working", 1, 2)]


def test_a_child_that_dies_is_one_line() -> None:
    with pytest.raises(UserError, match=r"crashed \(exit code 3\)"):
        tuning.in_child(_die)


def test_a_childs_error_is_ours() -> None:
    with pytest.raises(UserError, match=r"^too bad$"):
        tuning.in_child(_fail, UserError("too bad"))
    with pytest.raises(UserError, match=r"^out of memory"):
        tuning.in_child(_fail, MemoryError())


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupted_child_tidies_up(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuning.in_child(_tidy, tmp_path / "partial", progress=interrupt)
    assert not (tmp_path / "partial").exists()
    assert (tmp_path / "partial.tidied").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_nothing_half_written(with_model: Path) -> None:
    before = sorted(path for path in with_model.rglob("*") if path.is_file())
    process = spawn("tune", "--runtime", "onnx", start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if b"timing passes" in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == b""
    assert b"Traceback" not in stderr
    assert _ends(process.pid)
    assert not any(".partial" in str(path) for path in with_model.rglob("*"))
    profiles = {p for p in with_model.rglob("*") if p.is_file()} - set(before)
    assert not any("profiles" in str(path) for path in profiles)


def test_a_thread_may_start_children() -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(tuning.in_child(_pid, 1)))
    thread.start()
    thread.join()
    assert len(found) == 1


def _ends(group: int) -> bool:
    """Whether nobody is left of a group of processes, or will be in a moment."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def _pid(number: int, progress: Progress = silent) -> tuple[int, int]:
    progress("working", 1, 2)
    return number, os.getpid()


def _die(progress: Progress) -> None:
    os._exit(3)


def _fail(error: Exception, progress: Progress) -> None:
    raise error


def _tidy(path: Path, progress: Progress) -> None:
    path.touch()
    try:
        while True:
            progress("working", 1, 2)
            signal.pause()
    finally:
        path.rename(path.with_suffix(".tidied"))
