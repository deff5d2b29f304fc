"""``edgespec plan``: the run configuration, its memory, and predicted speed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgespec.cli.options import model_argument, notice, plan_options
from edgespec.cli.progress import ProgressBar
from edgespec.cli.table import print_table
from edgespec.units import format_size

if TYPE_CHECKING:
    from edgespec.device.planning import Plan
    from edgespec.simulation.simulate import Prediction

_NAMES = {
    "python": "Python and libraries",
    "tokenizer": "tokenizer",
    "runtime": "runtime",
    "weights": "weights",
    "cache": "key-value cache",
    "logits": "logits",
    "activations": "activations",
    "tables": "drafter tables",
    "draft_weights": "draft model: weights",
    "draft_cache": "draft model: cache",
    "draft_rest": "draft model: the rest",
    "loading": "more while loading",
}


@click.command()
@model_argument
@plan_options
@click.option(
    "--device-profile",
    "profile_paths",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Predict the speed of --trace on another device, from a profile that `edgespec tune` wrote "
    "there. Repeat it for a draft model's profile.",
)
@click.option(
    "--trace",
    "trace_paths",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A trace that `edgespec generate --trace` wrote; may be repeated. Without --device-profile, "
    "replay it on its recorded times and compare the choices.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def plan(
    model: str,
    runtime: str,
    device: str,
    draft: str,
    context: int | None,
    memory_budget: int | None,
    profile_paths: tuple[Path, ...],
    trace_paths: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Show the runtime, the memory use, and what a memory budget costs.

    The model is not loaded: its memory use is predicted from its metadata. MODEL is a name from
    `edgespec models list`, a .gguf file, a bundle or a safetensors folder; smollm2-135m-instruct
    by default. A part of the budget is kept in reserve for prediction errors.

    \b
    Fit a model in 1400 MiB:
      edgespec plan qwen2.5-coder-1.5b-instruct --memory-budget 1400MiB
    Print the smallest budget that the model runs in:
      edgespec plan qwen2.5-coder-1.5b-instruct --json | jq .smallest_budget_bytes
    Predict the speed on a phone from its profile:
      edgespec plan qwen2.5-coder-1.5b-instruct --device-profile phone.json --trace answer.json
    Check that the scheduler makes the recorded choices again:
      edgespec plan --trace answer.json
    """
    from edgespec.engine import Engine
    from edgespec.simulation.simulate import simulate

    if profile_paths and not trace_paths:
        raise click.UsageError("--device-profile needs --trace")
    predictions = simulate(profile_paths, trace_paths) if profile_paths else []
    replays = [] if profile_paths else [_replay(path) for path in trace_paths]
    progress = ProgressBar()
    try:
        chosen = Engine.plan(
            model, runtime=runtime, device=device, draft=draft, context=context,
            memory_budget=memory_budget, progress=progress,
        )  # fmt: skip
    finally:
        progress.stop()
    if as_json:
        found: dict[str, object] = {}
        if predictions:
            found["predictions"] = [asdict(prediction) for prediction in predictions]
        if replays:
            found["replays"] = [asdict(replay) for replay in replays]
        click.echo(json.dumps({**chosen.as_dict(), **found}))
        return
    _print_plan(chosen)
    if predictions:
        click.echo(f"\nPredicted for {predictions[0].device}, over {len(trace_paths)} answers:")
        _print_predictions(predictions)
    if replays:
        click.echo()
    for replay in replays:
        click.echo(
            f"{replay.trace}: {replay.same} of {replay.steps} choices reproduced, "
            f"{replay.tokens_per_s:.1f} tokens/s, {replay.block_efficiency:.2f} tokens per pass"
        )


@dataclass(frozen=True)
class _Replay:
    """A trace that was replayed on its recorded times."""

    trace: str
    steps: int
    same: int
    """Steps, from the first on, with the recorded choice."""
    tokens_per_s: float
    block_efficiency: float


def _replay(path: Path) -> _Replay:
    from edgespec.simulation.simulate import replay
    from edgespec.simulation.trace import read_trace

    trace = read_trace(path)
    replayed = replay(trace)
    assert trace.recording is not None  # `replay` raises without one
    if not trace.recording.fresh:
        notice(f"{path}: the drafters knew earlier answers: choices may differ")
    stats = replayed.statistics
    return _Replay(
        str(path),
        len(trace.recording.steps),
        replayed.same,
        stats.decode_tokens_per_s,
        stats.block_efficiency,
    )


def _print_predictions(predictions: Sequence[Prediction]) -> None:
    rows = [("DRAFT", "TOKENS/S", "SPEEDUP", "TOKENS/PASS", "J/TOKEN")]
    for found in predictions:
        energy = "unknown" if found.joules_per_token is None else f"{found.joules_per_token:.3f}"
        rows.append(
            (
                found.drafter,
                f"{found.tokens_per_s:.1f}",
                f"{found.speed_up:.2f}×",
                f"{found.block_efficiency:.2f}",
                energy,
            )
        )
    print_table(rows, left=1)


def _print_plan(plan: Plan) -> None:
    from edgespec.device.planning import show_bytes

    run = plan.run
    drafter = f"{plan.draft.runtime.name}, {plan.draft.context} tokens" if plan.draft else "none"
    print_table(
        [
            ("SETTING", "VALUE"),
            ("runtime", run.runtime.name),
            ("context", f"{run.context} tokens"),
            ("cache", run.cache_type),
            ("draft model", drafter),
            ("tokens per pass", f"at most {run.rows}"),
        ]
    )
    click.echo()
    rows = [("MEMORY", "SIZE")]
    rows += [(_NAMES[name], format_size(size)) for name, size in plan.memory.components() if size]
    rows.append(("total", format_size(plan.memory.total)))
    if plan.budget is not None:
        rows += [("reserve", format_size(plan.reserve)), ("budget", format_size(plan.budget))]
    # rounded up: the shown size must be enough
    rows.append(("smallest budget", show_bytes(plan.least)))
    print_table(rows, left=1)
    if plan.given_up:
        click.echo("\nGiven up:")
        for line in plan.given_up:
            click.echo(f"  {line}")
