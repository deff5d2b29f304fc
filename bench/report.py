"""``report.md`` and ``report.html`` of a run: the same sections, the page with pictures; and ``rates.svg``, the first
of them, to be shown elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgespec.bench import measures, plots
from edgespec.bench.drawing import three
from edgespec.bench.intervals import Estimate
from edgespec.bench.layout import Block, Pictures, Section, Table, Warned, alone, html, markdown
from edgespec.bench.measures import Measures
from edgespec.bench.plots import Found, Missing, Picture
from edgespec.bench.records import Results, System
from edgespec.errors import UserError

_OWN = "edgespec"
_AS_IN_FILE = "as in the file"
_WIDE = 5
"""Categories in one table: more do not fit on paper."""


def write_report(results: Results, folder: Path) -> None:
    """All three. Raises ``UserError`` where they cannot be written, or matplotlib is missing."""
    categories = measures.categories(results)
    found = {
        (name, category): measure
        for category in (None, *categories)
        for name in results.systems
        if (measure := measures.measure(results, name, category)).answers
    }
    title = f"edgespec bench: {results.model.get('name', 'a model')}"
    before, after = _summary(results, found), _details(results, found)
    _write(folder / "report.md", markdown(title, [*before, *after]))
    drawn = list(plots.pictures(results, found))
    if isinstance(drawn[0], Picture):
        _write(folder / "rates.svg", alone(drawn[0].plots[0][1]))
    _write(folder / "report.html", html(title, [*before, _drawn(drawn), *after]))


def _drawn(found: Sequence[Picture | Missing]) -> Section:
    pictures = [p for p in found if isinstance(p, Picture)]
    blocks: list[Block] = [p for p in pictures if len(p.plots) > 1]
    blocks.append(Pictures([p for p in pictures if len(p.plots) == 1]))
    missing = [f"{m.title}: {m.why}" for m in found if isinstance(m, Missing)]
    return "Pictures", [*blocks, "Not drawn:", missing] if missing else blocks


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


# what is said


def _summary(results: Results, found: Found) -> list[Section]:
    first: list[Block] = []
    if warning := measures.noise_warning(results):
        first.append(Warned(f"{warning[0].upper()}{warning[1:]}."))
    first += _in_short(results, found)
    return [("In short", first), ("Where edgespec loses", [_losses(results, found)])]


def _in_short(results: Results, found: Found) -> list[Block]:
    own = [name for name in _answered(found) if results.systems[name].peer == _OWN]
    others = [name for name in _answered(found) if name not in own or name == measures.PLAIN]
    best = _best(results, found, None)
    if best is None or others in ([], own):
        return ["No system of edgespec was measured beside another."]
    rows = [
        [name, *(_estimate(measures.ratio(results, name, o)) if o != name else "" for o in others)]
        for name in own
    ]
    return [
        f"{best} is the fastest of edgespec here. Decode tokens/s over those of the others:",
        Table(["", *others], rows),
    ]


def _answered(found: Found) -> list[str]:
    return [name for name, category in found if category is None]


def _peers(results: Results, found: Found) -> list[str]:
    return [name for name in _answered(found) if results.systems[name].peer != _OWN]


def _best(results: Results, found: Found, category: str | None) -> str | None:
    """The system of edgespec with the highest rate."""
    rates = {
        name: estimate.value
        for (name, c), m in found.items()
        if c == category and results.systems[name].peer == _OWN and (estimate := m.rate)
    }
    return max(rates, key=lambda name: rates[name], default=None)


def _losses(results: Results, found: Found) -> list[str]:
    """Where a peer is ahead of the best of edgespec, and where speculation is slower than plain decoding."""
    categories = [None, *measures.categories(results)]
    lines = []
    best = {category: _best(results, found, category) for category in categories}
    for name in _peers(results, found):
        ratios = [(c, own, measures.ratio(results, name, own, c)) for c, own in best.items() if own]
        ahead = [(f"{_place(c)} ({own})", r) for c, own, r in ratios if r and r.value > 1]
        if ahead:
            lines.append(
                f"{name} decodes faster than the best of edgespec. {_times(ahead)}{_other_weights(results, name)}"
            )
    for name, system in results.systems.items():
        if system.peer == _OWN and system.baseline:
            own_ratios = {
                c: found[name, c].against_baseline for c in categories if (name, c) in found
            }
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
        own_names = [n for n in values if results.systems[n].peer == _OWN]
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
    return f" It runs other weights: {weights}." if weights and _AS_IN_FILE not in weights else ""


def _details(results: Results, found: Found) -> list[Section]:
    categories = measures.categories(results)
    return [
        (
            "Decode tokens/s",
            [
                "Median over prompts, the first tokens of an answer not counted; in brackets the interval of 95 % "
                "over prompts. A system that lacks answers is measured on those that it gave.",
                *_by_category(found, categories, lambda m: m.rate),
            ],
        ),
        (
            "Speed-up",
            [
                "Decode tokens/s over those of another system for the same prompt, turn and round: geometric "
                "means.",
                "Over its own plain decoding:",
                *_by_category(found, categories, lambda m: m.against_baseline),
                f"Over {measures.PLAIN}:",
                *_by_category(found, categories, lambda m: m.against_plain),
                _resolution(results),
            ],
        ),
        ("Speculation", _speculation(results, found)),
        ("Waiting, memory, work and energy", _costs(results, found)),
        ("What was run", _systems(results, found)),
        ("What went wrong", [_failures(results)]),
        ("Machine, model and settings", [_facts(results)]),
    ]


def _by_category(
    found: Found, categories: Sequence[str], figure: Callable[[Measures], Estimate | None]
) -> Iterator[Block]:
    names = list(dict.fromkeys(n for (n, c), m in found.items() if c is None and figure(m)))
    columns = [None, *categories] if len(categories) > 1 else [None]
    for start in range(0, len(columns), _WIDE + 1):
        part = columns[start : start + _WIDE + 1]
        rows = [
            [n, *(_estimate(figure(found[n, c]) if (n, c) in found else None) for c in part)]
            for n in names
        ]
        if rows:
            yield Table(["", *(c or "all" for c in part)], rows)
    if not names:
        yield "Nothing was measured."


def _resolution(results: Results) -> str:
    noise = measures.noise(results)
    if noise is None:
        return "There are too few answers to tell how noisy the machine was."
    counts = [
        len(measures.of(results, noise.system, category))
        for category in measures.categories(results)
    ]
    return (
        f"Neighbouring answers of {noise.system} differ by {noise.scatter:.1%} beyond what prompts explain, and "
        f"its rate moved by {noise.drift:.0%} within the run. In the smallest category ({min(counts)} answers a "
        f"system) noise alone makes a difference of {noise.resolution(min(counts)):.1%}. Intervals also hold "
        "what differs from prompt to prompt."
    )


def _speculation(results: Results, found: Found) -> list[Block]:
    rows = []
    for name in results.systems:
        m = found.get((name, None))
        if m is None or not (m.tau or m.alpha):
            continue
        by_drafter = [f"{d} {_estimate(a, percent=True)}" for d, a in m.alpha_by_drafter.items()]
        rows.append(
            [
                name,
                _estimate(m.tau),
                _estimate(m.alpha, percent=True),
                "; ".join(by_drafter) if len(by_drafter) > 1 else "",
                _estimate(m.mbsu_bytes),
                _estimate(m.mbsu_parameters),
                _estimate(m.against_baseline),
                _estimate(m.gain),
                f"{m.passes:,}" if m.passes is not None else "–",
                f"{m.worst.prompt}, {m.worst.category}: {three(m.worst.ratio)}×"
                if m.worst
                else "–",
            ]
        )
    if not rows:
        return ["No system told what it drafted."]
    headers = [
        "",
        "τ",
        "α",
        "α by drafter",
        "MBSU, bytes",
        "MBSU, parameters",
        "measured",
        "beside its own passes",
        "passes",
    ]
    return [
        "τ: tokens a target pass; α: accepted of drafted; MBSU: τ / (1 + draft passes a target pass · c), the "
        "speed-up of a device that only reads memory, c being the draft's share of the target's bytes or "
        "parameters; measured: over its own plain decoding, here; the worst prompt is by that; beside its own "
        "passes: over as many passes over one token, in the same process, whose luck is then no part of it.",
        Table([*headers, "worst prompt"], rows),
    ]


def _costs(results: Results, found: Found) -> list[Block]:
    rows = [
        [
            name,
            _estimate(m.ttft_s),
            _bytes(system.peak_memory_bytes),
            _estimate(m.cpu_s_per_token),
            _estimate(m.energy_j_per_token),
            _number(system.open_s),
        ]
        for name, system in results.systems.items()
        if (m := found.get((name, None)))
    ]
    energy = results.energy
    blocks: list[Block] = []
    if any(m.energy_j_per_token for m in found.values()):
        error = f"{energy['error']:.1%}" if energy.get("error") else "unknown"
        rest = f"{idle:.1f} W" if (idle := energy.get("idle_w")) is not None else "draw"
        blocks.append(
            f"Energy is read from {energy['reader']}; the {rest} at rest is subtracted. Sampling error of one "
            f"answer: {error}."
        )
    else:
        blocks.append(f"Energy was not measured: {plots.why_no_energy(results)}.")
    headers = [
        "",
        "time to first token, s",
        "peak memory",
        "CPU s a token",
        "J a token",
        "opening, s",
    ]
    return [*blocks, Table(headers, rows)]


def _systems(results: Results, found: Found) -> list[Block]:
    reference = results.systems.get(measures.PLAIN)
    rows = []
    for name, system in results.systems.items():
        m = found.get((name, None))
        equal = m.equality if m else None
        rows.append(
            [
                name,
                system.version or "–",
                system.weights or "–",
                _perplexity(system, reference),
                f"{_estimate(equal.share, percent=True)} of {equal.answers}" if equal else "–",
                (system.words or system.baseline or "–") if equal else "–",
                _number(equal.common) if equal else "–",
                ", ".join(f"{k}={v}" for k, v in system.settings.items() if v is not None) or "–",
            ]
        )
    headers = ["", "version", "weights", "perplexity", "equal answers", "equal to"]
    return [
        "Perplexity is measured where weights were converted, over the same text: speed bought with quality is no "
        "speed. Equal answers are greedy ones with the same tokens as that system's; of the others the median "
        "number of tokens before they part from it.",
        Table([*headers, "tokens before they part", "settings"], rows, words=True),
    ]


def _perplexity(system: System, reference: System | None) -> str:
    if system.perplexity is None:
        return "–"
    if reference is None or reference is system or not reference.perplexity:
        return f"{system.perplexity:.3f}"
    return f"{system.perplexity:.3f} ({system.perplexity / reference.perplexity - 1:+.1%})"


def _failures(results: Results) -> list[str]:
    lines = [f"{name}: {line}" for name, s in results.systems.items() for line in s.failures]
    asked = {(a.prompt, a.turn, a.round) for a in results.answers}
    for name in results.systems:
        if missing := len(asked) - len(measures.of(results, name)):
            lines.append(f"{name}: {missing} of {len(asked)} answers are missing")
    return lines or ["Nothing."]


def _facts(results: Results) -> Table:
    machine, model = results.machine, results.model
    draft = model.get("draft")
    facts: list[tuple[str, object]] = [
        ("command", results.settings.get("command")),
        ("model", _model(model)),
        ("draft model", _model(draft) if draft else None),
        ("processor", machine.get("cpu")),
        ("cores", machine.get("cores")),
        ("frequency", f"{f / 1e9:.2f} GHz" if (f := machine.get("frequency_hz")) else None),
        ("memory", _bytes(machine.get("memory_bytes"))),
        (
            "memory bandwidth, measured",
            f"{b / 1e9:.1f} GB/s" if (b := machine.get("bandwidth")) else None,
        ),
        ("power", machine.get("power")),
        ("memory pages", machine.get("pages")),
        ("system", machine.get("system")),
        ("Python", machine.get("python")),
        *sorted((machine.get("versions") or {}).items()),
        *((k.replace("_", " "), v) for k, v in results.settings.items() if k != "command"),
    ]
    return Table(["", ""], [[k, str(v)] for k, v in facts if v is not None], words=True)


def _model(model: dict[str, object]) -> str:
    size = model.get("bytes")
    return f"{model.get('name')}, {_bytes(size if isinstance(size, int) else None)}, SHA-256 {model.get('sha256')}"


# figures in words


def _value(estimate: Estimate | None) -> float | None:
    return estimate.value if estimate else None


def _number(value: float | None) -> str:
    return "–" if value is None else three(value)


def _estimate(estimate: Estimate | None, percent: bool = False) -> str:
    if estimate is None:
        return "–"
    value, low, high = estimate.value, estimate.low, estimate.high
    if percent:
        return f"{value:.0%}" + (f" ({low:.0%}–{high:.0%})" if low < value or value < high else "")
    return three(value) + (
        f" ({three(low)}–{three(high)})" if math.isfinite(low) and low < high else ""
    )


def _bytes(size: int | None) -> str:
    return "–" if not size else f"{size / 1e9:.2f} GB"
