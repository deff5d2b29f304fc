from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec.bench.experiments import simulation
from edgespec.bench.workloads import PROMPTS
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
    assert [row[0] for row in rows] == ["none", "suffix", name]
    for _, measured, predicted, ratio, efficiency in rows:
        assert float(predicted) / float(measured) == pytest.approx(float(ratio), rel=0.02)
        assert float(efficiency) >= 1
    assert float(rows[0][2]) == pytest.approx(1 / profile["curve"]["seconds"][0][0], rel=0.2)


def test_a_profile_that_cannot_be_read_is_told_before_anything_is_measured(
    run: Run, smollm2: Path
) -> None:
    told = run(simulation.main, smollm2, "--device-profile", "nowhere.json", code=2).stderr
    assert told == "Error: cannot read nowhere.json: No such file or directory; check the path\n"
