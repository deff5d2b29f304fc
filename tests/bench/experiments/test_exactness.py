from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.bench.experiments import exactness
from edgespec.engine import Engine
from tests.bench.conftest import Run


def test_first_difference() -> None:
    assert exactness.first_difference([1, 2, 3], [1, 2, 3]) is None
    assert exactness.first_difference([1, 2, 3], [1, 4, 3]) == 1


def test_the_program_finds_smollm2_exact(run: Run, smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    result = run(
        exactness.main, smollm2, "--prompts", 2, "--max-tokens", 12, "--context", 512, "--json", out
    )
    assert "| 2 of 2 | 0 | 0 | yes | 24 |" in result.stdout
    assert json.loads(out.read_text())["figures"]["identical"] == 2


def test_the_program_finds_a_difference(
    run: Run, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = exactness.answers

    def wrong_when_drafted(engine: Engine, *rest: Any) -> list[exactness.Answer]:
        found = answers(engine, *rest)
        if engine.scheduler.name != "none":
            tokens = found[0].tokens
            found[0] = replace(found[0], tokens=[*tokens[:3], tokens[3] + 1, *tokens[4:]])
        return found

    monkeypatch.setattr(exactness, "answers", wrong_when_drafted)
    arguments = ("--prompts", 1, "--max-tokens", 6, "--context", 512)
    result = run(exactness.main, smollm2, *arguments, code=1)
    assert "| 0 of 1 |" in result.stdout
    assert "| 1 | 3 |" in result.stdout


def test_the_gap_is_that_of_the_logits_which_chose_the_token(
    smollm2: Path, bench_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_HOME", str(bench_home))
    with Engine.open(smollm2, draft="none", context=256) as engine:
        session = engine.session()
        list(session.complete("The capital of France is", max_tokens=4))
        context = [*session.prompt_ids, *session.token_ids]
        target = engine.target
        gap = exactness.logit_gap(target, context[:-1], context[-1], context[0])
        logits = target.forward([context[-2]])[-1]
        assert gap > 0
        assert int(logits.argmax()) == context[-1]
        assert np.isclose(gap, logits.max() - logits[context[0]])
