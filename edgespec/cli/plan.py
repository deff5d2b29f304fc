"""``edgespec plan``: what would run, in how much memory, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgespec.cli.options import model_argument, plan_options
from edgespec.cli.progress import ProgressBar

if TYPE_CHECKING:
    from edgespec.device.planning import Plan

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
    help="A profile that `edgespec tune` made on the device to plan for, of the model and of each that "
    "drafts for it. Give --trace with it.",
)
@click.option(
    "--trace",
    "trace_paths",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An answer that `edgespec generate --trace` recorded, to predict the speed of.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
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
    """Show what would run, in how much memory, and what is given up for a memory budget.

    The model is not loaded: what it takes is predicted from its metadata. MODEL is a name of
    `edgespec models list`, a .gguf file, a bundle or a safetensors folder; smollm2-135m-instruct
    by default. Of a budget a little is kept in reserve, since a prediction is no measurement.

    \b
    What fits in 1400 MiB:
      edgespec plan qwen2.5-coder-1.5b-instruct --memory-budget 1400MiB
    The smallest budget that a model runs in:
      edgespec plan qwen2.5-coder-1.5b-instruct --json | jq .smallest_budget_bytes
    How fast it would be on a phone where it was tuned:
      edgespec plan qwen2.5-coder-1.5b-instruct --device-profile phone.json --trace answer.json
    """
    from edgespec.engine import Engine
    from edgespec.simulation.simulate import simulate

    if bool(profile_paths) != bool(trace_paths):
        raise click.UsageError("--device-profile and --trace go together")
    predictions = simulate(profile_paths, trace_paths) if trace_paths else []
    progress = ProgressBar()
    try:
        chosen = Engine.plan(
            model, runtime=runtime, device=device, draft=draft, context=context,
            memory_budget=memory_budget, progress=progress,
        )  # fmt: skip
    finally:
        progress.stop()
    if as_json:
        figures = {"predictions": [asdict(found) for found in predictions]} if predictions else {}
        click.echo(json.dumps({**chosen.as_dict(), **figures}))
        return
    _show(chosen)
    if predictions:
        click.echo(f"\nPredicted for {predictions[0].device}, of {len(trace_paths)} answers:")
        click.echo(
            f"{'draft':<22}{'tokens/s':>10}{'of plain':>10}{'tokens a pass':>15}{'J a token':>11}"
        )
    for found in predictions:
        energy = "unknown" if found.joules_per_token is None else f"{found.joules_per_token:.3f}"
        click.echo(
            f"{found.drafter:<22}{found.tokens_per_s:>10.1f}{found.speed_up:>9.2f}×"
            f"{found.block_efficiency:>15.2f}{energy:>11}"
        )


def _show(plan: Plan) -> None:

    run = plan.run
    drafter = f"{plan.draft.runtime.name}, {plan.draft.context} tokens" if plan.draft else "none"
    for name, value in (
        ("runtime", run.runtime.name),
        ("context", f"{run.context} tokens"),
        ("cache", run.cache_type),
        ("draft model", drafter),
        ("rows of a pass", f"at most {run.rows}"),
    ):
        click.echo(f"{name:<22} {value}")
    click.echo()
    rows = [(_NAMES[name], size) for name, size in plan.memory.components() if size]
    rows.append(("total", plan.memory.total))
    if plan.budget is not None:
        rows += [("reserve", plan.reserve), ("budget", plan.budget)]
    rows.append(("smallest budget", plan.least))
    for name, size in rows:
        click.secho(f"{name:<22} {size:>15,} bytes", bold=name == "total")
    if plan.given_up:
        click.echo("\nGiven up:")
        for line in plan.given_up:
            click.echo(f"  {line}")
