"""The questions that ship with the bench."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgespec.bench.workloads import PROMPTS, Prompt, read_prompts
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer

WORKLOADS = PROMPTS / "workloads"
CATEGORIES = {
    "chat",
    "code-editing",
    "code-writing",
    "extraction",
    "long-context",
    "maths",
    "multi-turn",
    "summarizing",
    "translation",
}


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[Prompt]]:
    """By file."""
    return {path.stem: read_prompts(path) for path in WORKLOADS.glob("*.jsonl")}


def test_ten_of_every_category(prompts: dict[str, list[Prompt]]) -> None:
    assert prompts.keys() == CATEGORIES
    for name, questions in prompts.items():
        assert len(questions) >= 10, name
        assert {question.category for question in questions} == {name}


def test_no_question_occurs_twice(prompts: dict[str, list[Prompt]]) -> None:
    questions = [question for found in prompts.values() for question in found]
    assert len({question.id for question in questions}) == len(questions)
    others = [question for path in PROMPTS.glob("*.jsonl") for question in read_prompts(path)]
    first_turns = [question.text.strip().lower() for question in questions + others]
    assert len(set(first_turns)) == len(first_turns)


def test_turns(prompts: dict[str, list[Prompt]]) -> None:
    for name, questions in prompts.items():
        for question in questions:
            assert all(turn.strip() for turn in question.turns), question.id
            assert (len(question.turns) > 1) == (name == "multi-turn"), question.id


def test_long_texts_are_long(prompts: dict[str, list[Prompt]], smollm2: Path) -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile(smollm2))
    texts = [path.read_text("utf-8") for path in (WORKLOADS / "texts").iterdir()]
    for text in texts:
        assert 6900 <= len(tokenizer.encode(text)) <= 7800
        asked = [q for q in prompts["long-context"] if q.text.startswith(text)]
        assert len(asked) == 2
    assert len(prompts["long-context"]) == 2 * len(texts)
