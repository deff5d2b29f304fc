"""The questions that the bench asks, read from files in Spec-Bench's format, and text to evaluate models on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import edgespec
from edgespec.errors import UserError
from edgespec.models.tokenizer import Tokenizer

PROMPTS = Path(__file__).parent / "prompts"
WINDOW = 512
"""Tokens of text that perplexity is measured on from an empty cache."""


@dataclass(frozen=True)
class Prompt:
    """The user messages of a conversation, in order."""

    id: int
    category: str
    turns: tuple[str, ...]

    @property
    def text(self) -> str:
        """The first turn."""
        return self.turns[0]


def read_prompts(path: Path = PROMPTS / "thirty.jsonl") -> list[Prompt]:
    """Every question in a file of Spec-Bench's format, JSON lines.

    A line has ``question_id``, ``category`` and ``turns``; also ``text``, where the first turn is about a
    long text: its name in the folder ``texts`` beside the file. Raises ``UserError`` for other files.
    """
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        prompts = [_prompt(row, path.parent / "texts") for row in rows]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} does not hold prompts in Spec-Bench's format: {error}") from error
    if not prompts:
        raise UserError(f"{path} is empty; give a file with prompts in Spec-Bench's format")
    return prompts


def _prompt(row: dict[str, Any], texts: Path) -> Prompt:
    turns, name = row["turns"], row.get("text")
    if not (isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)):
        raise ValueError("turns are not texts")
    if name is not None:
        turns = [f"{(texts / Path(name).name).read_text('utf-8')}\n\n{turns[0]}", *turns[1:]]
    return Prompt(int(row["question_id"]), str(row["category"]), tuple(turns))


def first_of_each(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first ``count`` prompts of every category."""
    return _of_each(prompts, slice(count))


def half_of_each(prompts: Sequence[Prompt], second: bool) -> list[Prompt]:
    """Every other prompt of each category, beginning with its first or its second."""
    return _of_each(prompts, slice(int(second), None, 2))


def taking_turns(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first prompt of every category, then the second of each: a run that is stopped has some of all."""
    return [p for each in zip_longest(*_by_category(prompts)) for p in each if p is not None]


def _of_each(prompts: Sequence[Prompt], part: slice) -> list[Prompt]:
    return [p for alike in _by_category(prompts) for p in alike[part]]


def _by_category(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    categories = dict.fromkeys(prompt.category for prompt in prompts)
    return [[p for p in prompts if p.category == category] for category in categories]


def rewriting_prompt() -> Prompt:
    """To give 60 lines of Python their type hints."""
    code = (PROMPTS / "untyped.py.txt").read_text("utf-8")
    text = (
        "Rewrite this file with type hints on every function and method. Change nothing else and "
        f"answer with the whole file in one code block.\n\n```python\n{code}```"
    )
    return Prompt(0, "rewriting code", (text,))


def own_text() -> str:
    """Text to evaluate that needs no download: the prompts here, then the engine's source."""
    sources = sorted(Path(edgespec.__file__).parent.glob("*.py"))
    parts = [prompt.text for prompt in [*read_prompts(), rewriting_prompt()]]
    return "\n\n".join([*parts, *(source.read_text("utf-8") for source in sources)])


def windows(tokenizer: Tokenizer, text: str, count: int) -> Iterator[list[int]]:
    """At least ``count`` tokens of ``text`` in whole windows. Raises ``UserError`` if it is short."""
    begin = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    step, tokens = WINDOW - len(begin), tokenizer.encode(text)
    needed = -(-count // WINDOW)
    if len(tokens) < needed * step:
        raise UserError(f"the text has {len(tokens)} tokens, fewer than {count}; give a longer one")
    for start in range(0, needed * step, step):
        yield begin + tokens[start : start + step]
