"""The conclusions of a run: the first sections of its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgespec.bench.records.results import AS_IN_FILE, PLAIN, Results
from edgespec.bench.report import metrics
from edgespec.bench.report.formatting import estimated, three
from edgespec.bench.report.intervals import Estimate
from edgespec.bench.report.layout import Block, Section, Table, Warned
from edgespec.bench.report.plots import Found


def conclusions(results: Results, found: Found) -> list[Section]:
    """The sections that come first."""
    first: list[Block] = []
    if warning := metrics.noise_warning(results):
        first.append(Warned(f"{warning[0].upper()}{warning[1:]}."))
    first += _in_short(results, found)
    return [("In short", first), ("Where edgespec loses", [_losses(results, found)])]


def _in_short(results: Results, found: Found) -> list[Block]:
    own = [name for name in _answered(found) if results.systems[name].is_own]
    others = [name for name in _answered(found) if name not in own or name == PLAIN]
    best = _best(results, found, None)
    if best is None or others in ([], own):
        return ["No system of edgespec was measured beside another."]
    rows = [
        [name, *(estimated(metrics.ratio(results, name, o)) if o != name else "" for o in others)]
        for name in own
    ]
    return [
        f"{best} is the fastest of edgespec here. Decode tokens/s over those of the others:",
        Table(["", *others], rows),
    ]


def _answered(found: Found) -> list[str]:
    return [name for name, category in found if category is None]


def _peers(results: Results, found: Found) -> list[str]:
    return [name for name in _answered(found) if not results.systems[name].is_own]


def _best(results: Results, found: Found, category: str | None) -> str | None:
    """The system of edgespec with the highest rate."""
    rates = {
        name: estimate.value
        for (name, c), m in found.items()
        if c == category and results.systems[name].is_own and (estimate := m.rate)
    }
    return max(rates, key=lambda name: rates[name], default=None)


def _losses(results: Results, found: Found) -> list[str]:
    """Where a peer is ahead of the best of edgespec, and where speculation is slower than plain decoding."""
    groups = metrics.groups(results)
    lines = []
    best = {category: _best(results, found, category) for category in groups}
    for name in _peers(results, found):
        ratios = [(c, own, metrics.ratio(results, name, own, c)) for c, own in best.items() if own]
        ahead = [(f"{_place(c)} ({own})", r) for c, own, r in ratios if r and r.value > 1]
        if ahead:
            lines.append(
                f"{name} decodes faster than the best of edgespec. {_times(ahead)}{_other_weights(results, name)}"
            )
    for name, system in results.systems.items():
        if system.is_own and system.baseline:
            own_ratios = {c: found[name, c].against_baseline for c in groups if (name, c) in found}
            behind = [(_place(c), r) for c, r in own_ratios.items() if r and r.value < 1]
            if behind:
                lines.append(f"{name} decodes slower than {system.baseline}. {_times(behind)}")
    figures: list[tuple[str, str, Callable[[str], float | None]]] = [
        ("Sooner", "s to the first token", lambda n: _value(found[n, None].ttft_s)),
        ("Less memory", "GB", lambda n: (results.systems[n].peak_memory_bytes or 0) / 1e9),
        ("Less energy", "J a token", lambda n: _value(found[n, None].energy_j_per_token)),
    ]
    for what, unit, figure in figures:
        values = {n: value for n, c in found if c is None and (value := figure(n))}
        own_names = [n for n in values if results.systems[n].is_own]
        least = min(own_names, key=lambda n: values[n], default=None)
        if least is not None:
            ahead_names = [n for n in values if values[n] < values[least] and n not in own_names]
            if ahead_names:
                listed = ", ".join(f"{n} {three(values[n])}" for n in ahead_names)
                lines.append(
                    f"{what} ({unit}): {listed}; the least of edgespec is {least} {three(values[least])}."
                )
    return lines or ["In nothing that was measured here."]


def _place(category: str | None) -> str:
    return category or "all categories"


def _times(places: Sequence[tuple[str, Estimate]]) -> str:
    """What is sure first."""
    parts = []
    for title, chance in (("Times as fast", False), ("Within noise", True)):
        listed = [
            f"{where} {three(r.value)}" for where, r in places if (r.low <= 1 <= r.high) is chance
        ]
        if listed:
            parts.append(f"{title}: {', '.join(listed)}.")
    return " ".join(parts)


def _other_weights(results: Results, name: str) -> str:
    weights = results.systems[name].weights
    return f" It runs other weights: {weights}." if weights and AS_IN_FILE not in weights else ""


def _value(estimate: Estimate | None) -> float | None:
    return estimate.value if estimate else None
