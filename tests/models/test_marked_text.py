"""Marked text gives what ``str`` gives, and keeps a mark for each character."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from edgespec.models.marked_text import joined, marked, marks_of, plain, replaced, with_marks
from edgespec.models.template_text import percent_formatted, to_json


def test_marked_text_is_the_plain_text() -> None:
    """Every operation gives what ``str`` gives, with one mark per character."""
    rng = random.Random(5)
    alphabet = "aAß<|> \n\u0130b%{}"

    def text(length: int) -> str:
        return "".join(rng.choice(alphabet) for _ in range(rng.randrange(length)))

    for _ in range(3000):
        raw, other, sep = text(20), text(4), text(3) or "a"
        whole = joined([with_marks(raw[:5], "\1" * len(raw[:5])), raw[5:], with_marks("", "")])
        count = rng.randrange(-1, 4)
        pairs: list[tuple[Any, Any]] = [
            (whole + other, raw + other),
            (other + whole, other + raw),
            (whole * 2, raw * 2),
            (2 * whole, 2 * raw),
            (whole[1:9:2], raw[1:9:2]),
            (whole[::-1], raw[::-1]),
            (whole.strip(other or None), raw.strip(other or None)),
            (whole.removeprefix(raw[:2]), raw.removeprefix(raw[:2])),
            (whole.removesuffix(raw[-2:]), raw.removesuffix(raw[-2:])),
            (whole.split(sep, count), raw.split(sep, count)),
            (whole.rsplit(sep, count), raw.rsplit(sep, count)),
            (whole.split(None, count), raw.split(None, count)),
            (whole.rsplit(None, count), raw.rsplit(None, count)),
            (whole.splitlines(), raw.splitlines()),
            (whole.splitlines(True), raw.splitlines(True)),
            (list(whole.partition(sep)), list(raw.partition(sep))),
            (list(whole.rpartition(sep)), list(raw.rpartition(sep))),
            (whole.replace(other, sep, count), raw.replace(other, sep, count)),
            (replaced(raw, other, marked(sep, "\2"), count), raw.replace(other, sep, count)),
            (joined(whole.split(sep), other), other.join(raw.split(sep))),
            (list(whole), list(raw)),
            *(
                (getattr(whole, name)(), getattr(raw, name)())
                for name in ("lower", "upper", "title", "casefold", "swapcase", "capitalize")
            ),
        ]
        for found, expected in pairs:
            assert found == expected
            for part in found if isinstance(found, list) else [found]:
                assert len(marks_of(part)) == len(part)
                assert type(plain(part)) is str


def test_json_is_that_of_python() -> None:
    values: list[Any] = [
        *({}, [], "é\n", 1, 1.5, None, True, {"a": [1, {"b": []}], "c": {}}, [[], [2, "x"]]),
        {2: "a", None: 2, True: 3, 1.5: 4},
        {"b": 1, "a": {"d": 2, "c": 3}},
    ]
    for value in values:
        for indent in (None, "  ", ""):
            for separators in ((", ", ": "), (",", ":")):
                for sort in (False, value == values[-1]):
                    found = to_json(
                        value,
                        json.JSONEncoder(ensure_ascii=False).encode,
                        lambda parts, sep: joined(parts, sep),
                        indent,
                        separators,
                        sort,
                    )
                    assert found == json.dumps(
                        value,
                        ensure_ascii=False,
                        indent=indent,
                        separators=separators,
                        sort_keys=sort,
                    )


def test_percent_formats_are_those_of_python() -> None:
    for template, values in (
        ("%s", "a"),
        ("%5s|%-5s|%05d|%.2f%%", ("a", "b", 3, 1.5)),
        ("%(x)s %(y)r", {"x": 1, "y": "z"}),
        ("%%", ()),
        ("%r", [1, "a"]),
    ):
        assert percent_formatted(template, values) == template % values
        assert percent_formatted(marked(template, "\1"), values) == template % values
    with pytest.raises(TypeError):
        percent_formatted("%s %s", "a")


def test_marks_follow_their_characters() -> None:
    text = joined(["<", with_marks("ab c", "\1\1\1\1"), ">", with_marks("d", "\2")])
    cases = {
        text: "\0\1\1\1\1\0\2",
        text[1:]: "\1\1\1\1\0\2",
        text[::-1]: "\2\0\1\1\1\1\0",
        text.upper(): "\0\1\1\1\1\0\2",
        text.replace("b ", "xyz"): "\0\1\0\0\0\1\0\2",
        text.replace("", "."): "\0\0\0\1\0\1\0\1\0\1\0\0\0\2\0",
        text.split()[1]: "\1\0\2",
        text.partition("b")[2]: "\1\1\0\2",
        "-" + text: "\0\0\1\1\1\1\0\2",
        text.strip("<d"): "\1\1\1\1\0",
        replaced("a-a", "-", text[-1]): "\0\2\0",
        percent_formatted("<%s>", text[1]): "\0\1\0",
    }
    for found, marks in cases.items():
        assert marks_of(found) == marks, found
