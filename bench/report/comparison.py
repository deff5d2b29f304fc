"""Compares two runs: what changed, and whether it is more than noise.

A system's figures are divided by those of its plain decoding in the same run, prompt by prompt, before the runs
are compared: a slower machine slows both. Only plain decoding itself has no such reference.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgespec.bench.records.results import PLAIN, Answer, Results
from edgespec.bench.report import intervals, metrics
from edgespec.bench.report.intervals import Estimate, Figures, Statistic
from edgespec.errors import UserError

FLOOR = 0.03
"""A smaller change is called none: two runs of the same thing may differ by as much, prompt for prompt."""
_MAY_DIFFER = ("command", "rounds")
"""Of the settings."""
_EQUAL = "equal answers"
_WIDTH = 110
"""Characters of a table."""


@dataclass(frozen=True)
class Change:
    """A figure of a system in both runs."""

    system: str
    figure: str
    before: float
    after: float
    effect: Estimate
    """After over before; of equal answers, after less before. Over prompts that are in both runs."""
    p: float
    """Chance of so large an effect without a cause, corrected for the number of systems."""
    changed: bool = False
    """More than noise."""

    @property
    def by(self) -> float:
        """The effect's distance from none."""
        return self.effect.value - (self.figure != _EQUAL)


@dataclass(frozen=True)
class Comparison:
    """Changes by figure, and what a reader must know besides."""

    changes: list[Change]
    absolute: list[Change]
    """Tokens/s of plain decoding, which nothing corrects for the machine: never called changed."""
    notes: list[str]
    prompts: int

    @property
    def changed(self) -> list[Change]:
        """Those that are more than noise."""
        return [change for change in self.changes if change.changed]


def compare(a: Results, b: Results) -> Comparison:
    """From ``a`` to ``b``. Raises ``UserError`` for runs of different models, prompts or settings."""
    _refuse(a, b)
    common = {x.prompt for x in a.answers} & {x.prompt for x in b.answers}
    notes = _notes(a, b, len(common))
    a, b = (replace(r, answers=[x for x in r.answers if x.prompt in common]) for r in (a, b))
    names = [name for name in a.systems if name in b.systems]
    families = [
        [_against(a, b, name, "decode tokens/s", metrics.rate) for name in names],
        [_gained(a, b, name) for name in names],
        [_against(a, b, name, "time to first token", lambda x: x.ttft_s) for name in names],
        [_quotient(a, b, name, "τ", lambda x: (x.tokens, x.passes)) for name in names],
        [_quotient(a, b, name, "α", lambda x: (x.accepted, x.drafted)) for name in names],
        [_memory(a, b, name) for name in names],
        [_equality(a, b, name) for name in names],
    ]
    plain = [_absolute(a, b, name) for name in names if a.systems[name].baseline is None]
    changes = [change for family in families for change in _holm(filter(None, family))]
    notes += _common_cause(changes)
    return Comparison(changes, [change for change in plain if change], notes, len(common))


def _refuse(a: Results, b: Results) -> None:
    """Unless both are runs of the same thing."""
    models = [(r.model.get("sha256"), (r.model.get("draft") or {}).get("sha256")) for r in (a, b)]
    for what, one, other in zip(("model", "draft model"), *models, strict=True):
        if one != other:
            names = [(r.model if what == "model" else r.model.get("draft") or {}) for r in (a, b)]
            one_name, other_name = (str(n.get("name", "none")) for n in names)
            raise UserError(
                f"the runs are not of the same {what}: {one_name} ({one}), {other_name} ({other}); "
                "measure both with the same files"
            )
    for key in sorted((a.settings.keys() | b.settings.keys()) - set(_MAY_DIFFER)):
        one, other = a.settings.get(key), b.settings.get(key)
        if one != other:
            raise UserError(
                f"the runs differ in {key}: {one!r}, {other!r}; measure both with the same settings"
            )
    lengths = [
        {(x.prompt, x.category, x.system): x.prompt_tokens for x in r.answers if x.turn == 0}
        for r in (a, b)
    ]
    common = lengths[0].keys() & lengths[1].keys()
    if not common:
        raise UserError("the runs have no answer of the same system to the same prompt in common")
    for prompt, category, system in sorted(common):
        one, other = (found[prompt, category, system] for found in lengths)
        if one != other:
            raise UserError(
                f"the runs are not of the same prompts: prompt {prompt} has {one} tokens for {system} "
                f"in one and {other} in the other"
            )


def _notes(a: Results, b: Results, common: int) -> list[str]:
    notes = []
    for key in ("cpu", "cores", "memory_bytes", "system", "power", "pages"):
        one, other = a.machine.get(key), b.machine.get(key)
        if one != other:
            notes.append(f"different machines: {key} {one}, then {other}")
    versions = [r.machine.get("versions") or {} for r in (a, b)]
    for name in sorted(versions[0].keys() | versions[1].keys()):
        one, other = (found.get(name, "none") for found in versions)
        if one != other:
            notes.append(f"{name} {one}, then {other}")
    for name in dict.fromkeys([*a.systems, *b.systems]):
        if name not in a.systems or name not in b.systems:
            notes.append(f"{name} is only in the {'first' if name in a.systems else 'second'} run")
            continue
        for key in ("version", "weights", "settings", "baseline"):
            one, other = getattr(a.systems[name], key), getattr(b.systems[name], key)
            if one != other:
                notes.append(f"{name}: {key} {one}, then {other}")
    for which, r in (("first", a), ("second", b)):
        asked = len({x.prompt for x in r.answers})
        if asked > common:
            notes.append(f"{asked - common} prompts are only in the {which} run; they do not count")
        if warning := metrics.noise_warning(r):
            notes.append(f"{which} run: {warning}")
    return notes


def _change(system: str, figure: str, rows: Figures, statistic: Statistic) -> Change | None:
    """``rows``: a prompt's figures in the first run, then as many in the second. ``statistic`` is of one run."""
    if not len(rows):
        return None
    half, none = rows.shape[-1] // 2, float(figure != _EQUAL)

    def effect(rows: Figures) -> Figures:
        one, other = statistic(rows[..., :half]), statistic(rows[..., half:])
        return np.asarray(other / one if none else other - one)

    value, samples = intervals.resampled(rows, effect)
    if not np.isfinite(value):
        return None
    tail = min(np.count_nonzero(samples <= none), np.count_nonzero(samples >= none))
    enough = len(rows) >= intervals.FEWEST
    p = min(1.0, 2 * (int(tail) + 1) / (len(samples) + 1)) if enough else 1.0
    before, after = float(statistic(rows[:, :half])), float(statistic(rows[:, half:]))
    estimate = intervals.interval(value, samples, len(rows))
    return Change(system, figure, before, after, estimate, p)


def _in_both(one: dict[int, list[float]], other: dict[int, list[float]]) -> Figures:
    return np.array([[*one[prompt], *other[prompt]] for prompt in one if prompt in other])


def _against(
    a: Results, b: Results, name: str, figure: str, of: Callable[[Answer], float | None]
) -> Change | None:
    """Over the same figure of the system's baseline, or of ``PLAIN`` if it is a baseline."""
    reference = a.systems[name].baseline or PLAIN
    if name == reference or reference != (b.systems[name].baseline or PLAIN):
        return None
    ratios = [metrics.ratios_by_prompt(metrics.pairs(r, name, reference), of) for r in (a, b)]
    return _mean_change(name, f"{figure}, over that of {reference}", *ratios)


def _gained(a: Results, b: Results, name: str) -> Change | None:
    gains = [metrics.gains(r, name) for r in (a, b)]
    return _mean_change(name, "gain of drafts, beside its own passes", *gains)


def _mean_change(
    name: str, figure: str, one: dict[int, float], other: dict[int, float]
) -> Change | None:
    """Of the geometric mean of a figure by prompt, in one run and in the other."""
    rows = _in_both(*({prompt: [value] for prompt, value in run.items()} for run in (one, other)))
    return _change(name, figure, rows, intervals.geometric_mean)


def _quotient(
    a: Results,
    b: Results,
    name: str,
    figure: str,
    parts: Callable[[Answer], tuple[float | None, float | None]],
) -> Change | None:
    sums = [_sums(metrics.of(r, name), parts) for r in (a, b)]
    return _change(name, figure, _in_both(*sums), intervals.quotient)


def _sums(
    answers: Iterable[Answer], parts: Callable[[Answer], tuple[float | None, float | None]]
) -> dict[int, list[float]]:
    """By prompt."""
    sums: dict[int, list[float]] = {}
    for answer in answers:
        one, other = parts(answer)
        if one is not None and other is not None:
            total = sums.setdefault(answer.prompt, [0.0, 0.0])
            total[0] += one
            total[1] += other
    return sums


def _equality(a: Results, b: Results, name: str) -> Change | None:
    """Share of greedy answers with the same tokens as the system that they must equal, or as the baseline."""
    one, other = (r.systems[name].words or r.systems[name].baseline for r in (a, b))
    if one is None or one != other or a.settings["temperature"] > 0:
        return None
    sums = [_equal(metrics.pairs(r, name, one)) for r in (a, b)]
    return _change(name, _EQUAL, _in_both(*sums), intervals.quotient)


def _equal(pairs: Sequence[tuple[Answer, Answer]]) -> dict[int, list[float]]:
    """By prompt: equal answers and all."""
    equal = {id(one): float(one.token_ids == other.token_ids) for one, other in pairs}
    return _sums((one for one, _ in pairs), lambda one: (equal[id(one)], 1.0))


def _memory(a: Results, b: Results, name: str) -> Change | None:
    """One figure a run: without an interval, so only ``FLOOR`` decides."""
    before, after = a.systems[name].peak_memory_bytes, b.systems[name].peak_memory_bytes
    if not before or not after:
        return None
    ratio = after / before
    return Change(
        name, "peak memory", before, after, Estimate(ratio, ratio, ratio), float(ratio == 1)
    )


def _absolute(a: Results, b: Results, name: str) -> Change | None:
    rates = [_rates(metrics.of(r, name)) for r in (a, b)]
    return _change(name, "decode tokens/s", _in_both(*rates), intervals.geometric_mean)


def _rates(answers: Iterable[Answer]) -> dict[int, list[float]]:
    """By prompt: tokens over seconds."""
    sums = _sums((x for x in answers if x.rate), lambda x: (x.tokens - x.first_tokens, x.decode_s))
    return {prompt: [tokens / seconds] for prompt, (tokens, seconds) in sums.items()}


def _holm(family: Iterable[Change]) -> list[Change]:
    """The same figure of all systems: the more are tried, the less a small p means."""
    changes = list(family)
    adjusted, least = dict[str, float](), 0.0
    for rank, change in enumerate(sorted(changes, key=lambda c: c.p)):
        least = adjusted[change.system] = max(least, min(1.0, change.p * (len(changes) - rank)))
    return [
        replace(
            change,
            p=adjusted[change.system],
            changed=adjusted[change.system] <= 1 - intervals.LEVEL and abs(change.by) >= FLOOR,
        )
        for change in changes
    ]


def _common_cause(changes: Iterable[Change]) -> list[str]:
    """All that are compared with one baseline changed alike: it may be the baseline that did."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
        if ", over that of " in change.figure:
            groups.setdefault(change.figure, []).append(change)
    return [
        f"{figure}: all of {len(group)} systems changed the same way, so it may be that baseline which changed"
        for figure, group in groups.items()
        if len(group) > 1
        and all(change.changed for change in group)
        and len({change.by > 0 for change in group}) == 1
    ]


def render(comparison: Comparison) -> str:
    """The comparison as text: changes first, then tables."""
    changed = comparison.changed
    lines = [
        f"{len(changed)} of {len(comparison.changes)} figures changed by more than noise:"
        if changed
        else f"No change: {len(comparison.changes)} figures, none of which differs by more than noise.",
        *(f"  {_sentence(change)}" for change in changed),
    ]
    figures = dict.fromkeys(change.figure for change in comparison.changes)
    for figure in figures:
        rows = [c for c in comparison.changes if c.figure == figure]
        lines += ["", _table(figure, rows)]
    if comparison.absolute:
        title = "decode tokens/s of plain decoding, not corrected for what the machine did"
        lines += ["", _table(title, comparison.absolute)]
    lines += [
        "",
        f"Over {comparison.prompts} prompts of both runs; intervals of 95 %. More than noise: an interval, "
        f"corrected for the number of systems (Holm), without 1 (or ±0), and at least {FLOOR:.0%}.",
        *(f"Note: {note}" for note in comparison.notes),
    ]
    return "\n".join(lines)


def _sentence(change: Change) -> str:
    unit = "points" if change.figure == _EQUAL else "%"
    interval = f" ({text})" if (text := _interval(change)) else ""
    return f"{change.system}: {change.figure}: {100 * change.by:+.1f} {unit}{interval}"


def _interval(change: Change) -> str:
    effect = change.effect
    if not np.isfinite(effect.low):
        return "too few prompts"
    return f"{effect.low:.3f} to {effect.high:.3f}" if effect.low < effect.high else ""


def _table(title: str, changes: Sequence[Change]) -> str:
    difference = changes[0].figure == _EQUAL
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold")
    table.add_column("system", overflow="fold")
    for header in ("before", "after", "difference" if difference else "ratio", "interval"):
        table.add_column(header, justify="right")
    table.add_column("")
    for c in changes:
        cells = (_number(c, c.before), _number(c, c.after), f"{c.effect.value:.3f}", _interval(c))
        table.add_row(*map(Text, (c.system, *cells, "CHANGED" if c.changed else "")))
    with io.StringIO() as file:
        Console(file=file, width=_WIDTH).print(table)
        return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines())


def _number(change: Change, value: float) -> str:
    if change.figure == "peak memory":
        return f"{value / 1e6:,.0f} MB"
    return f"{value:.0%}" if change.figure in (_EQUAL, "α") else f"{value:.3g}"
