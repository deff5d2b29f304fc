"""What a pass costs against llama.cpp's, and what speculation gains against plain decoding.

Plain decoding is the fastest that the runtime has: nothing drafted and passes not padded.
Measurements alternate, so that a machine that slows down slows down everything that is compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import click

from edgespec.bench.common import (
    RUNTIMES,
    Prompt,
    first_of_each,
    in_child,
    machine,
    note,
    own_text,
    program,
    read_prompts,
    report,
    rewriting_prompt,
    table,
)
from edgespec.draft import Draft
from edgespec.drafting import Budget, Drafter
from edgespec.drafting.ngram import NgramDrafter
from edgespec.drafting.none import NoDrafter
from edgespec.engine import Engine
from edgespec.runtimes import MAX_ROWS
from edgespec.scheduling.costs import PassCosts
from edgespec.scheduling.measuring import measure_curve
from edgespec.scheduling.policy import Scheduler
from edgespec.session import Loaded, Session

SIZES = (1, 2, 4, 8, 16)
_CONTEXT = 128
"""Tokens in the cache when passes are timed."""
_DECODED = 32
"""Tokens of plain decoding that are timed one after the other."""


# -- passes ------------------------------------------------------------------------------------


@dataclass
class Passes:
    """Seconds of every pass timed, by its tokens; plain decoding's are under 0."""

    seconds: dict[int, list[float]]
    weight_bytes: int

    def median(self, size: int) -> float:
        """Of the passes over ``size`` tokens."""
        return statistics.median(self.seconds[size])


def time_passes(model: str, runtime: str, threads: int | None, repeats: int) -> Passes:
    """Time passes over the sizes, in turn, and then plain decoding."""
    with Engine.open(
        model, runtime=runtime, draft="none", exact=False, context=1024, threads=threads
    ) as engine:
        target, info = engine.loaded.target, engine.info
        tokens = engine.loaded.tokenizer.encode(own_text())
        target.forward(tokens[:_CONTEXT], logits="none")
        target.keep(range(_CONTEXT))
        following = tokens[_CONTEXT:]
        seconds: dict[int, list[float]] = {size: [] for size in (0, *SIZES)}
        for repeat in range(repeats + 1):  # the first is not counted
            for size in SIZES:
                started = perf_counter()
                target.forward(following[:size])
                if repeat:
                    seconds[size].append(perf_counter() - started)
        token = following[0]
        for step in range(_DECODED + 2):  # nor are the first two
            started = perf_counter()
            token = int(target.forward([token])[0].argmax())
            target.keep([0])
            if step > 1:
                seconds[0].append(perf_counter() - started)
        return Passes(seconds, info.weight_bytes)


def merged(parts: Sequence[Passes]) -> Passes:
    """The samples of several processes as one."""
    seconds = {size: [s for part in parts for s in part.seconds[size]] for size in parts[0].seconds}
    return Passes(seconds, parts[0].weight_bytes)


@program
@click.option("--repeats", default=7, show_default=True, help="Passes of a size in a process.")
@click.option("--threads", type=int, help="Default: one a core.")
def passes(model: str, repeats: int, threads: int | None, json_path: Path | None) -> None:
    """Time of a pass over n tokens on onnx and on llama.cpp, in alternated processes (A B B A)."""
    note("opening once, so that nothing is built while we measure")
    in_child(time_passes, model, "onnx", threads, 1)
    found: dict[str, list[Passes]] = {"onnx": [], "llama-cpp": []}
    for runtime in ("onnx", "llama-cpp", "llama-cpp", "onnx"):
        note(f"timing {runtime}")
        found[runtime].append(in_child(time_passes, model, runtime, threads, repeats))
    onnx, llama = merged(found["onnx"]), merged(found["llama-cpp"])

    def cells(passes: Passes, size: int) -> list[str]:
        times = [1e3 * s for s in passes.seconds[size]]
        spread = f"{statistics.median(times):.1f} [{min(times):.1f}–{max(times):.1f}]"
        return [spread, f"{passes.median(size) / passes.median(1):.2f}"]

    rows = [
        [
            f"n={size}" if size else "n=1, decoding",
            *cells(onnx, size),
            *cells(llama, size),
            f"{onnx.median(size) / llama.median(size):.2f}",
        ]
        for size in (0, *SIZES)
    ]
    headers = [
        f"after {_CONTEXT} tokens",
        "onnx, ms",
        "R(n)",
        "llama.cpp, ms",
        "R(n)",
        "onnx/llama",
    ]
    gained = [
        [name, f"{p.weight_bytes / 1e6:.0f}", f"{p.weight_bytes / p.median(1) / 1e9:.1f}"]
        for name, p in (("onnx", onnx), ("llama.cpp", llama))
    ]
    tables = [
        table(headers, rows),
        table(["runtime", "MB read a pass", "GB/s at n=1"], gained),
        f"Plain decoding, onnx: {llama.median(0) / onnx.median(0):.2f}× llama.cpp's. "
        f"A pass over 4 tokens: {onnx.median(4) / llama.median(4):.2f}× llama.cpp's time.",
    ]
    figures = {"onnx": asdict(onnx), "llama_cpp": asdict(llama)}
    report("Passes: medians [min–max]", machine(model), tables, json_path, figures)


# -- generate ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mode:
    """A way to decode with a model that is loaded: its drafter, and whether passes are padded."""

    name: str
    drafter: Callable[[], Drafter]
    exact: bool


PLAIN = Mode("plain", NoDrafter, False)
EXACT = Mode("ngram --exact", NgramDrafter, True)
FAST = Mode("ngram --no-exact", NgramDrafter, False)


class FixedNgram(NgramDrafter):
    """Drafts so many tokens wherever anything matches, as systems without a scheduler do."""

    def __init__(self, gamma: int) -> None:
        super().__init__()
        self.gamma = gamma

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        """No confidences: the scheduler does not cut it."""
        return Draft(super().propose(context, budget).tokens[: self.gamma])


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
    own_s: float
    """In the steps, but in neither pass: drafting and the engine's own work."""
    wall_s: float
    """From the first decoding step to the end, streaming included."""
    pass_s: float

    @property
    def rate(self) -> float:
        """Tokens a second of decoding."""
        return self.tokens / self.decode_s


class Switch:
    """Puts one loaded model, which was opened exact, into any mode. Passes cost a mode the same
    whatever the other modes learnt: each keeps its own costs."""

    def __init__(self, engine: Engine) -> None:
        self.parts = engine.loaded
        self._exact = self.parts.target.info
        self._costs: dict[Mode, PassCosts] = {}

    def to(self, mode: Mode) -> Loaded:
        """The model as ``Engine.open(draft=…, exact=…)`` would have it."""
        target = self.parts.target
        target.info = self._exact if mode.exact else replace(self._exact, pass_sizes=())
        drafter: Drafter = mode.drafter()
        if mode not in self._costs:
            target.truncate(0)
            curve = measure_curve(target, SIZES, budget_s=5.0)
            self._costs[mode] = PassCosts(curve)
        self.parts.scheduler = Scheduler([drafter], self._costs[mode])
        return self.parts


def run(switch: Switch, mode: Mode, prompt: Prompt, max_tokens: int, stop: bool) -> Run:
    """Answer a prompt. What the cache already holds of it is not evaluated again."""
    parts = switch.to(mode)
    session = Session(parts, ignore_stop=not stop)
    answer = session.chat if parts.template else session.complete
    started = perf_counter()
    for _ in answer(prompt.text, max_tokens=max_tokens):
        pass
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
        s.draft_s + s.own_s,
        wall_s - s.prefill_s,
        s.pass_s,
    )


def speedups(runs: Sequence[Run], mode: Mode) -> dict[int, float]:
    """By prompt: the mode's rate over plain decoding's, the fastest run of each."""

    def best(prompt: int, name: str) -> float:
        return max(run.rate for run in runs if (run.prompt, run.mode) == (prompt, name))

    prompts = dict.fromkeys(run.prompt for run in runs)
    return {prompt: best(prompt, mode.name) / best(prompt, PLAIN.name) for prompt in prompts}


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
    and of the prompts the worst."""
    gains = {mode: speedups(runs, mode) for mode in modes}

    def cell(mode: Mode, prompts: Sequence[int]) -> str:
        pairs = zip(seconds(runs, PLAIN, prompts), seconds(runs, mode, prompts), strict=True)
        ratios = [plain / own for plain, own in pairs]
        worst = min(gains[mode][prompt] for prompt in prompts)
        middle = statistics.median(ratios)
        return f"{middle:.2f} [{min(ratios):.2f}–{max(ratios):.2f}], {worst:.2f}"

    rows = [
        [category, str(len(prompts)), *(cell(mode, prompts) for mode in modes)]
        for category, prompts in by_category(runs).items()
    ]
    headers = ["category", "prompts", *(f"{m.name}: all [rounds], worst" for m in modes)]
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
    """Per mode: its rate, its figures of speculation, its worst prompt and the share of Python."""
    rows = []
    for mode in [PLAIN, *modes]:
        own = [run for run in runs if run.mode == mode.name]
        tokens, decode_s = sum(r.tokens for r in own), sum(r.decode_s for r in own)
        drafted = sum(r.drafted for r in own)
        gains = speedups(runs, mode)
        worst = min(gains, key=gains.__getitem__)
        rows.append(
            [
                mode.name,
                f"{tokens / decode_s:.1f}",
                f"{tokens / sum(r.passes for r in own):.2f}",
                f"{sum(r.accepted for r in own) / drafted:.2f}" if drafted else "–",
                f"{gains[worst]:.3f} (prompt {worst})" if mode is not PLAIN else "–",
                f"{sum(r.own_s for r in own) / decode_s:.2%}",
                f"{1 - sum(r.pass_s for r in own) / sum(r.wall_s for r in own):.2%}",
            ]
        )
    headers = ["mode", "tokens/s", "τ", "α", "worst", "drafting and own, of a step"]
    return table([*headers, "outside passes, with streaming"], rows)


@program
@click.option("--runtime", type=click.Choice(RUNTIMES), default="onnx", show_default=True)
@click.option(
    "--prompts",
    "paths",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Questions in Spec-Bench's format. Default: rewriting a file with type hints.",
)
@click.option("--exact/--no-exact", default=True, show_default=True, help="Where the runtime can.")
@click.option(
    "--gamma",
    "gammas",
    multiple=True,
    type=click.IntRange(1, MAX_ROWS - 1),
    metavar="N",
    help="Compare with drafting always N tokens, too.",
)
@click.option("--per-category", type=click.IntRange(1), default=3, show_default=True)
@click.option("--max-tokens", type=click.IntRange(2), default=128, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--stop/--ignore-stop", default=False, show_default=True, help="End as models do.")
@click.option("--context", default=4096, show_default=True)
@click.option("--threads", type=int, help="Default: one a core.")
def generate(
    model: str,
    runtime: str,
    paths: tuple[Path, ...],
    exact: bool,
    gammas: tuple[int, ...],
    per_category: int,
    max_tokens: int,
    rounds: int,
    stop: bool,
    context: int,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Greedy answers with n-grams against plain decoding, on one loaded model.

    A round is plain decoding and every mode, for each prompt, every second one in reverse. Answers
    go on to --max-tokens even after the model's end, to be of equal length.
    """
    read = [prompt for path in paths for prompt in read_prompts(path)]
    prompts = first_of_each(read, per_category) if read else [rewriting_prompt()]
    runs = []
    with Engine.open(
        model, runtime=runtime, draft="none", context=context, threads=threads
    ) as engine:
        mode = EXACT if exact and engine.info.pass_sizes else FAST
        fixed = [Mode(f"γ = {n}", partial(FixedNgram, n), mode.exact) for n in gammas]
        switch = Switch(engine)
        run(switch, PLAIN, prompts[0], 8, stop)  # warms everything up
        for number, prompt in enumerate(prompts, 1):
            order = [PLAIN, mode, *fixed]
            for turn in range(rounds):
                for now in order[::-1] if turn % 2 else order:
                    runs.append(run(switch, now, prompt, max_tokens, stop))
            gain = speedups([r for r in runs if r.prompt == prompt.id], mode)[prompt.id]
            note(f"{number}/{len(prompts)} {prompt.category}: {gain:.2f}×")
    tables = [gains_table(runs, [mode, *fixed]), modes_table(runs, [mode, *fixed])]
    if fixed:
        tables.append(nearness_table(runs, mode, fixed))
    ends = "to the model's end" if stop else "past the model's end"
    title = f"Speed-up over plain decoding: {runtime}, {max_tokens} tokens, {ends}, {rounds} rounds"
    report(title, machine(model), tables, json_path, [asdict(run) for run in runs])


@click.group()
def main() -> None:
    """The cost of passes, and the gain of speculation."""


main.add_command(passes)
main.add_command(generate)


if __name__ == "__main__":
    main()
