from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgespec.bench.experiments import speed
from edgespec.bench.experiments.switching import Fixed, Mode, Switch
from edgespec.core.drafter import Budget
from edgespec.drafting.model_free import MODEL_FREE
from edgespec.drafting.stores import ngram_store
from edgespec.drafting.suffix import Suffix
from edgespec.engine import Engine
from tests.bench.conftest import Run

FAST = Mode("hierarchy", False)
EXACT = Mode("suffix", True)


def answer(
    prompt: int, mode: Mode, seconds: float, tokens: int = 10, said: tuple[int, ...] = (1, 2)
) -> speed.Run:
    accepted = tokens // 2
    figures = (tokens, 5, 2 * accepted, accepted, seconds, 0.1, 0.1, seconds, 0.5)
    return speed.Run(prompt, "a", mode.name, *figures, list(said))


def test_a_speed_up_is_the_median_of_the_rounds() -> None:
    runs = [
        *(answer(1, speed.PLAIN, seconds) for seconds in (4.0, 2.0, 2.0)),
        *(answer(1, FAST, 2.0, tokens) for tokens in (10, 20, 10)),  # 2, 2 and 1 times as fast
        *(answer(2, speed.PLAIN, 1.0) for _ in range(3)),
        *(answer(2, FAST, 2.0) for _ in range(3)),
    ]
    assert speed.speedups(runs, FAST) == {1: 2.0, 2: 0.5}
    assert speed.geometric_mean([2.0, 0.5, 8.0]) == pytest.approx(2.0)


def test_a_modes_figures() -> None:
    runs = [
        answer(1, speed.PLAIN, 4.0),
        answer(1, FAST, 2.0),
        answer(2, speed.PLAIN, 1.0),
        answer(2, FAST, 2.0, said=(1, 3)),
    ]
    plain, fast = speed.modes_table(runs, [FAST]).splitlines()[2:]
    cells = [cell.strip() for cell in fast.strip("|").split("|")]
    # 20 tokens in 4 s and 10 passes, half of the drafted said; 0.2 s of 4 s its own
    assert cells[:6] == ["hierarchy", "5.0", "1.000", "0.500 (prompt 2)", "2.00", "0.50"]
    assert cells[6:] == ["20.00", "5.00%", "75.00%", "1 of 2"]
    assert plain.startswith("| plain | 4.0 | 1.000 | – |")


def test_a_category_counts_its_time_round_by_round() -> None:
    fixed = Mode("γ = 2", False)
    times = {speed.PLAIN: (4.0, 2.0), FAST: (3.0, 2.0), fixed: (2.0, 2.0)}
    runs = [
        answer(prompt, mode, seconds)
        for prompt in (1, 2)
        for mode, both in times.items()
        for seconds in both
    ]
    gains = speed.gains_table(runs, [FAST])
    assert gains.endswith("| a | 2 | 1.17 [1.00–1.33], 1.17; 2.00, 50% |")
    assert speed.nearness_table(runs, FAST, [fixed]).endswith("| a | γ = 2 | 1.50 | 1.20 | 0.80 |")


def test_all_categories_are_a_row_of_their_own() -> None:
    runs = [answer(1, speed.PLAIN, 1.0), answer(2, speed.PLAIN, 1.0)]
    assert speed.by_category(runs) == {"a": [1, 2]}
    runs[1] = speed.Run(**{**vars(runs[1]), "category": "b"})
    assert speed.by_category(runs) == {"a": [1], "b": [2], "**all**": [1, 2]}


def test_a_fixed_draft_has_its_length_wherever_anything_matches() -> None:
    drafter = Fixed([Suffix()], 3, width=1)
    draft = drafter.propose([1, 2, 3, 4, 5, 1, 2], Budget(8, width=4))
    assert (list(draft.tokens), draft.parents, draft.confidence) == ([3, 4, 5], None, None)
    assert len(drafter.propose([1, 2, 3, 4, 5, 1, 2], Budget(2))) == 2
    assert not drafter.propose([1, 2, 3], Budget(8))


def test_modes_of_one_model_are_those_of_an_engine(
    smollm2: Path, bench_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_HOME", str(bench_home))
    with Engine.open(smollm2, draft="none", context=256) as engine:
        switch = Switch(engine)
        proved = engine.info.pass_sizes
        assert proved
        for mode, sizes, name in (
            (speed.PLAIN, (), "none"),
            (EXACT, proved, "suffix"),
            (FAST, (), "suffix+ngram-cache"),
            (Mode("recycling", True), proved, "recycling"),
            (Mode("γ = 2", True), proved, "suffix"),
        ):
            parts = switch.to(mode)
            assert parts.target is engine.target
            assert (parts.target.info.pass_sizes, parts.scheduler.name) == (sizes, name)
        assert set(MODEL_FREE) >= {"none", "suffix", "hierarchy", "recycling"}


def test_modes_and_rounds_learn_apart_and_nothing_of_it_lasts(
    smollm2: Path, bench_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_HOME", str(bench_home))
    with Engine.open(smollm2, draft="hierarchy", context=256) as engine:
        switch = Switch(engine)
        first, other = switch.to(FAST).scheduler, switch.to(EXACT).scheduler
        assert first is not other
        assert switch.to(FAST).scheduler is first
        prompt = speed.Prompt(1, "a", ("one two three one two three",))
        run = speed.run(switch, FAST, prompt, 8, stop=False)
        assert (run.mode, run.tokens, len(run.said)) == ("hierarchy", 8, 8)
        switch.renew()
        assert switch.to(FAST).scheduler is not first
        assert switch.to(FAST).scheduler.latency is not first.latency
    assert not list((bench_home / "ngrams").glob("*"))
    assert ngram_store.enabled()


def test_the_program(run: Run, smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    few = ("--max-tokens", 8, "--context", 1024, "--rounds", 2)
    drafts = ("--draft", "suffix", "--draft", "hierarchy", "--gamma", 2)
    shown = run(speed.main, smollm2, *few, *drafts, "--json", out).stdout
    runs = json.loads(out.read_text())["figures"]
    names = ["plain", "suffix", "hierarchy", "γ = 2"]
    assert [run["mode"] for run in runs] == names[::-1] + names
    assert all(run["tokens"] == len(run["said"]) == 8 for run in runs)
    assert all(run["pass_s"] <= run["decode_s"] for run in runs)
    for name in names[1:]:
        assert f"| {name} | " in shown
    assert "onnx --exact, 8 tokens, past the model's end, 2 rounds" in shown


def test_a_draft_model_beside_hierarchy_and_alone(run: Run, smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    few = ("--max-tokens", 4, "--context", 1024, "--rounds", 1, "--no-exact")
    run(speed.main, smollm2, *few, "--draft", smollm2, "--draft", "model", "--json", out)
    modes = [run["mode"] for run in json.loads(out.read_text())["figures"]]
    assert sorted(modes) == ["hierarchy+model", "model", "plain"]


@pytest.mark.parametrize("drafts", [("model",), ("a.gguf", "b.gguf")])
def test_one_draft_model_at_most_and_it_is_named(
    run: Run, smollm2: Path, drafts: tuple[str, ...]
) -> None:
    options = [option for draft in drafts for option in ("--draft", draft)]
    assert "give one --draft MODEL" in run(speed.main, smollm2, *options, code=2).stderr


def test_halves_of_the_questions(run: Run, smollm2: Path, tmp_path: Path) -> None:
    rows = [{"question_id": i, "category": "ab"[i % 2], "turns": [f"Say {i}."]} for i in range(4)]
    path, out = tmp_path / "questions.jsonl", tmp_path / "figures.json"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    few = ("--max-tokens", 2, "--context", 256, "--rounds", 1, "--prompts", path)
    run(speed.main, smollm2, *few, "--half", "second", "--draft", "suffix", "--json", out)
    runs = json.loads(out.read_text())["figures"]
    assert {(run["prompt"], run["category"]) for run in runs} == {(2, "a"), (3, "b")}
