"""String formats and JSON of chat templates, on text that keeps its marks (``marked_text``)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import Formatter
from typing import Any

from edgespec.models.marked_text import joined, marked_like

_PERCENT = re.compile(r"%(?:\((?P<key>[^)]*)\))?[-#0 +]*\d*(?:\.\d+)?[hlL]?(?P<kind>.)", re.DOTALL)


def formatted(
    formatter: Formatter, template: str, arguments: Sequence[Any], named: Mapping[str, Any]
) -> str:
    """As ``formatter.vformat``, for a template whose formats have no fields in them."""
    parts: list[str] = []
    automatic = 0
    for literal, field, form, conversion in formatter.parse(template):
        parts.append(marked_like(literal, template))
        if field is None:
            continue
        if field == "" or field[0] in ".[":
            field, automatic = f"{automatic}{field}", automatic + 1
        value, _ = formatter.get_field(field, arguments, named)
        text = format(formatter.convert_field(value, conversion), form or "")
        parts.append(marked_like(text, value))
    return joined(parts)


def percent_formatted(template: str, values: Any) -> str:
    """As ``template % values``."""
    result = str.__mod__(template, values)  # raises what it raises
    parts: list[str] = []
    waiting = list(values if isinstance(values, tuple) else [values])
    end = 0
    for field in _PERCENT.finditer(template):
        parts.append(template[end : field.start()])
        end = field.end()
        if field["kind"] == "%":
            parts.append(marked_like("%", template))
            continue
        value = values[field["key"]] if field["key"] is not None else waiting.pop(0)
        one = {field["key"]: value} if field["key"] is not None else (value,)
        parts.append(marked_like(str.__mod__(field[0], one), value))
    parts.append(template[end:])
    whole = joined(parts)
    return whole if whole == result else marked_like(result, template, values)


def to_json(
    value: Any,
    encode: Callable[[Any], str],
    join: Callable[[Iterable[str], str], str],
    indent: str | None,
    separators: tuple[str, str],
    sort_keys: bool,
    margin: str = "\n",
) -> str:
    """As ``json.dumps``; ``encode`` is its encoding of strings and numbers, ``join`` joins texts."""
    inner = margin + (indent or "")

    def text(value: Any) -> str:
        return to_json(value, encode, join, indent, separators, sort_keys, inner)

    def key(value: Any) -> str:
        if not isinstance(value, (str, int, float, type(None))):
            raise TypeError(f"a key of JSON is a {type(value).__name__}")
        return text(value) if isinstance(value, str) else f'"{encode(value)}"'

    if isinstance(value, dict):
        pairs = sorted(value.items()) if sort_keys else value.items()
        items = [joined([key(name), separators[1], text(item)]) for name, item in pairs]
        left, right = "{}"
    elif isinstance(value, (list, tuple)):
        items = [text(item) for item in value]
        left, right = "[]"
    else:
        return marked_like(encode(value), value)
    if indent is None or not items:
        return join([left, join(items, separators[0]), right], "")
    return join([left, inner, join(items, separators[0] + inner), margin, right], "")
