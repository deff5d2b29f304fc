"""Constants halved and doubled in simulation."""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import fields, replace
from pathlib import Path

import pytest

import edgespec.core
import edgespec.drafting
from edgespec.bench import sensitivity
from edgespec.bench.sensitivity import SIMULATED, changed, scaled
from edgespec.core import scheduler
from edgespec.simulation.trace import Guesses, write_trace
from tests.bench.conftest import Run
from tests.simulation.test_simulate import SONG, profiles

NOT_SIMULATED = {
    "cascade",
    "cross_vocabulary",
    "logit_columns",
    "model",
    "ngram_cache",
    "retrieval",
}


@pytest.mark.parametrize(
    ("name", "value", "halved", "doubled"),
    [
        ("forgetting", 0.98, 0.96, 0.99),
        ("recent", 0.4, 0.0, 0.7),
        ("margin", 1.02, 1.01, 1.04),
        ("states", 4, 2, 8),
        ("states", 1, 1, 2),
        ("mean_prior", 0.8, 0.4, 1.0),
        ("answer_prior", 50.0, 25.0, 100.0),
    ],
)
def test_a_constant_stays_within_its_range(
    name: str, value: float, halved: float, doubled: float
) -> None:
    assert scaled(name, value, 0.5) == pytest.approx(halved)
    assert scaled(name, value, 2.0) == pytest.approx(doubled)
    assert type(scaled(name, value, 2.0)) is type(value)


def test_a_change_ends() -> None:
    before = scheduler.CONSTANTS
    with changed(scheduler, "margin", 9.0):
        assert replace(before, margin=9.0) == scheduler.CONSTANTS
    assert scheduler.CONSTANTS is before


def test_every_module_with_constants_is_simulated_or_said_not_to_be() -> None:
    owners = set()
    for package in (edgespec.core, edgespec.drafting):
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            if hasattr(importlib.import_module(info.name), "CONSTANTS"):
                owners.add(info.name.rpartition(".")[2])
    simulated = {module.__name__.rpartition(".")[2] for module in SIMULATED}
    assert owners == simulated | NOT_SIMULATED
    assert not simulated & NOT_SIMULATED


def test_the_program(run: Run, tmp_path: Path) -> None:
    trace = replace(SONG, drafts={"d": Guesses(SONG.answer, [0.9] * len(SONG.answer))})
    write_trace(trace, tmp_path / "trace.json")
    files = [
        argument
        for path in profiles(tmp_path, "tiny", "d")
        for argument in ("--device-profile", path)
    ]
    out = tmp_path / "figures.json"
    printed = run(
        sensitivity.main, *files, "--trace", tmp_path / "trace.json", "--json", out
    ).stdout
    found = json.loads(out.read_text())
    count = sum(len(fields(module.CONSTANTS)) for module in SIMULATED)
    assert len(found) == 3 * count
    assert {row["drafter"] for row in found} == {"suffix", "recycling", "d"}
    by_name = {(row["constant"], row["drafter"]): row for row in found}
    assert by_name["suffix.states", "d"]["doubled"] == 1, "a draft model has no suffixes"
    assert by_name["stopping.recent", "suffix"]["doubled"] == 1
    # where drafts are often right, less caution at the start gains
    assert by_name["hierarchy.prior_weight", "suffix"]["halved"] != 1
    assert by_name["acceptance_estimator.mean_prior", "d"]["halved"] < 1
    assert "hierarchy.prior_weight" in printed
    assert "Without effect on these traces" in printed


def test_a_profile_of_another_model_is_refused(run: Run, tmp_path: Path) -> None:
    write_trace(SONG, tmp_path / "trace.json")
    [path] = profiles(tmp_path, "other")
    arguments = ("--device-profile", path, "--trace", tmp_path / "trace.json")
    error = run(sensitivity.main, *arguments, code=2).stderr
    assert error == (
        "Error: the traces are of tiny and the profiles of other; "
        "give traces of one model, and its profile\n"
    )
