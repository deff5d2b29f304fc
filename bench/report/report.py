"""``report.md`` and ``report.html`` of a run: the same sections, the page with pictures; and ``rates.svg``, the first
of them, to be shown elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edgespec.bench.records.results import PLAIN, Results, System
from edgespec.bench.report import metrics, plots
from edgespec.bench.report.conclusions import conclusions
from edgespec.bench.report.formatting import UNKNOWN, estimated, gigabytes, number, percent, three
from edgespec.bench.report.intervals import Estimate
from edgespec.bench.report.layout import Block, Pictures, Section, Table, html, markdown, standalone
from edgespec.bench.report.metrics import Metrics
from edgespec.bench.report.plots import Found, Missing, Picture
from edgespec.errors import UserError

_WIDE = 5
"""Categories in one table: more do not fit on paper."""


def write_report(results: Results, folder: Path) -> None:
    """All three. Raises ``UserError`` where they cannot be written, or matplotlib is missing."""
    found = {
        (name, category): measure
        for category in metrics.groups(results)
        for name in results.systems
        if (measure := metrics.measure(results, name, category)).answers
    }
    title = f"edgespec bench: {results.model.get('name', 'a model')}"
    before, after = conclusions(results, found), _details(results, found)
    _write(folder / "report.md", markdown(title, [*before, *after]))
    drawn = list(plots.pictures(results, found))
    if isinstance(drawn[0], Picture):
        _write(folder / "rates.svg", standalone(drawn[0].plots[0][1]))
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


# the tables


def _details(results: Results, found: Found) -> list[Section]:
    groups = metrics.groups(results)
    return [
        (
            "Decode tokens/s",
            [
                "Median over prompts, the first tokens of an answer not counted; in brackets the interval of 95 % "
                "over prompts. A system with missing answers is measured on the answers that it gave.",
                *_by_group(found, groups, lambda m: m.rate),
            ],
        ),
        (
            "Speed-up",
            [
                "Decode tokens/s over those of another system for the same prompt, turn and round: geometric "
                "means.",
                "Over its own plain decoding:",
                *_by_group(found, groups, lambda m: m.against_baseline),
                f"Over {PLAIN}:",
                *_by_group(found, groups, lambda m: m.against_plain),
                _resolution(results),
            ],
        ),
        ("Speculation", _speculation(results, found)),
        ("Waiting, memory, work and energy", _costs(results, found)),
        ("What was run", _systems(results, found)),
        ("What went wrong", [_failures(results)]),
        ("Machine, model and settings", [_facts(results)]),
    ]


def _by_group(
    found: Found, groups: Sequence[str | None], figure: Callable[[Metrics], Estimate | None]
) -> Iterator[Block]:
    names = list(dict.fromkeys(n for (n, c), m in found.items() if c is None and figure(m)))
    for start in range(0, len(groups), _WIDE + 1):
        part = groups[start : start + _WIDE + 1]
        rows = [
            [n, *(estimated(figure(found[n, c]) if (n, c) in found else None) for c in part)]
            for n in names
        ]
        if rows:
            yield Table(["", *(c or "all" for c in part)], rows)
    if not names:
        yield "Nothing was measured."


def _resolution(results: Results) -> str:
    noise = metrics.noise(results)
    if noise is None:
        return "There are too few answers to measure how noisy the machine was."
    counts = [
        len(metrics.of(results, noise.system, category)) for category in metrics.categories(results)
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
        by_drafter = [f"{d} {estimated(a, percent)}" for d, a in m.alpha_by_drafter.items()]
        rows.append(
            [
                name,
                estimated(m.tau),
                estimated(m.alpha, percent),
                "; ".join(by_drafter) if len(by_drafter) > 1 else "",
                estimated(m.mbsu_bytes),
                estimated(m.mbsu_parameters),
                estimated(m.against_baseline),
                estimated(m.gain),
                f"{m.passes:,}" if m.passes is not None else UNKNOWN,
                f"{m.worst.prompt}, {m.worst.category}: {three(m.worst.ratio)}×"
                if m.worst
                else UNKNOWN,
            ]
        )
    if not rows:
        return ["No system reported what it drafted."]
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
        "passes: over as many passes over one token, in the same process, so that differences between processes cancel out.",
        Table([*headers, "worst prompt"], rows),
    ]


def _costs(results: Results, found: Found) -> list[Block]:
    rows = [
        [
            name,
            estimated(m.ttft_s),
            gigabytes(system.peak_memory_bytes),
            estimated(m.cpu_s_per_token),
            estimated(m.energy_j_per_token),
            number(system.open_s),
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
    reference = results.systems.get(PLAIN)
    rows = []
    for name, system in results.systems.items():
        m = found.get((name, None))
        equal = m.equality if m else None
        rows.append(
            [
                name,
                system.version or UNKNOWN,
                system.weights or UNKNOWN,
                _perplexity(system, reference),
                f"{estimated(equal.share, percent)} of {equal.answers}" if equal else UNKNOWN,
                (system.words or system.baseline or UNKNOWN) if equal else UNKNOWN,
                number(equal.common) if equal else UNKNOWN,
                ", ".join(f"{k}={v}" for k, v in system.settings.items() if v is not None)
                or UNKNOWN,
            ]
        )
    headers = ["", "version", "weights", "perplexity", "equal answers", "equal to"]
    return [
        "Perplexity is measured where weights were converted, over the same text: a faster system with a higher "
        "perplexity is not comparable. Equal answers are greedy ones with the same tokens as that system's; of the others the "
        "median position of the first difference.",
        Table([*headers, "first difference at token", "settings"], rows, words=True),
    ]


def _perplexity(system: System, reference: System | None) -> str:
    if system.perplexity is None:
        return UNKNOWN
    if reference is None or reference is system or not reference.perplexity:
        return f"{system.perplexity:.3f}"
    return f"{system.perplexity:.3f} ({system.perplexity / reference.perplexity - 1:+.1%})"


def _failures(results: Results) -> list[str]:
    lines = [f"{name}: {line}" for name, s in results.systems.items() for line in s.failures]
    asked = {(a.prompt, a.turn, a.round) for a in results.answers}
    for name in results.systems:
        if missing := len(asked) - len(metrics.of(results, name)):
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
        ("memory", gigabytes(machine.get("memory_bytes"))),
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
    return f"{model.get('name')}, {gigabytes(size if isinstance(size, int) else None)}, SHA-256 {model.get('sha256')}"
