"""Renders a report as Markdown and as an HTML page; all texts are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edgespec.bench.report.plots import Picture


@dataclass(frozen=True)
class Table:
    """Its first column names the rows; "value (interval)" in a cell is set in two sizes."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    """Its cells are words, not figures."""


@dataclass(frozen=True)
class Warned:
    """A warning."""

    text: str


@dataclass(frozen=True)
class Pictures:
    """Pictures of one plot each, side by side where the page is wide enough."""

    pictures: Sequence[Picture]


Block = str | list[str] | Table | Warned | Picture | Pictures
Section = tuple[str, list[Block]]


# as Markdown


def _flat(text: object) -> str:
    """One line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _marked(text: str) -> str:
    """Escaped: none of it is Markdown."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", _flat(text))


def markdown(title: str, sections: Iterable[Section]) -> str:
    """Without the pictures."""
    lines = [f"# {_marked(title)}"]
    for heading, blocks in sections:
        lines += ["", f"## {_marked(heading)}"]
        for block in blocks:
            lines += ["", *_markdown_block(block)]
    return "\n".join([*lines, ""])


def _markdown_block(block: Block) -> Iterator[str]:
    if isinstance(block, Warned):
        yield f"**{_marked(block.text)}**"
    elif isinstance(block, str):
        yield _marked(block)
    elif isinstance(block, list):
        yield from (f"- {_marked(line)}" for line in block)
    elif isinstance(block, Table):
        yield f"| {' | '.join(map(_marked, block.headers))} |"
        others = ":--" if block.words else "--:"
        yield f"| {' | '.join([':--', *[others] * (len(block.headers) - 1)])} |"
        yield from (f"| {' | '.join(map(_marked, row))} |" for row in block.rows)


# as a page


def html(title: str, sections: Iterable[Section]) -> str:
    """One file with all that it shows, to be read on a screen or on paper."""
    return _TEMPLATES.get_template("page.html.jinja").render(title=title, sections=sections)


def standalone(svg: str) -> str:
    """A plot as a file of its own, with its colours in light and dark."""
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    start, rest = svg.split(">", 1)
    colours = _TEMPLATES.get_template("colours.css").render()
    return f"{start.replace('<svg', f'<svg {namespaces}', 1)}><style>{colours}</style>{rest}\n"


def _output(value: object) -> object:
    """What the page prints of a value: one line, in which no interval is broken."""
    if isinstance(value, Markup):
        return value
    return re.sub(r"(?<=[\d%])–(?=[\d-])", "–\u2060", _flat(value))


def _labelled(svg: str, label: str) -> Markup:
    """The plot with a label for those who cannot see it. matplotlib escaped the texts in ``svg``."""
    return Markup(svg.replace("<svg ", Markup('<svg aria-label="{}" ').format(_output(label)), 1))


def _value_and_interval(text: str) -> tuple[str, str]:
    """The parts of "value (interval)": the page sets the interval smaller, in a line of its own."""
    found = re.fullmatch(r"(\S+) (\([^()]*\)(?: of \d+)?)", text)
    return (found[1], found[2]) if found else (text, "")


_TEMPLATES = Environment(
    autoescape=True,
    keep_trailing_newline=True,
    finalize=_output,
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    lstrip_blocks=True,
    trim_blocks=True,
    undefined=StrictUndefined,
)
_TEMPLATES.filters |= {
    "kind": lambda block: type(block).__name__,
    "labelled": _labelled,
    "value_and_interval": _value_and_interval,
}
