"""The text of one answer, with its reasoning shown, hidden or apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from edgespec.models.reasoning import Part, ReasoningParser

if TYPE_CHECKING:
    from edgespec.models.tokenizer import Tokenizer

Reasoning = Literal["show", "hide", "separate"]
"""What becomes of a model's reasoning: part of the answer's text, left out, or returned apart."""

_TAIL = 16
"""Tokens at a prompt's end that hold the mark which opens the reasoning, if it is there."""


class AnswerText:
    """Takes an answer's text as it comes and returns what to show of it.

    If ``prompt`` ends with the mark that opens the reasoning, the text begins with that mark, unless the
    answer ``continues`` the prompt's own text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        mode: Reasoning,
        on_reasoning: Callable[[str], None],
        *,
        continues: bool,
    ) -> None:
        opening = _opening(tokenizer, prompt)
        self._parser = ReasoningParser(tokenizer.reasoning, opened=bool(opening))
        self._mode = mode
        self._on_reasoning = on_reasoning
        self._first: list[Part] = [("mark", opening)] if opening and not continues else []
        self._text = ""
        self.reasoning = ""
        """The reasoning, if the mode is "separate"."""

    @property
    def whole(self) -> str:
        """The text with its reasoning, for the conversation. Its reasoning is closed."""
        return self._text + (self._parser.close if self._text and self._parser.inside else "")

    def push(self, text: str) -> str:
        """Take more text; return what to show."""
        parts, self._first = self._first + self._parser.push(text), []
        return self._take(parts)

    def end(self, *, cut: bool) -> str:
        """End the answer; return what else to show. ``cut``: it ended before a stop token."""
        return self._take(self._parser.flush(cut=cut))

    def _take(self, parts: Sequence[Part]) -> str:
        shown = ""
        for kind, text in parts:
            self._text += text
            if kind == "answer" or self._mode == "show":
                shown += text
            elif kind == "reasoning" and self._mode == "separate":
                self.reasoning += text
                self._on_reasoning(text)
        return shown


def _opening(tokenizer: Tokenizer, prompt: Sequence[int]) -> str:
    """The mark at the end of ``prompt`` that opens the reasoning, with the white space after it."""
    if tokenizer.reasoning is None:
        return ""
    tail = tokenizer.decode(prompt[-_TAIL:], skip_special=False)
    _, mark, space = tail.rpartition(tokenizer.reasoning.open)
    return mark + space if mark and not space.strip() else ""
