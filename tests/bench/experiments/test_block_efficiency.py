from __future__ import annotations

import json
from pathlib import Path

from edgespec.bench.experiments import block_efficiency
from edgespec.bench.experiments.block_efficiency import Turn, efficiency_table
from edgespec.bench.experiments.switching import Fixed
from edgespec.core.drafter import Budget
from edgespec.drafting.suffix import Suffix
from tests.bench.conftest import Run


def test_a_fixed_tree_has_its_size_wherever_that_much_can_be_guessed() -> None:
    drafter = Fixed([Suffix()], 3)
    context = [1, 2, 9, 1, 3, 8, 1]
    draft = drafter.propose(context, Budget(8, width=4))
    assert sorted(zip(draft.tokens, draft.parents or (), strict=True))[:2] == [(2, -1), (3, -1)]
    assert (len(draft), draft.confidence) == (3, None)
    assert Fixed([Suffix()], 3).propose(context, Budget(8)).is_chain


def test_efficiency_is_of_all_a_categorys_answers_together() -> None:
    turns = [
        Turn("suffix", 1, "a", tokens=10, passes=10, drafted=0, accepted=0),
        Turn("suffix", 1, "a", tokens=20, passes=5, drafted=30, accepted=15),
        Turn("suffix", 2, "b", tokens=10, passes=5, drafted=10, accepted=5),
        Turn("recycling", 1, "a", tokens=10, passes=4, drafted=12, accepted=6),
        Turn("recycling", 1, "a", tokens=20, passes=10, drafted=20, accepted=10),
        Turn("recycling", 2, "b", tokens=10, passes=10, drafted=0, accepted=0),
    ]
    assert efficiency_table(turns).splitlines()[2:] == [
        "| a | 2 | 30 | 2.00 · 50% | 2.14 · 50% |",
        "| b | 1 | 10 | 2.00 · 50% | 1.00 · – |",
        "| **all** | 3 | 40 | 2.00 · 50% | 1.67 · 50% |",
    ]


def test_the_program(run: Run, smollm2: Path, tmp_path: Path) -> None:
    questions = [
        {"question_id": 1, "category": "a", "turns": ["Count from one to five.", "Once more."]},
        {"question_id": 2, "category": "b", "turns": ["Count from one to five."]},
    ]
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "figures.json"
    prompts.write_text("".join(json.dumps(question) + "\n" for question in questions))
    options = ("--draft", "recycling", "--draft", "suffix", "--guesses", 3, "--max-tokens", 24)
    shown = run(block_efficiency.main, smollm2, "--prompts", prompts, *options, "--json", out)
    turns = [Turn(**turn) for turn in json.loads(out.read_text())["figures"]]
    asked = [(name, number) for name in ("recycling", "suffix") for number in (1, 1, 2)]
    assert [(turn.draft, turn.prompt) for turn in turns] == asked
    for turn in turns:
        assert turn.passes <= turn.tokens <= 24
        assert turn.tokens in (turn.passes + turn.accepted, turn.passes + turn.accepted - 1)
        assert turn.drafted <= 3 * turn.passes
    for first, other in zip(turns[:3], turns[3:], strict=True):
        assert first.tokens == other.tokens  # whatever guesses, the words are the model's
    # asked again, what was said before is guessed; and guesses are as many as they are to be
    again = turns[2]
    assert again.passes < again.tokens
    assert again.drafted > 2 * (again.passes - 2)
    assert efficiency_table(turns) in shown.stdout
