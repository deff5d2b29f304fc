"""The metrics of a run with their confidence intervals. Pure functions over ``Results``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgespec.bench.records.results import PLAIN, Answer, Results, System
from edgespec.bench.report.intervals import (
    FEWEST,
    Estimate,
    Figures,
    bootstrap,
    geometric_mean,
    median,
    quotient,
)

SEPARABLE = 0.05
"""The difference that a run must be able to separate from noise."""
_ENOUGH = 8
"""Single-token passes of an answer that are enough to estimate their mean time."""
STEADY = 0.20
"""If the speed moved by more than this between parts of a run, the machine was doing something else."""


@dataclass(frozen=True)
class Equality:
    """Greedy answers against those that they must equal, or those of plain decoding."""

    share: Estimate
    """The share of answers with the same tokens."""
    answers: int
    common: float | None
    """Median position of the first difference in the other answers; ``None`` where all are equal."""


@dataclass(frozen=True)
class Worst:
    """The prompt for which a system does least for the speed of its baseline."""

    prompt: int
    category: str
    ratio: float


@dataclass(frozen=True)
class Metrics:
    """A system's figures in a category, or in all. What was not reported is ``None``."""

    answers: int
    ttft_s: Estimate | None
    rate: Estimate | None
    """Decode tokens/s: the median over prompts of the median of a prompt's answers. A rate of totals would be
    dominated by the longest answers, and one stall would move it."""
    tau: Estimate | None
    alpha: Estimate | None
    alpha_by_drafter: dict[str, Estimate]
    mbsu_bytes: Estimate | None
    mbsu_parameters: Estimate | None
    passes: int | None
    cpu_s_per_token: Estimate | None
    energy_j_per_token: Estimate | None
    equality: Equality | None
    against_baseline: Estimate | None
    """Decode tokens/s over the baseline's, geometric mean of pairs."""
    against_plain: Estimate | None
    """The same over ``PLAIN``."""
    gain: Estimate | None
    """What drafts gained, as ``gain`` has it."""
    worst: Worst | None


@dataclass(frozen=True)
class Noise:
    """How the rate of plain decoding varies beyond what prompts explain."""

    system: str
    answers: int
    scatter: float
    """Standard deviation of ln rate between neighbouring answers."""
    drift: float
    """The run's fastest tenth over its slowest, less 1. At least: what every round repeats looks like prompts."""

    def resolution(self, pairs: int) -> float:
        """The relative difference that so many pairs of answers separate from noise."""
        return math.expm1(1.96 * self.scatter * math.sqrt(2 / pairs)) if pairs else math.inf


def by_prompt(
    answers: Iterable[Answer],
    figures: Callable[[Answer], Sequence[float | None]],
    together: Callable[[Figures], Any],
) -> Figures:
    """A row a prompt: the figures of its answers, put ``together`` over axis 0. Answers that lack one are left out."""
    prompts: dict[int, list[Sequence[float | None]]] = {}
    for answer in answers:
        row = figures(answer)
        if None not in row:
            prompts.setdefault(answer.prompt, []).append(row)
    return np.array([together(np.array(rows, dtype=np.float64)) for rows in prompts.values()])


def _sum(rows: Figures) -> Any:
    return rows.sum(axis=0)


def _median(rows: Figures) -> Any:
    return np.median(rows, axis=0)


def of(results: Results, system: str, category: str | None = None) -> list[Answer]:
    """A system's answers, in the order in which they were given."""
    return [a for a in results.answers if a.system == system and category in (None, a.category)]


def pairs(
    results: Results, system: str, against: str, category: str | None = None
) -> list[tuple[Answer, Answer]]:
    """The two systems' answers to the same prompt, turn and round."""
    others = {(a.prompt, a.turn, a.round): a for a in of(results, against, category)}
    return [
        (a, others[key])
        for a in of(results, system, category)
        if (key := (a.prompt, a.turn, a.round)) in others
    ]


def rate(answer: Answer) -> float | None:
    """Decode tokens/s."""
    return answer.rate


def ratios_by_prompt(
    pairs: Iterable[tuple[Answer, Answer]], figure: Callable[[Answer], float | None]
) -> dict[int, float]:
    """Geometric mean, over a prompt's pairs, of the first answer's figure over the second's."""
    logs: dict[int, list[float]] = {}
    for one, other in pairs:
        a, b = figure(one), figure(other)
        if a and b:
            logs.setdefault(one.prompt, []).append(math.log(a / b))
    return {prompt: math.exp(statistics.fmean(values)) for prompt, values in logs.items()}


def ratio(
    results: Results,
    system: str,
    against: str,
    category: str | None = None,
    figure: Callable[[Answer], float | None] = rate,
) -> Estimate | None:
    """Of one system's figure over another's, pair by pair: what the machine did meanwhile it did to both.

    Rates are compared, not times: answers may have unequal words, or more than one token at first.
    """
    found = ratios_by_prompt(pairs(results, system, against, category), figure)
    return bootstrap(np.array([[r] for r in found.values()]), geometric_mean)


def block_efficiency(answers: Sequence[Answer]) -> Estimate | None:
    """τ."""
    return bootstrap(by_prompt(answers, lambda a: (a.tokens, a.passes), _sum), quotient)


def acceptance_rate(answers: Sequence[Answer], drafter: str | None = None) -> Estimate | None:
    """α of all drafters or of one; ``None`` if nothing was drafted."""
    if drafter is None:
        rows = by_prompt(answers, lambda a: (a.accepted, a.drafted), _sum)
    else:
        rows = by_prompt(answers, lambda a: a.by_drafter.get(drafter, (0, 0))[::-1], _sum)
    return bootstrap(rows, quotient)


def mbsu(answers: Sequence[Answer], cost: float | None) -> Estimate | None:
    """τ / (1 + draft passes per target pass · c). ``cost`` is c, unknown if ``None``."""
    rows = by_prompt(answers, lambda a: (a.tokens, a.passes, a.draft_passes), _sum)
    if cost is None and rows.any() and rows[:, 2].any():
        return None
    c = cost or 0.0

    def statistic(rows: Figures) -> Any:
        tokens, passes, draft_passes = np.moveaxis(rows.sum(axis=-2), -1, 0)
        return tokens / passes / (1 + draft_passes / passes * c)

    return bootstrap(rows, statistic)


def gain(results: Results, system: str, category: str | None = None) -> Estimate | None:
    """Geometric mean of ``gains``."""
    found = gains(results, system, category)
    return bootstrap(np.array([[g] for g in found.values()]), geometric_mean)


def gains(results: Results, system: str, category: str | None = None) -> dict[int, float]:
    """By prompt, tokens times what a pass over one took in the same process, over the time that the answers took,
    geometric mean. Empty where nothing was drafted, or no passes were reported.

    Two processes that do the same differ by 10 % and more in speed, for as long as they live, and a machine is faster
    in one minute than in the next. Here both cancel out; so does what slows every pass down alike.
    """
    alone: dict[int, list[float]] = {}
    for answer in of(results, system):
        passes, _, seconds = answer.by_rows.get(1, (0, 0, 0.0))
        total = alone.setdefault(answer.round, [0, 0.0])
        total[0], total[1] = total[0] + passes, total[1] + seconds
    answers = of(results, system, category)
    logs: dict[int, list[float]] = {}
    for answer in answers if any(answer.drafted for answer in answers) else ():
        passes, _, seconds = answer.by_rows.get(1, (0, 0, 0.0))
        if passes < _ENOUGH:
            passes, seconds = alone[answer.round]
        spent = sum(filter(None, (answer.pass_s, answer.draft_s, answer.own_s)))
        if passes and spent:
            logs.setdefault(answer.prompt, []).append(
                math.log(answer.tokens * seconds / passes / spent)
            )
    return {prompt: math.exp(statistics.fmean(values)) for prompt, values in logs.items()}


def equality(
    results: Results, system: str, against: str, category: str | None = None
) -> Equality | None:
    """``None`` where tokens were drawn. Turns after one that differs were asked something else: they do not count."""
    if results.settings["temperature"] > 0:
        return None
    same: list[tuple[Answer, bool]] = []
    common: list[int] = []
    parted: set[tuple[int, int]] = set()
    for one, other in sorted(pairs(results, system, against, category), key=lambda p: p[0].turn):
        if (conversation := (one.prompt, one.round)) in parted:
            continue
        equal = one.token_ids == other.token_ids
        same.append((one, equal))
        if not equal:
            parted.add(conversation)
            common.append(_common(one.token_ids, other.token_ids))
    equals = {id(answer): float(equal) for answer, equal in same}
    rows = by_prompt([a for a, _ in same], lambda a: (equals[id(a)], 1.0), _sum)
    share = bootstrap(rows, quotient)
    length = float(statistics.median(common)) if common else None
    return Equality(share, len(same), length) if share else None


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before they part."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def measure(results: Results, name: str, category: str | None = None) -> Metrics:
    """The figures of a system in a category, or in all."""
    system, answers = results.systems[name], of(results, name, category)
    against, words = system.baseline, system.words or system.baseline
    passes = [a.passes for a in answers if a.passes is not None]
    drafters = sorted({drafter for a in answers for drafter in a.by_drafter})
    alphas = {drafter: acceptance_rate(answers, drafter) for drafter in drafters}

    def a_token(figure: Callable[[Answer], float | None]) -> Estimate | None:
        return bootstrap(by_prompt(answers, lambda a: (figure(a), a.tokens), _sum), quotient)

    return Metrics(
        answers=len(answers),
        ttft_s=bootstrap(by_prompt(answers, lambda a: (a.ttft_s,), _median), median),
        rate=bootstrap(by_prompt(answers, lambda a: (a.rate,), _median), median),
        tau=block_efficiency(answers),
        alpha=acceptance_rate(answers),
        alpha_by_drafter={drafter: alpha for drafter, alpha in alphas.items() if alpha},
        mbsu_bytes=mbsu(answers, _cost(system.draft_weight_bytes, system.weight_bytes)),
        mbsu_parameters=mbsu(answers, _cost(system.draft_parameters, system.parameters)),
        passes=sum(passes) if passes else None,
        cpu_s_per_token=a_token(lambda a: a.cpu_s),
        energy_j_per_token=a_token(lambda a: a.energy_j),
        equality=equality(results, name, words, category) if words else None,
        against_baseline=ratio(results, name, against, category) if against else None,
        against_plain=None if name == PLAIN else ratio(results, name, PLAIN, category),
        gain=gain(results, name, category),
        worst=worst(results, name, category),
    )


def _cost(draft: int | None, target: int | None) -> float | None:
    return draft / target if draft is not None and target else None


def worst(results: Results, name: str, category: str | None = None) -> Worst | None:
    """``None`` for a baseline."""
    against = results.systems[name].baseline
    found = pairs(results, name, against, category) if against else []
    ratios = ratios_by_prompt(found, rate)
    if not ratios:
        return None
    prompt = min(ratios, key=lambda p: ratios[p])
    return Worst(prompt, next(a.category for a, _ in found if a.prompt == prompt), ratios[prompt])


def categories(results: Results) -> list[str]:
    """In the order in which they were asked."""
    return list(dict.fromkeys(a.category for a in results.answers))


def groups(results: Results) -> list[str | None]:
    """``None``, for all answers, and the categories, where they are several."""
    found = categories(results)
    return [None, *found] if len(found) > 1 else [None]


def reference(results: Results) -> System | None:
    """The plain decoding that shows how steady the machine was."""
    plain = [s for s in results.systems.values() if s.baseline is None and of(results, s.name)]
    return next((s for s in plain if s.name == PLAIN), plain[0] if plain else None)


def noise(results: Results) -> Noise | None:
    """``None`` where there are too few answers. With one round, answers are grouped by category instead of by prompt."""
    system = reference(results)
    if system is None:
        return None
    timed = [(a, math.log(a.rate)) for a in of(results, system.name) if a.rate]
    several = len({a.round for a, _ in timed}) > 1
    groups: dict[tuple[Any, int], list[float]] = {}
    keys = [(a.prompt if several else a.category, a.turn) for a, _ in timed]
    for key, (_, value) in zip(keys, timed, strict=True):
        groups.setdefault(key, []).append(value)
    count, free = len(timed), len(timed) - len(groups)
    if free < FEWEST:
        return None
    rests = np.array(
        [v - statistics.fmean(groups[k]) for k, (_, v) in zip(keys, timed, strict=True)]
    )
    # neighbours share the machine's slow changes; the means took `count - free` degrees of freedom
    scatter = math.sqrt(np.mean(np.diff(rests) ** 2) / 2 * count / free)
    parts = [np.median(part) for part in np.array_split(rests, min(10, count // FEWEST))]
    return Noise(system.name, count, scatter, math.expm1(max(parts) - min(parts)))


def noise_warning(results: Results) -> str | None:
    """Why this run is too noisy to conclude from, or ``None``."""
    found = noise(results)
    if found is None:
        return "too few answers to measure how noisy the machine was: ask more prompts, or several rounds"
    if (smallest := found.resolution(found.answers)) > SEPARABLE:
        return (
            f"the machine was too noisy to conclude: neighbouring answers of {found.system} differ by "
            f"{found.scatter:.0%}, so that {found.answers} pairs cannot separate less than {smallest:.0%}"
        )
    if found.drift > STEADY:
        return (
            f"the machine was too noisy to conclude: the rate of {found.system} moved by "
            f"{found.drift:.0%} within the run; only ratios of neighbouring answers can be trusted"
        )
    return None
