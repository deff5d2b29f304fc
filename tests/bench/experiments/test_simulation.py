from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec.bench.experiments import simulation
from edgespec.bench.workloads import PROMPTS
from edgespec.simulation.simulate import Prediction
from tests.bench.conftest import Run

EXAMPLE = Path(__file__).parents[3] / "docs" / "profile-example.json"


def test_the_program(run: Run, smollm2: Path, tmp_path: Path) -> None:
    profile = json.loads(EXAMPLE.read_text())
    name = smollm2.stem
    profile["model"]["name"] = name
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    out = tmp_path / "figures.json"
    files = ("--device-profile", tmp_path / "profile.json", "--prompts", PROMPTS / "edits.jsonl")
    run(simulation.main, smollm2, *files, "--draft", smollm2, "--max-tokens", 8, "--json", out)
    rows = json.loads(out.read_text())["figures"]
    assert [row[0] for row in rows] == ["none", "suffix", "hierarchy", name]
    none, suffix, hierarchy, model = rows
    assert none[4] == "1.00"
    # an edit repeats the prompt, so what is looked up is accepted
    assert float(suffix[4]) > 1.2
    assert float(suffix[2]) > float(none[2])
    # the draft model is the target itself: its passes take as long, so drafting with it does not pay
    assert float(model[2]) <= float(hierarchy[2])
    assert float(none[2]) == pytest.approx(1 / profile["curve"]["seconds"][0][0], rel=0.2)


def test_a_row_has_the_speed_that_was_measured_with_the_same_drafter() -> None:
    rates = {"none": 20.0, "suffix": 50.0, "tiny": 30.0}
    predictions = [
        Prediction("cpu", drafter, rate, rate / 20, rate / 20, 0.5, None)
        for drafter, rate in rates.items()
    ]
    assert simulation.rows_of(
        predictions, {"none": 25.0, "suffix": 40.0, "hierarchy+model": 15.0}
    ) == [
        ["none", "25.0", "20.0", "0.800", "1.00"],
        ["suffix", "40.0", "50.0", "1.250", "2.50"],
        ["tiny", "15.0", "30.0", "2.000", "1.50"],
    ]


def test_a_profile_that_cannot_be_read_is_reported_before_anything_is_measured(
    run: Run, smollm2: Path
) -> None:
    told = run(simulation.main, smollm2, "--device-profile", "nowhere.json", code=2).stderr
    assert told == "Error: cannot read nowhere.json: No such file or directory; check the path\n"
