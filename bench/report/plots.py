"""Plots of a run. Where data is missing, a sentence explains why there is no plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgespec.bench.records.results import Results
from edgespec.bench.report import intervals, metrics
from edgespec.bench.report.drawing import (
    INK,
    LINES,
    MARKERS,
    OWN,
    PAPER,
    PEER,
    SERIES,
    bars,
    in_our_style,
    new_figure,
    on_two_lines,
    shortened,
    svg,
)
from edgespec.bench.report.formatting import three
from edgespec.bench.report.intervals import Estimate
from edgespec.bench.report.metrics import Metrics

Found = Mapping[tuple[str, str | None], Metrics]
"""By system and category, ``None`` for all."""

_FEWEST_STEPS = 20
"""With fewer steps of a length, its τ is not drawn."""


@dataclass(frozen=True)
class Picture:
    """Plots under one heading: for each its title and SVG."""

    title: str
    caption: str
    plots: list[tuple[str, str]]


@dataclass(frozen=True)
class Missing:
    """Why there is no picture."""

    title: str
    why: str


def pictures(results: Results, found: Found) -> Iterator[Picture | Missing]:
    """All. Raises ``UserError`` where matplotlib is not installed."""
    with in_our_style():
        yield _rates(results, found)
        yield _ratios(results, found)
        yield _curves(results)
        yield _block_efficiency(results)
        yield _steps(results)
        yield _memory(results)
        yield _energy(results, found)
        yield _operators(results)


def _style(results: Results, name: str) -> tuple[str, str]:
    """Colour, and what fills its mark: plain decoding is hollow."""
    system = results.systems[name]
    colour = OWN if system.is_own else PEER
    plain = system.baseline is None or system.settings.get("draft") == "none"
    return colour, PAPER if plain else colour


def _dots(
    results: Results,
    rows: Sequence[tuple[str, Estimate]],
    name: str,
    label: str,
    most: float | None = None,
    line: float | None = None,
) -> str:
    """A system a line: its figure as a dot, its interval as a bar, and the figure in words at the right."""
    height = 25 if any("\n" in on_two_lines(system) for system, _ in rows) else 19
    figure, axes = new_figure(46 + height * len(rows))
    for y, (system, estimate) in enumerate(rows):
        colour, fill = _style(results, system)
        if math.isfinite(estimate.low):
            axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=2.2)
        axes.plot([estimate.value], [y], "o", color=colour, markerfacecolor=fill)
        axes.annotate(
            three(estimate.value),
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9.5,
        )
    if line is not None:
        axes.axvline(line, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    bars(axes, [system for system, _ in rows])
    axes.set_xlim(0, most)
    axes.set_xlabel(label)
    return svg(figure, name)


def _estimates(
    found: Found, category: str | None, figure: Callable[[Metrics], Estimate | None]
) -> list[tuple[str, Estimate]]:
    rows = [(name, figure(m)) for (name, c), m in found.items() if c == category]
    return [(name, estimate) for name, estimate in rows if estimate is not None]


def _rates(results: Results, found: Found) -> Picture | Missing:
    title = "Decode tokens/s"
    rows = {c: _estimates(found, c, lambda m: m.rate) for c in metrics.groups(results)}
    ends = [e.high if math.isfinite(e.high) else e.value for r in rows.values() for _, e in r]
    if not ends:
        return Missing(title, "No system gave an answer that came in parts.")
    plots = [
        (
            category or "all categories",
            _dots(results, found_, f"rates-{i}", "tokens/s", 1.04 * max(ends)),
        )
        for i, (category, found_) in enumerate(rows.items())
        if found_
    ]
    caption = (
        "Median over prompts, with its interval of 95 %. Blue: edgespec; orange: its peers; hollow: plain "
        "decoding. More is better; all have the same scale."
    )
    return Picture(title, caption, plots)


def _ratios(results: Results, found: Found) -> Picture | Missing:
    title = "Speed-up over own plain decoding"
    rows = _estimates(found, None, lambda m: m.against_baseline)
    if not rows:
        return Missing(title, "No system was measured together with its plain decoding.")
    caption = (
        "Geometric mean over pairs of answers to the same prompt in the same round, with its interval. Left of "
        "the line speculation loses."
    )
    return Picture(
        title,
        caption,
        [("all categories", _dots(results, rows, "ratios", "times plain decoding", line=1.0))],
    )


def _curves(results: Results) -> Picture | Missing:
    title = "Latency of a pass over n tokens: R(n)"
    curves = {
        name: {n: float(np.median(s)) for n, s in sorted(curve.items()) if s}
        for name, curve in results.curves.items()
    }
    curves = {name: curve for name, curve in curves.items() if curve.get(1)}
    if not curves:
        return Missing(title, "No pass was timed by its length in this run.")
    figure, axes = new_figure(270)
    for i, (name, curve) in enumerate(curves.items()):
        axes.plot(
            list(curve),
            [seconds / curve[1] for seconds in curve.values()],
            color=SERIES[i % 8],
            marker=MARKERS[i % 8],
            linestyle=LINES[i % 8],
            label=shortened(name),
        )
    sizes = sorted({n for curve in curves.values() for n in curve})
    axes.set_xticks(sizes)
    axes.axhline(1, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_ylim(0, None)
    axes.set_xlabel("n, tokens in a pass")
    axes.set_ylabel("R(n), times a pass over one")
    figure.legend(loc="outside upper left", ncols=2)
    caption = (
        "Medians. On the dashed line tokens after the first cost nothing, as if only reading the weights took "
        "time; the steeper a curve, the less a draft may be wrong."
    )
    return Picture(title, caption, [("", svg(figure, "curves"))])


def _by_rows(results: Results, name: str) -> dict[int, Estimate]:
    """τ by γ."""
    reported: dict[int, dict[int, list[float]]] = {}
    for answer in metrics.of(results, name):
        for rows, (steps, tokens, _) in answer.by_rows.items():
            sums = reported.setdefault(rows - 1, {}).setdefault(answer.prompt, [0.0, 0.0])
            sums[0] += tokens
            sums[1] += steps
    tables = {
        gamma: np.array(list(prompts.values())) for gamma, prompts in sorted(reported.items())
    }
    return {
        gamma: estimate
        for gamma, table in tables.items()
        if table[:, 1].sum() >= _FEWEST_STEPS
        and (estimate := intervals.bootstrap(table, intervals.quotient))
    }


def _block_efficiency(results: Results) -> Picture | Missing:
    title = "τ against γ"
    found = {name: _by_rows(results, name) for name in results.systems}
    found = {name: lengths for name, lengths in found.items() if set(lengths) - {0}}
    if not found:
        return Missing(title, "No system that drafts reported how long its drafts were.")
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(270 + 8 * len(found))
    most = max(gamma for lengths in found.values() for gamma in lengths)
    for i, (name, lengths) in enumerate(list(found.items())[:8]):
        shift = 0.06 * (i - (len(found) - 1) / 2)
        for gamma, estimate in lengths.items():
            if math.isfinite(estimate.low):
                axes.plot(
                    [gamma + shift] * 2,
                    [estimate.low, estimate.high],
                    color=SERIES[i],
                    linewidth=1,
                )
        axes.plot(
            [gamma + shift for gamma in lengths],
            [estimate.value for estimate in lengths.values()],
            color=SERIES[i],
            marker=MARKERS[i],
            markersize=5,
            linestyle=LINES[i],
            label=shortened(name),
        )
    top = max(e.value for lengths in found.values() for e in lengths.values())
    axes.plot([0, most], [1, most + 1], color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1.25 * top)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("γ, tokens drafted for a pass")
    axes.set_ylabel("τ, tokens per pass")
    figure.legend(loc="outside upper left", ncols=2 if max(map(len, found)) < 20 else 1)
    left_out = f" {len(found) - 8} more systems are not drawn." if len(found) > 8 else ""
    caption = (
        "On the dashed line every draft is right. A scheduler drafts long where it expects to be right: this is "
        f"not what any one γ would give. Lengths with fewer than {_FEWEST_STEPS} steps are left out.{left_out}"
    )
    return Picture(title, caption, [("", svg(figure, "tau"))])


_PARTS = (("drafting", "draft_s"), ("pass", "pass_s"), ("overhead", "own_s"))


def _steps(results: Results) -> Picture | Missing:
    title = "Time of a step by part"
    found: dict[str, list[float]] = {}
    for name in results.systems:
        reported = [
            a
            for a in metrics.of(results, name)
            if a.passes and None not in (a.draft_s, a.pass_s, a.own_s)
        ]
        if passes := sum(a.passes or 0 for a in reported):
            found[name] = [
                1e3 * sum(getattr(a, part) for a in reported) / passes for _, part in _PARTS
            ]
    if not found:
        return Missing(title, "No system reported how long it drafts and how long its passes take.")
    figure, axes = new_figure(72 + 25 * len(found))
    left = np.zeros(len(found))
    for i, (part, _) in enumerate(_PARTS):
        width = np.array([parts[i] for parts in found.values()])
        axes.barh(
            range(len(found)),
            width,
            0.62,
            left,
            color=SERIES[(2, 0, 1)[i]],
            edgecolor=PAPER,
            linewidth=0.8,
            hatch=("////", "", "...")[i],
            label=part,
        )
        left += width
    for y, total in enumerate(left):
        axes.annotate(f" {three(total)}", (total, y), va="center", fontsize=9.5)
    bars(axes, list(found))
    axes.set_xlim(0, 1.12 * left.max())
    axes.set_xlabel("ms a step")
    figure.legend(loc="outside upper left", ncols=3)
    silent = [name for name in results.systems if name not in found]
    caption = "Means over all steps." + (
        f" Not reported by: {', '.join(map(shortened, silent))}." if silent else ""
    )
    return Picture(title, caption, [("", svg(figure, "steps"))])


def _memory(results: Results) -> Picture | Missing:
    title = "Memory over time"
    found = {name: system.memory for name, system in results.systems.items() if system.memory}
    if not found:
        return Missing(title, "No system's memory was watched.")
    end = max(at for samples in found.values() for at, _ in samples) or 1.0
    most = max(size for samples in found.values() for _, size in samples) or 1.0
    figure, axes = new_figure(46 + 27 * len(found))
    for y, (name, samples) in enumerate(found.items()):
        times, sizes = np.array(_thinned(samples, end)).T
        top = y + 0.4 - 0.8 * sizes / most
        axes.fill_between(
            times / 60, y + 0.4, top, color=_style(results, name)[0], linewidth=0, alpha=0.35
        )
        axes.plot(times / 60, top, color=_style(results, name)[0], linewidth=1)
        axes.annotate(
            f"{sizes.max() / 1e9:.2f}",
            (1.01, y),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9.5,
        )
    bars(axes, list(found))
    axes.set_xlim(0, end / 60)
    axes.set_xlabel("minutes since the run began")
    axes.grid(visible=False)
    caption = (
        "Resident memory of each system's processes while it answered, all to the same scale; at the right "
        "the largest, in GB."
    )
    return Picture(title, caption, [("", svg(figure, "memory"))])


def _thinned(samples: Sequence[Sequence[float]], end: float) -> list[tuple[float, float]]:
    """The largest of each of 200 parts of the run."""
    parts: dict[int, tuple[float, float]] = {}
    for at, size in samples:
        part = int(200 * at / end)
        parts[part] = max(parts.get(part, (at, size)), (at, size), key=lambda sample: sample[1])
    return [parts[part] for part in sorted(parts)]


def _energy(results: Results, found: Found) -> Picture | Missing:
    title = "Energy of a token"
    rows = _estimates(found, None, lambda m: m.energy_j_per_token)
    if not rows:
        return Missing(title, f"Energy was not measured: {why_no_energy(results)}.")
    error = results.energy.get("error")
    caption = (
        f"Read from {results.energy['reader']}, the draw at rest subtracted, from the request to the last token. "
        "Less is better."
    )
    caption += f" Sampling error of one answer: {error:.1%}." if error else ""
    return Picture(
        title, caption, [("all categories", _dots(results, rows, "energy", "joules a token"))]
    )


def why_no_energy(results: Results) -> str:
    """Half a sentence."""
    why_not = str(results.energy.get("why_not") or "no answer has a figure")
    return "; ".join(why_not.splitlines()).rstrip(".")


def _operators(results: Results) -> Picture | Missing:
    title = "Time of a pass by operator"
    if not results.profile or not results.profile["operators"]:
        return Missing(title, "No pass was profiled; --profile does.")
    operators = sorted(results.profile["operators"], key=lambda o: -o["seconds"])
    whole = sum(o["seconds"] for o in operators) or 1.0
    rows = [(f"{o['name']} ×{o['count']:.0f}", o["seconds"]) for o in operators[:10]]
    if rest := operators[10:]:
        rows.append((f"{len(rest)} others", sum(o["seconds"] for o in rest)))
    figure, axes = new_figure(46 + 25 * len(rows))
    axes.barh(range(len(rows)), [1e3 * seconds for _, seconds in rows], 0.62, color=OWN)
    for y, (_, seconds) in enumerate(rows):
        axes.annotate(
            f" {1e3 * seconds:.2f} ({seconds / whole:.0%})",
            (1e3 * seconds, y),
            va="center",
            fontsize=9.5,
        )
    bars(axes, [name for name, _ in rows])
    axes.set_xlim(0, 1.4e3 * max(seconds for _, seconds in rows))
    axes.set_xlabel("ms a pass over one token")
    profile = results.profile
    caption = (
        f"ONNX Runtime's profiler, plain decoding; a pass took {1e3 * profile['pass_s']:.1f} ms."
    )
    if "floor_s" in profile:
        caption += (
            f" Reading its {profile['bytes'] / 1e9:.2f} GB at the {profile['bandwidth'] / 1e9:.1f} GB/s that was "
            f"measured takes {1e3 * profile['floor_s']:.1f} ms: the pass is "
            f"{profile['pass_s'] / (profile['floor_s'] or math.inf):.2f} times that floor."
        )
    if "own_share" in profile:
        caption += f" Of a step, {profile['own_share']:.1%} is neither drafting nor a pass."
    return Picture(title, caption, [("", svg(figure, "operators"))])
