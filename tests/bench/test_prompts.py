from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from edgespec.bench import workloads
from edgespec.errors import UserError


def test_thirty_different_prompts_of_many_kinds() -> None:
    prompts = workloads.read_prompts()
    assert len({prompt.text for prompt in prompts}) == 30
    assert len({prompt.category for prompt in prompts}) >= 10


def test_the_first_of_each_category(tmp_path: Path) -> None:
    rows = [{"question_id": i, "category": "ab"[i % 2], "turns": [f"t{i}", ""]} for i in range(7)]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    chosen = workloads.first_of_each(workloads.read_prompts(path), 2)
    assert [(p.id, p.category, p.text) for p in chosen] == [
        (0, "a", "t0"),
        (2, "a", "t2"),
        (1, "b", "t1"),
        (3, "b", "t3"),
    ]


def test_categories_take_turns() -> None:
    prompts = [workloads.Prompt(i, "aabac"[i], ("",)) for i in range(5)]
    assert [p.id for p in workloads.taking_turns(prompts)] == [0, 2, 4, 1, 3]


def test_the_halves_of_each_category_are_all_of_it() -> None:
    prompts = [workloads.Prompt(i, "aab"[i % 3], ("",)) for i in range(9)]
    first, second = (workloads.half_of_each(prompts, half) for half in (False, True))
    assert [p.id for p in first] == [0, 3, 6, 2, 8]
    assert [p.id for p in second] == [1, 4, 7, 5]


def test_a_question_may_be_about_a_long_text_beside_it(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Once upon a time.\n")
    row = {"question_id": 1, "category": "long", "turns": ["When?", "Who?"], "text": "a.txt"}
    (tmp_path / "x").write_text(json.dumps(row))
    [prompt] = workloads.read_prompts(tmp_path / "x")
    assert prompt.turns == ("Once upon a time.\n\n\nWhen?", "Who?")
    (tmp_path / "x").write_text(json.dumps({**row, "text": "../x"}))
    with pytest.raises(UserError, match=r"texts.x"):  # nothing outside the folder
        workloads.read_prompts(tmp_path / "x")


@pytest.mark.parametrize(
    "text", ["{", '{"category": "a"}', "[1]", '{"turns": []}', '{"turns": "one"}']
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(UserError, match="Spec-Bench"):
        workloads.read_prompts(tmp_path / "x")


def test_the_file_to_rewrite_has_60_lines_and_no_hints() -> None:
    code = (workloads.PROMPTS / "untyped.py.txt").read_text("utf-8")
    assert 55 <= len(code.splitlines()) <= 65
    functions = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.FunctionDef)]
    assert len(functions) >= 10
    assert not any(f.returns or any(a.annotation for a in f.args.args) for f in functions)
    assert code in workloads.rewriting_prompt().text


def test_a_file_without_prompts_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"none\.jsonl is empty; give a file with prompts"):
        workloads.read_prompts(tmp_path / "none.jsonl")
