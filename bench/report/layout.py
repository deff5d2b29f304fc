"""How a report is laid out, as Markdown and as a page: whatever its words and names hold, they are shown as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from edgespec.bench.report.plots import Picture


@dataclass(frozen=True)
class Table:
    """Its first column names the rows; "value (interval)" in a cell is set in two sizes."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    """Not figures."""


@dataclass(frozen=True)
class Warned:
    """What a reader must see first."""

    text: str


@dataclass(frozen=True)
class Pictures:
    """Of one plot each: side by side, where the page is wide enough."""

    pictures: Sequence[Picture]


Block = str | list[str] | Table | Warned | Picture | Pictures
Section = tuple[str, list[Block]]


# as Markdown


def _flat(text: object) -> str:
    """One line, whatever a name brings along."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _marked(text: str) -> str:
    """Not Markdown, whatever it looks like."""
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

_COLOURS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --quiet: #555; --grid: #dcdcdc; --paper: #fff;
  --warn: #fff2d6; --series0: #0072b2; --series1: #d55e00; --series2: #00845f; --series3: #b0578d;
  --series4: #2b8cc9; --series5: #8c6d1f; --series6: #6b6b6b; --series7: #b57d00; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --quiet: #aaa; --grid: #3a3a3a;
  --paper: #161616; --warn: #43340f; --series0: #56b4e9; --series1: #f0894a; --series2: #2fc79a;
  --series3: #e3a1c6; --series4: #9ad0ff; --series5: #d9bd6a; --series6: #b5b5b5; --series7: #ffc94d; } }
"""
_STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 92rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--grid); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; }
p, li, .caption { max-width: 46rem; overflow-wrap: anywhere; }
.caption, small { color: var(--quiet); }
.warning { background: var(--warn); padding: .75rem 1rem; max-width: 46rem; border-left: .3rem solid var(--series1); }
.plots { display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; max-width: 30rem; break-inside: avoid; }
figcaption { font-weight: 600; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif !important; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; margin: .5rem 0 1rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--grid); vertical-align: top; }
th:first-child { text-align: left; font-weight: 600; min-width: 7rem; }
thead th { vertical-align: bottom; }
.words th, .words td { text-align: left; }
td { overflow-wrap: break-word; min-width: 4.5rem; max-width: 22rem; }
td small { white-space: nowrap; display: block; }
@media print { body { font-size: 9.5pt; padding: 0; } table { font-size: 7.5pt; } .wide { overflow: visible; }
  th, td { padding: .15rem .3rem; } td { min-width: 0; } th:first-child { min-width: 5rem; }
  h2, h3, .caption { break-after: avoid; } tr, p, li { break-inside: avoid; } thead { display: table-header-group; }
  .plots { grid-template-columns: 1fr 1fr; } }
"""


def html(title: str, sections: Iterable[Section]) -> str:
    """One file with all that it shows, which reads well on paper, too."""
    parts = [
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_COLOURS}{_STYLE}</style>\n</head>\n<body>\n<h1>{_text(title)}</h1>"
    ]
    for heading, blocks in sections:
        parts += [f"<section>\n<h2>{_text(heading)}</h2>", *map(_html_block, blocks), "</section>"]
    return "\n".join([*parts, "</body>\n</html>\n"])


def alone(svg: str) -> str:
    """A plot as a file of its own, with its colours in light and dark."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    start, rest = svg.split(">", 1)
    return f"{start.replace('<svg', f'<svg {spaces}', 1)}><style>{_COLOURS}</style>{rest}\n"


def _text(text: str) -> str:
    """Not a page, whatever it looks like; intervals are not broken."""
    return escape(re.sub(r"(?<=[\d%])–(?=[\d-])", "–\u2060", _flat(text)))


def _html_block(block: Block) -> str:
    if isinstance(block, Warned):
        return f'<p class="warning">{_text(block.text)}</p>'
    if isinstance(block, str):
        return f"<p>{_text(block)}</p>"
    if isinstance(block, list):
        return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in block)}</ul>"
    if isinstance(block, Pictures):
        return f'<div class="plots">\n{"".join(map(_single, block.pictures))}</div>'
    if isinstance(block, Picture):
        plots = "".join(
            f"<figure><figcaption>{_text(name)}</figcaption>{_labelled(svg, f'{block.title}: {name}')}</figure>\n"
            for name, svg in block.plots
        )
        return f'<h3>{_text(block.title)}</h3>{_caption(block)}\n<div class="plots">\n{plots}</div>'
    head = "".join(f'<th scope="col">{_text(header)}</th>' for header in block.headers)
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>\n'
        for row in block.rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(block.headers) else ""
    kind = ' class="words"' if block.words else ""
    return f'<div class="wide"><table{kind}>{head}\n<tbody>{body}</tbody></table></div>'


def _single(picture: Picture) -> str:
    [(_, svg)] = picture.plots
    return f"<figure><h3>{_text(picture.title)}</h3>{_labelled(svg, picture.title)}{_caption(picture)}</figure>\n"


def _caption(picture: Picture) -> str:
    return f'<p class="caption">{_text(picture.caption)}</p>'


def _labelled(svg: str, label: str) -> str:
    """For those who cannot see it."""
    return svg.replace("<svg ", f'<svg aria-label="{_text(label)}" ', 1)


def _cell(text: str) -> str:
    """ "value (interval)": the interval is smaller, and in a line of its own."""
    found = re.fullmatch(r"(\S+) (\([^()]*\))( of \d+)?", text)
    if not found:
        return f"<td>{_text(text)}</td>"
    value, interval, of = found.groups()
    return f"<td>{_text(value)}<small>{_text(interval + (of or ''))}</small></td>"
