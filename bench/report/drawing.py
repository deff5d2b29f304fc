"""Draws the plots as SVG: text stays text, and the colours are the page's.

Every picture is as wide as a telephone's screen, so that it need not shrink there; wider pages put them side by side.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgespec.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 4.7
"""Inches of 72 pixels."""
INK, GRID, PAPER = "#010101", "#020202", "#030303"
SERIES = [f"#0401{i:02x}" for i in range(8)]
_COLOURS = {INK: "--ink", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--series{i}" for i, colour in enumerate(SERIES)
}
"""Stand for the page's colours, which depend on light and dark."""
OWN, PEER = SERIES[0], SERIES[1]
MARKERS = "osD^vPX*"
LINES = ["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2))]


@contextmanager
def in_our_style() -> Iterator[None]:
    """For all that is drawn meanwhile. Raises ``UserError`` where matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UserError(
            'pictures need matplotlib: pip install "edgespec[bench]"; report.md is written'
        ) from error
    settings: dict[str, Any] = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "edgespec",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.6,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
        ),
    }
    with mpl.rc_context(settings):
        yield


def new_figure(height: float) -> tuple[Figure, Axes]:
    """``height`` in pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height / 72), layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Figure, name: str) -> str:
    """To be put into a page: no prolog, no size of its own, no id that another picture has too."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    inside = text[text.index(">", text.index("<svg")) + 1 :]
    for colour, variable in _COLOURS.items():
        inside = inside.replace(colour, f"var({variable})")
    ids = dict.fromkeys(re.findall(r'(?<=url\(#)\w+|(?<=href="#)\w+', inside))
    inside = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", inside, flags=re.DOTALL)
    inside = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in ids else "", inside)
    for i, old in enumerate(ids):
        inside = re.sub(rf'(id="|#){old}\b', rf"\g<1>{name}-{i}", inside)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    return f'<svg role="img" {box[0]}>{inside.strip()}'


def on_two_lines(name: str) -> str:
    return textwrap.fill(name, 24, max_lines=2, placeholder="…")


def shortened(name: str) -> str:
    return textwrap.shorten(name, 44, placeholder="…")


def bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [on_two_lines(name) for name in names], fontsize=9.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
