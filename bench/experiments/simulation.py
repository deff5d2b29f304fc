"""How well `edgespec plan --device-profile FILE --trace FILE` predicts: simulated speed beside measured speed."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

import click

from edgespec.bench.experiments.common import (
    chosen_prompts,
    experiment,
    machine,
    max_tokens_option,
    note,
    prompts_option,
    report,
    runtime_option,
    table,
)
from edgespec.bench.experiments.speed import PLAIN, answer, run
from edgespec.bench.experiments.switching import ALONE, Mode, Switch
from edgespec.bench.workloads import Prompt
from edgespec.device.profile_files import read_profile
from edgespec.engine import Engine
from edgespec.simulation.simulate import Prediction, simulate
from edgespec.simulation.trace import Trace, write_trace

_MODEL_FREE = ("none", "suffix", "hierarchy")
_WITH_MODEL = f"hierarchy+{ALONE}"
"""How ``Engine.open`` drafts with a model."""


def measure(
    switch: Switch, modes: list[Mode], prompts: list[Prompt], max_tokens: int
) -> tuple[dict[str, float], list[Trace]]:
    """Tokens a second of decoding by what drafts, and every answer's trace."""
    seconds, tokens = defaultdict[str, float](float), defaultdict[str, int](int)
    traces = []
    for number, prompt in enumerate(prompts, 1):
        for mode in modes if number % 2 else modes[::-1]:
            switch.forget()
            session = answer(switch.to(mode), prompt, max_tokens, stop=False)
            seconds[mode.draft] += session.statistics.decode_s
            tokens[mode.draft] += session.statistics.generated_tokens
            if mode == modes[-1]:
                traces.append(session.trace())
        note(f"{number}/{len(prompts)} {prompt.category}")
    return {draft: tokens[draft] / seconds[draft] for draft in seconds}, traces


def rows_of(predictions: list[Prediction], measured: dict[str, float]) -> list[list[str]]:
    """Per drafter: measured and predicted tokens/s, their ratio, and the predicted τ."""
    rows = []
    for prediction in predictions:
        rate = measured[prediction.drafter if prediction.drafter in _MODEL_FREE else _WITH_MODEL]
        rows.append(
            [
                prediction.drafter,
                f"{rate:.1f}",
                f"{prediction.tokens_per_s:.1f}",
                f"{prediction.tokens_per_s / rate:.3f}",
                f"{prediction.block_efficiency:.2f}",
            ]
        )
    return rows


@experiment
@runtime_option
@click.option("--draft", metavar="MODEL", help="A draft model, beside none, suffix and hierarchy.")
@click.option(
    "--device-profile",
    "profiles",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `edgespec tune` wrote of MODEL on this runtime; of the draft model another.",
)
@prompts_option
@click.option("--per-category", type=click.IntRange(1), default=1, show_default=True)
@max_tokens_option(default=128)
def main(
    model: str,
    runtime: str,
    draft: str | None,
    profiles: tuple[Path, ...],
    path: Path | None,
    per_category: int,
    max_tokens: int,
    json_path: Path | None,
) -> None:
    """Measure greedy answers with each drafter, and simulate them from the profiles and the answers' traces."""
    for file in profiles:
        read_profile(file)  # before minutes of measuring
    prompts = chosen_prompts(path, per_category)
    with Engine.open(model, runtime=runtime, draft=draft or "none") as engine:
        switch = Switch(engine)
        drafts = [*_MODEL_FREE, *([_WITH_MODEL] if draft else [])]
        modes = [Mode(name, switch.exact_passes) for name in drafts]
        run(switch, PLAIN, prompts[0], 8, False)  # warms everything up
        measured, traces = measure(switch, modes, prompts, max_tokens)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.json" for number in range(len(traces))]
        for trace, file in zip(traces, paths, strict=True):
            write_trace(trace, file)
        simulated = simulate(profiles, paths)
    rows = rows_of(simulated, measured)
    headers = ["draft", "measured, tokens/s", "predicted", "predicted / measured", "predicted τ"]
    title = f"Simulation: {runtime}, {len(prompts)} answers of {max_tokens} tokens"
    report(title, machine(model), [table(headers, rows)], json_path, rows)
