"""Runtimes that other packages bring, and runtimes that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgespec import Engine, UserError, open_runtime, runtimes
from edgespec.core.runtime import Runtime
from tests.runtimes.contract import RuntimeContract
from tests.tiny import tiny_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("toy") / "tiny.gguf")


def install(folder: Path, value: str, name: str = "toy") -> Path:
    """What ``pip install`` leaves of a package with an entry point."""
    facts = folder / "edgespec_toy-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: edgespec-toy\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[{runtimes.ENTRY_POINTS}]\n{name} = {value}\n")
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = install(tmp_path_factory.mktemp("site"), "tests.runtimes.toy_runtime:SPEC")
    sys.path.insert(0, str(folder))
    runtimes.specs.cache_clear()
    yield
    sys.path.remove(str(folder))
    runtimes.specs.cache_clear()


@pytest.mark.usefixtures("toy")
class TestToyRuntime(RuntimeContract):
    tolerance = 1e-5

    @pytest.fixture(scope="class")
    def loaded(self, tiny: Path, toy: None) -> Iterator[Runtime]:
        runtime = open_runtime(tiny, "toy", context=64)
        yield runtime
        runtime.close()


@pytest.mark.usefixtures("toy")
def test_an_engine_runs_on_another_packages_runtime(tiny: Path) -> None:
    assert list(runtimes.specs())[-1] == "toy"
    answers = []
    for draft in ("none", "hierarchy"):
        with Engine.open(tiny, runtime="toy", draft=draft, remember=False) as engine:
            found = engine.generate("hello world", chat=False, max_tokens=60)
            answers.append(found.token_ids)
            assert found.statistics.runtime == "toy"
    assert answers[0] == answers[1]
    plan = Engine.plan(tiny, runtime="toy")
    assert plan.run.runtime is runtimes.get("toy")
    with pytest.raises(UserError, match="only the onnx runtime is exact"):
        Engine.open(tiny, runtime="toy", exact=True)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("nowhere:SPEC", "toy"),
        ("tests.runtimes.toy_runtime:ToySpec", "toy"),
        ("tests.runtimes.toy_runtime:SPEC", "other"),
        ("edgespec.runtimes.onnx:SPEC", "onnx"),
    ],
)
def test_an_entry_that_is_no_runtime_is_named(
    value: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, value, name))
    runtimes.specs.cache_clear()
    try:
        with pytest.raises(UserError, match=f"the runtime {name} ") as error:
            runtimes.specs()
        assert "\n" not in str(error.value)
    finally:
        monkeypatch.undo()
        runtimes.specs.cache_clear()


def test_a_name_that_no_runtime_has_is_refused(tiny: Path) -> None:
    """It used to get one runtime's sizes and another's profile."""
    with pytest.raises(UserError, match=r"no runtime 'tpu'; take auto or onnx or llama-cpp"):
        runtimes.get("tpu")
    with pytest.raises(UserError, match="no runtime 'tpu'"):
        Engine.plan(tiny, runtime="tpu")


@pytest.mark.parametrize("missing", runtimes.BUILT_IN)
def test_the_others_run_without_a_runtimes_folder(missing: str, tiny: Path, tmp_path: Path) -> None:
    """As in a distribution that leaves one out."""
    code = f"""
import sys
sys.modules["edgespec.runtimes.{missing}"] = None  # importing it raises ModuleNotFoundError
from edgespec import Engine, UserError, runtimes
names = list(runtimes.specs())
assert len(names) == {len(runtimes.BUILT_IN) - 1} and "{missing.replace("_", "-")}" not in names, names
plan = Engine.plan({str(tiny)!r})
assert plan.run.runtime.name == names[0]
if plan.run.runtime.why_not_here() is None:
    with Engine.open({str(tiny)!r}, remember=False) as engine:
        assert engine.generate("hello", chat=False, max_tokens=4).statistics.runtime == names[0]
"""
    environment = {**os.environ, "EDGESPEC_HOME": str(tmp_path)}  # no profile prefers another
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
