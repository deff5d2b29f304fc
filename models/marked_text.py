"""Text that knows which message each of its characters came from.

A chat template may cut, join, replace and reverse what a user wrote, so it can build a control
token's name in many ways. Every operation here keeps the marks of the characters, so the rendered
prompt shows which characters only the template wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from typing import Any, SupportsIndex

TEMPLATE = "\0"
"""The mark of a character that the template wrote. ``chr(i + 1)``: it came from message ``i``."""


class MarkedText(str):
    """A string with one mark per character. Its methods are those of ``str`` and keep the marks.

    ``with_marks`` makes it.
    """

    __slots__ = ("_marks",)
    _marks: str  # a name that no template can read

    def __str__(self) -> str:
        return self

    def __getitem__(self, index: SupportsIndex | slice) -> MarkedText:
        return with_marks(str.__getitem__(self, index), self._marks[index])

    def __iter__(self) -> Iterator[MarkedText]:
        return map(with_marks, str.__iter__(self), self._marks)

    def __add__(self, other: str) -> MarkedText:
        return with_marks(str.__add__(self, other), self._marks + marks_of(other))

    def __radd__(self, other: str) -> MarkedText:
        return with_marks(str.__add__(other, self), marks_of(other) + self._marks)

    def __mul__(self, times: SupportsIndex) -> MarkedText:
        return with_marks(str.__mul__(self, times), self._marks * times)

    __rmul__ = __mul__

    def strip(self, chars: str | None = None, /) -> MarkedText:
        text = str.strip(self, chars)
        start = len(self) - len(str.lstrip(self, chars))
        return with_marks(text, self._marks[start : start + len(text)])

    def lstrip(self, chars: str | None = None, /) -> MarkedText:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> MarkedText:
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str, /) -> MarkedText:
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str, /) -> MarkedText:
        return self[: len(str.removesuffix(self, suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.split(self, sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._pieces(str.rsplit(self, sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._pieces(str.splitlines(self, keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._pieces(str.partition(self, sep))
        return before, found, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._pieces(str.rpartition(self, sep))
        return before, found, after

    def _pieces(self, pieces: Sequence[str], gap: int = 0) -> list[str]:
        """``pieces`` of this text in order, at least ``gap`` characters apart."""
        found: list[str] = []
        end = -gap
        for piece in pieces:
            start = self.find(piece, end + gap)
            end = start + len(piece)
            found.append(self[start:end])
        return found

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        return replaced(self, old, new, count)

    def join(self, items: Iterable[str], /) -> str:
        return joined(items, self)


def _keeping_marks(method: Callable[[str], str]) -> Callable[[MarkedText], MarkedText]:
    return lambda text: marked_like(method(text), text)


for _method in (str.capitalize, str.casefold, str.lower, str.swapcase, str.title, str.upper):
    setattr(MarkedText, _method.__name__, _keeping_marks(_method))


def with_marks(text: str, marks: str) -> MarkedText:
    """``text`` with a mark for each of its characters."""
    made = str.__new__(MarkedText, text)  # twice as fast as a constructor of the class
    made._marks = marks
    return made


def marks_of(text: str) -> str:
    """The marks of ``text``; a plain string is the template's."""
    return text._marks if isinstance(text, MarkedText) else TEMPLATE * len(text)


def plain(text: str) -> str:
    """``text`` without its marks."""
    return str.__str__(text)


def marked_like(text: str, *origins: Any) -> MarkedText:
    """``text``, made from ``origins`` in a way that does not show which character made which.

    If there is one origin of the same length, the marks are its marks. Otherwise all of the text gets
    the first mark of a message in ``origins``.
    """
    if len(origins) == 1 and isinstance(origins[0], str) and len(origins[0]) == len(text):
        return with_marks(text, marks_of(origins[0]))
    marks = "".join(marks_of(origin) for origin in strings(origins)).lstrip(TEMPLATE)
    return with_marks(text, (marks[:1] or TEMPLATE) * len(text))


def joined(parts: Iterable[str], separator: str = "") -> str:
    """As ``separator.join(parts)``."""
    parts = list(parts)
    text = str.join(separator, parts)
    if isinstance(separator, MarkedText) or any(isinstance(part, MarkedText) for part in parts):
        return with_marks(text, str.join(marks_of(separator), map(marks_of, parts)))
    return text


def replaced(text: str, old: str, new: str, count: SupportsIndex = -1) -> str:
    """As ``text.replace(old, new, count)``."""
    if not isinstance(text, MarkedText) and not isinstance(new, MarkedText):
        return str.replace(text, old, new, count)
    if old:
        return joined(text.split(old, count), new)
    marks = marks_of(text).replace("", marks_of(new), count)
    return with_marks(str.replace(text, "", new, count), marks)


def marked(value: Any, mark: str) -> Any:
    """``value`` with every string in it marked."""
    if isinstance(value, str):
        return with_marks(value, mark * len(value))
    if isinstance(value, Mapping):
        return {marked(key, mark): marked(item, mark) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [marked(item, mark) for item in value]
    return value


def strings(value: Any) -> Iterator[str]:
    """The strings in ``value``."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from strings(pair)
    elif isinstance(value, (list, tuple, Set, ValuesView)):
        for item in value:
            yield from strings(item)
