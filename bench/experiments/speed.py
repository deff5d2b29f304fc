"""The speed-up of each drafter over plain decoding of the same weights.

Plain decoding is the fastest that the runtime has: nothing drafted and passes not padded.
Measurements alternate, so that a machine that slows down affects everything that is compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from time import perf_counter

import click

from edgespec.bench.experiments.common import (
    context_option,
    experiment,
    machine,
    max_tokens_option,
    note,
    report,
    runtime_option,
    table,
    threads_option,
)
from edgespec.bench.experiments.switching import ALONE, Mode, Switch
from edgespec.bench.workloads import (
    Prompt,
    first_of_each,
    half_of_each,
    read_prompts,
    rewriting_prompt,
)
from edgespec.core.runtime import MAX_ROWS
from edgespec.drafting.model_free import MODEL_FREE
from edgespec.engine import Engine
from edgespec.errors import UserError
from edgespec.session import EngineState, Session

PLAIN = Mode("none", False)


@dataclass(frozen=True)
class Run:
    """One answer. Times are in seconds."""

    prompt: int
    category: str
    mode: str
    tokens: int
    passes: int
    drafted: int
    accepted: int
    decode_s: float
    draft_s: float
    own_s: float
    """In the steps, but in neither a pass nor drafting: the engine's overhead."""
    wall_s: float
    """From the first decoding step to the end, streaming included."""
    pass_s: float
    said: list[int]

    @property
    def rate(self) -> float:
        """Tokens a second of decoding."""
        return self.tokens / self.decode_s


def answer(parts: EngineState, prompt: Prompt, max_tokens: int, stop: bool) -> Session:
    """A session that has answered, past the model's end unless ``stop``."""
    session = Session(parts, ignore_stop=not stop)
    respond = session.chat if parts.template else session.complete
    for _ in respond(prompt.text, max_tokens=max_tokens):
        pass
    return session


def run(switch: Switch, mode: Mode, prompt: Prompt, max_tokens: int, stop: bool) -> Run:
    """Answer a prompt. What the cache already holds of it is not evaluated again."""
    parts = switch.to(mode)
    switch.forget()
    started = perf_counter()
    session = answer(parts, prompt, max_tokens, stop)
    wall_s = perf_counter() - started
    s = session.statistics
    return Run(
        prompt.id,
        prompt.category,
        mode.name,
        s.generated_tokens,
        s.target_passes,
        s.drafted,
        s.accepted,
        s.decode_s,
        s.draft_s,
        s.overhead_s,
        wall_s - s.prefill_s,
        s.pass_s,
        session.token_ids,
    )


def speedups(runs: Sequence[Run], mode: Mode) -> dict[int, float]:
    """By prompt: the mode's rate over plain decoding's, the median of the rounds' ratios."""

    def rates(prompt: int, name: str) -> list[float]:
        return [run.rate for run in runs if (run.prompt, run.mode) == (prompt, name)]

    prompts = dict.fromkeys(run.prompt for run in runs)
    return {
        prompt: statistics.median(
            own / plain
            for own, plain in zip(rates(prompt, mode.name), rates(prompt, PLAIN.name), strict=True)
        )
        for prompt in prompts
    }


def geometric_mean(ratios: Collection[float]) -> float:
    """Of ratios, which average so."""
    return exp(statistics.fmean(log(ratio) for ratio in ratios))


def seconds(runs: Sequence[Run], mode: Mode, prompts: Collection[int]) -> list[float]:
    """Seconds that the prompts' answers took in ``mode``, all together, a round after the other."""
    by_prompt: dict[int, list[float]] = {prompt: [] for prompt in prompts}
    for run in runs:
        if run.mode == mode.name and run.prompt in by_prompt:
            by_prompt[run.prompt].append(run.decode_s)
    return [sum(times) for times in zip(*by_prompt.values(), strict=True)]


def by_category(runs: Sequence[Run]) -> dict[str, list[int]]:
    """The prompts of each category; of "**all**", where there are several."""
    members: dict[str, list[int]] = {}
    for prompt, category in dict.fromkeys((run.prompt, run.category) for run in runs):
        members.setdefault(category, []).append(prompt)
    if len(members) > 1:
        members["**all**"] = [prompt for prompts in members.values() for prompt in prompts]
    return members


def gains_table(runs: Sequence[Run], modes: Sequence[Mode]) -> str:
    """Per category: plain decoding's time over the mode's, the median of the rounds and their range,
    and the worst prompt; then τ and α."""
    gains = {mode: speedups(runs, mode) for mode in modes}

    def cell(mode: Mode, prompts: Sequence[int]) -> str:
        pairs = zip(seconds(runs, PLAIN, prompts), seconds(runs, mode, prompts), strict=True)
        ratios = [plain / own for plain, own in pairs]
        worst = min(gains[mode][prompt] for prompt in prompts)
        middle = statistics.median(ratios)
        own = [run for run in runs if run.mode == mode.name and run.prompt in set(prompts)]
        tau = sum(run.tokens for run in own) / sum(run.passes for run in own)
        drafted = sum(run.drafted for run in own)
        alpha = f"{sum(run.accepted for run in own) / drafted:.0%}" if drafted else "–"
        spread = f" [{min(ratios):.2f}–{max(ratios):.2f}]" if len(ratios) > 1 else ""
        return f"{middle:.2f}{spread}, {worst:.2f}; {tau:.2f}, {alpha}"

    rows = [
        [category, str(len(prompts)), *(cell(mode, prompts) for mode in modes)]
        for category, prompts in by_category(runs).items()
    ]
    headers = ["category", "prompts", *(f"{m.name}: all [rounds], worst; τ, α" for m in modes)]
    return table(headers, rows)


def nearness_table(runs: Sequence[Run], mode: Mode, fixed: Sequence[Mode]) -> str:
    """Per category: the best of ``fixed`` and plain decoding, found afterwards, and its time over that
    of ``mode``. Of each round the medians."""
    rows = []
    for category, prompts in by_category(runs).items():
        taken = {m: statistics.median(seconds(runs, m, prompts)) for m in (PLAIN, *fixed)}
        best = min(taken, key=taken.__getitem__)
        own = statistics.median(seconds(runs, mode, prompts))
        rows.append(
            [
                category,
                best.name,
                f"{taken[PLAIN] / taken[best]:.2f}",
                f"{taken[PLAIN] / own:.2f}",
                f"{taken[best] / own:.2f}",
            ]
        )
    return table(["category", "best fixed", "its gain", mode.name, "of the best"], rows)


def modes_table(runs: Sequence[Run], modes: Sequence[Mode]) -> str:
    """Per mode: its rate, its figures of speculation, its worst prompt, the share of Python, and how
    many answers are the same words as plain decoding's, or, where passes are padded, as the first mode's."""
    rows = []
    first = modes[0] if modes[0].exact else PLAIN
    expected = {run.prompt: run.said for run in runs if run.mode == first.name}
    for mode in [PLAIN, *modes]:
        own = [run for run in runs if run.mode == mode.name]
        tokens, decode_s = sum(r.tokens for r in own), sum(r.decode_s for r in own)
        passes, drafted = sum(r.passes for r in own), sum(r.drafted for r in own)
        gains = speedups(runs, mode)
        worst = min(gains, key=gains.__getitem__)
        rows.append(
            [
                mode.name,
                f"{tokens / decode_s:.1f}",
                f"{geometric_mean(gains.values()):.3f}",
                f"{gains[worst]:.3f} (prompt {worst})" if mode is not PLAIN else "–",
                f"{tokens / passes:.2f}",
                f"{sum(r.accepted for r in own) / drafted:.2f}" if drafted else "–",
                f"{1e3 * sum(r.draft_s for r in own) / passes:.2f}",
                f"{sum(r.own_s for r in own) / decode_s:.2%}",
                f"{1 - sum(r.pass_s for r in own) / sum(r.wall_s for r in own):.2%}",
                f"{sum(r.said == expected[r.prompt] for r in own)} of {len(own)}",
            ]
        )
    headers = ["drafts", "tokens/s", "geometric mean", "worst", "τ", "α", "drafting, ms a step"]
    return table([*headers, "own", "outside passes, with streaming", f"{first.name}'s words"], rows)


@experiment
@runtime_option
@click.option(
    "--prompts",
    "paths",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Questions in Spec-Bench's format. Default: rewriting a file with type hints.",
)
@click.option(
    "--half",
    type=click.Choice(["first", "second"]),
    help="Of each category the first, third, … questions, or the others: to choose by, and to measure.",
)
@click.option("--exact/--no-exact", default=True, show_default=True, help="Where the runtime can.")
@click.option(
    "--draft",
    "drafts",
    multiple=True,
    metavar="NAME|MODEL",
    default=("hierarchy",),
    show_default=True,
    help=f"What drafts: {', '.join(MODEL_FREE[1:])}; a model (one at most), which drafts beside "
    f"hierarchy; {ALONE}: that model alone. May be repeated.",
)
@click.option(
    "--gamma",
    "gammas",
    multiple=True,
    type=click.IntRange(1, MAX_ROWS - 1),
    metavar="N",
    help="Compare with drafting always N tokens of the longest match, too.",
)
@click.option("--per-category", type=click.IntRange(1), default=3, show_default=True)
@max_tokens_option(default=128)
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--stop/--ignore-stop", default=False, show_default=True, help="End as models do.")
@context_option(default=4096)
@threads_option
def main(
    model: str,
    runtime: str,
    paths: tuple[Path, ...],
    half: str | None,
    exact: bool,
    drafts: tuple[str, ...],
    gammas: tuple[int, ...],
    per_category: int,
    max_tokens: int,
    rounds: int,
    stop: bool,
    context: int,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Greedy answers with drafts against plain decoding, on one loaded model.

    A round is every prompt, decoded plainly and in every mode, every second time in reverse. What is
    learnt of one prompt serves the next, as in use, but no round serves another. Answers
    go on to --max-tokens even after the model's end, to be of equal length.
    """
    read = [prompt for path in paths for prompt in read_prompts(path)]
    if half is not None:
        read = half_of_each(read, half == "second")
    prompts = first_of_each(read, per_category) if read else [rewriting_prompt()]
    models = [draft for draft in drafts if draft not in (*MODEL_FREE, ALONE)]
    if len(models) > 1 or (ALONE in drafts and not models):
        raise UserError("give one --draft MODEL; --draft model means that one alone")
    named = [draft if draft not in models else f"hierarchy+{ALONE}" for draft in drafts]
    runs: list[Run] = []
    with Engine.open(
        model, runtime=runtime, draft=(*models, "none")[0], context=context, threads=threads
    ) as engine:
        switch = Switch(engine)
        exact = exact and switch.exact_passes
        modes = [Mode(name, exact) for name in named]
        fixed = [Mode(f"γ = {n}", exact) for n in gammas]
        run(switch, PLAIN, prompts[0], 8, stop)  # warms everything up
        order = [PLAIN, *modes, *fixed]
        for turn in range(rounds):
            switch.renew()
            for number, prompt in enumerate(prompts, 1):
                for mode in order[::-1] if (turn + number) % 2 else order:
                    runs.append(run(switch, mode, prompt, max_tokens, stop))
                latest = [r for r in runs[-len(order) :] if r.mode == modes[0].name]
                plain = [r for r in runs[-len(order) :] if r.mode == PLAIN.name]
                gain = latest[0].rate / plain[0].rate
                note(f"{turn + 1}: {number}/{len(prompts)} {prompt.category}: {gain:.2f}×")
    tables = [gains_table(runs, [*modes, *fixed]), modes_table(runs, [*modes, *fixed])]
    if fixed:
        tables += [nearness_table(runs, mode, fixed) for mode in modes]
    ends = "to the model's end" if stop else "past the model's end"
    title = (
        f"Speed-up over plain decoding: {runtime}{' --exact' * exact}, {max_tokens} tokens, {ends}, "
        f"{rounds} rounds"
    )
    report(title, machine(model), tables, json_path, [asdict(run) for run in runs])
