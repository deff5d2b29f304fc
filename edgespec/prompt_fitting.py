"""Drops a conversation's oldest turns where it outgrows the context."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgespec.models.chat_template import ChatTemplate, Messages

_CHARACTERS_PER_TOKEN = 16
"""An upper estimate of the average. A conversation that exceeds it is not rendered as a whole."""


def fitted(
    template: ChatTemplate,
    system: Messages,
    turns: Messages,
    start: int,
    capacity: int,
    reserve: int,
) -> tuple[int, list[int]]:
    """The token ids of ``system`` and ``turns[start:]``, and ``start``.

    If ``reserve`` further tokens do not fit in ``capacity``, it begins with a later turn of the user, and
    the prompt has at most half of ``capacity``; or with the last turn, however long that is.
    """

    def render(start: int) -> list[int]:
        return template.render([*system, *turns[start:]])

    size = sum(len(message["content"]) for message in (*system, *turns[start:]))
    tokens = render(start) if size <= _CHARACTERS_PER_TOKEN * capacity else None
    if tokens is None or len(tokens) + reserve > capacity:
        starts = [i for i, m in enumerate(turns) if m["role"] == "user" and i > start]
        if starts:
            return _longest(render, starts, capacity // 2)
    return start, render(start) if tokens is None else tokens


def _longest(
    render: Callable[[int], list[int]], starts: list[int], limit: int
) -> tuple[int, list[int]]:
    """The first of ``starts`` from which at most ``limit`` tokens are rendered, else the last.

    Returns it and the tokens. The search begins with the last and goes back in growing steps, so that
    nothing much longer than ``limit`` is rendered.
    """
    found, too_long = len(starts) - 1, -1
    tokens = render(starts[found])
    step = 1
    while len(tokens) <= limit and found - too_long > 1:
        tried = found - min(step, (found - too_long + 1) // 2)
        longer = render(starts[tried])
        if len(longer) <= limit:
            found, tokens = tried, longer
        else:
            too_long = tried
        step *= 2
    return starts[found], tokens
