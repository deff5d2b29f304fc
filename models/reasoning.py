"""The reasoning in an answer: the text between two marks, before what the model answers.

A model writes its marks as control tokens or as plain text. A template may open the reasoning in
the prompt; then the answer has only the closing mark.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Literal

Part = tuple[Literal["mark", "reasoning", "answer"], str]
"""A part of an answer's text. White space around a mark belongs to the mark."""


@dataclass(frozen=True)
class Marks:
    """What opens and what closes the reasoning."""

    open: str
    close: str
    control: bool = False
    """Whether both are control tokens. Then reasoning may be anywhere, else only before the answer."""
    answer: str = ""
    """What begins an answer without reasoning, if the model marks that too."""
    field: str = ""
    """The field of a message from which the template reads the reasoning, if it is not the content."""

    def places(self, answer: str) -> Iterator[slice]:
        """Where these marks are in an answer; other text that looks like a mark is left out."""
        start = 0
        while True:
            opened = answer.find(self.open, start)
            if opened < 0 or (not self.control and answer[start:opened].strip()):
                return
            inside = opened + len(self.open)
            yield slice(opened, inside)
            closed = answer.find(self.close, inside)
            if closed < 0:
                return
            start = closed + len(self.close)
            yield slice(closed, start)


_KNOWN = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, SmolLM3, GLM, Nemotron, Granite
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R7B and later
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<mm:think>", "</mm:think>"),  # MiniMax-M3
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<|think|>", "<|/think|>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
)
_HARMONY = Marks(  # gpt-oss
    "<|channel|>analysis<|message|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
    answer="<|channel|>final<|message|>",
    field="thinking",
)


def find_marks(template: str, specials: Container[str], controls: Container[str]) -> Marks | None:
    """The marks that a model uses: in its chat template, or special tokens of its vocabulary."""
    if _HARMONY.open in template:
        return _HARMONY
    for opening, closing in _KNOWN:
        if closing in template:
            return Marks(opening, closing, opening in controls and closing in controls)
    for opening, closing in _KNOWN:
        if opening in specials and closing in specials:
            return Marks(opening, closing, opening in controls and closing in controls)
    return None


class ReasoningParser:
    """Splits an answer, as it comes, into marks, reasoning and what the model answers.

    ``opened``: the prompt ends inside the reasoning. A mark is never split: text that may become one
    is held back. The parts joined are the answer's text.
    """

    def __init__(self, marks: Marks | None, *, opened: bool = False) -> None:
        self._marks = marks or Marks("", "")
        self._waiting = ""
        self.inside = opened
        """Whether the reasoning is open."""
        self.close = self._marks.close
        self._before = marks is not None  # no text of the answer yet
        self._closed = False  # reasoning has ended

    def push(self, text: str) -> list[Part]:
        """Take more of the answer; return the parts that are now certain."""
        self._waiting += text
        marks = self._marks
        parts: list[Part] = []
        while True:
            if self.inside:
                found = self._until(marks.close, parts, "reasoning")
                if not found:
                    break
                parts.append(("mark", marks.close))
                self.inside, self._before, self._closed = False, True, True
            elif self._before:
                rest = self._waiting.lstrip()
                space = self._waiting[: len(self._waiting) - len(rest)]
                if rest.startswith(marks.open):
                    parts.append(("mark", space + marks.open))
                    self._waiting, self.inside = rest[len(marks.open) :], True
                elif marks.answer and rest.startswith(marks.answer):
                    parts.append(("mark", space + marks.answer))
                    self._waiting, self._before = rest[len(marks.answer) :], False
                elif marks.open.startswith(rest) or marks.answer.startswith(rest):
                    break
                else:
                    if self._closed:
                        parts.append(("mark", space))
                        self._waiting = rest
                    self._before = False
            elif marks.control and self._until(marks.open, parts, "answer"):
                parts.append(("mark", marks.open))
                self.inside = True
            else:
                if not marks.control:
                    parts.append(("answer", self._waiting))
                    self._waiting = ""
                break
        return [part for part in parts if part[1]]

    def flush(self, *, cut: bool) -> list[Part]:
        """End the answer; return what was held back. ``cut``: half of a mark is left out."""
        rest, self._waiting = self._waiting, ""
        if cut and not self._marks.control and (self.inside or self._before):
            rest = rest[: len(rest) - len(rest.lstrip())]
        if not rest:
            return []
        if self.inside:
            return [("reasoning", rest)]
        return [("mark" if self._closed and not rest.strip() else "answer", rest)]

    def _until(self, mark: str, parts: list[Part], kind: Literal["reasoning", "answer"]) -> bool:
        """Move the text before ``mark``, or all that cannot be its beginning; whether it was found."""
        text, found, rest = self._waiting.partition(mark)
        if not found:
            held = next(n for n in range(len(mark) - 1, -1, -1) if text.endswith(mark[:n]))
            text, rest = text[: len(text) - held], text[len(text) - held :]
        parts.append((kind, text))
        self._waiting = rest
        return bool(found)


def split(answer: str, marks: Marks) -> list[Part]:
    """The parts of a whole answer."""
    parser = ReasoningParser(marks)
    return parser.push(answer) + parser.flush(cut=False)
