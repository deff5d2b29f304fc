"""``edgespec tune``: measures the pass times of a model on this machine."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from edgespec.cli.options import model_argument, notice, runtime_option
from edgespec.cli.progress import ProgressBar
from edgespec.cli.table import table_lines
from edgespec.units import format_size

if TYPE_CHECKING:
    from edgespec.device.profile import Profile

_BAR = 62
"""Columns of the longest bar; with its figures, a line has 80."""
_NOISY = 0.1
"""A larger spread makes the scheduler's choices unreliable."""


@click.command()
@model_argument
@runtime_option
@click.option(
    "--device",
    metavar="auto|cpu|gpu[:N]|npu",
    default="auto",
    show_default=True,
    help="The device that the model runs on.",
)
@click.option("--provider", metavar="NAME", help="The execution provider of ONNX Runtime.")
@click.option("--draft", metavar="MODEL", default="none", help="Measure this draft model, too.")
@click.option(
    "--exact/--no-exact",
    default=None,
    help="Measure passes with the padding of --exact. Default: exact if the runtime can.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="The number of CPU threads. Default: one per physical core; other counts are tried.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def tune(model: str, as_json: bool, **options: Any) -> None:
    """Measure the speed of a model on this machine, and save a profile.

    The times of passes over 1 to 32 tokens determine how many tokens to draft. The profile is used
    when the model runs with the same runtime, threads and power source. Tuning takes half a minute
    per runtime; do not use the machine meanwhile.

    \b
    Measure a model on every runtime that can run it:
      edgespec tune qwen2.5-coder-1.5b-instruct
    Measure a model and its draft model on llama.cpp:
      edgespec tune large.gguf --draft small.gguf --runtime llama-cpp
    """
    from edgespec.device.profile_files import dumps
    from edgespec.tuning import tune as measure

    progress = ProgressBar()
    try:
        tuned = measure(model, progress=progress, notice=notice, **options)
    finally:
        progress.stop()
    everything = [*tuned.profiles, *tuned.drafts]
    if as_json:
        use = {"runtime": tuned.best.runtime, "threads": tuned.best.threads}
        kept = [
            {"path": path and str(path), **json.loads(dumps(profile))}
            for profile, path in zip(everything, tuned.paths, strict=True)
        ]
        click.echo(json.dumps({"use": use, **_figures(tuned.best), "profiles": kept}))
    else:
        for profile in [p for p in everything if p.threads == p.best_threads]:
            click.echo("\n".join([*_report(profile), ""]))
        best = tuned.best
        plain, drafted = best.tokens_per_s(0), best.tokens_per_s()
        click.echo(f"Use --runtime {best.runtime} --threads {best.threads}:")
        click.echo(
            f"{plain:.1f} tokens/s, and {drafted:.1f} if half of the drafted tokens are accepted"
        )
        for path in filter(None, tuned.paths):
            click.echo(f"Kept in {path}")
    for profile in everything:
        noise = statistics.median(profile.curve.spread[0])  # where most passes were timed
        if noise > _NOISY:
            notice(
                f"the machine was busy: the times of equal passes on {profile.runtime} differ by {noise:.0%}; "
                "tune again when nothing else runs"
            )


def _figures(profile: Profile) -> dict[str, Any]:
    """The pass times with the fewest cached tokens, and what explains them."""
    return {
        "rows": list(profile.curve.rows),
        "ms": [round(1e3 * seconds, 3) for seconds in profile.curve.seconds[0]],
        "prefill_tokens_per_s": profile.prefill_tokens_per_s,
        "bytes_read": profile.model["weight_bytes"],
        "isa": profile.model.get("isa"),
    }


def _report(profile: Profile) -> Iterator[str]:
    """A profile in at most 80 columns."""
    curve, model = profile.curve, profile.model
    exact = ", exact" if profile.exact else ""
    yield f"{model['name']} on {profile.runtime} {profile.runtime_version}"
    yield f"({profile.device}, {profile.threads} threads, power: {profile.machine['power']}{exact})"
    yield ""
    yield f"  Passes over n tokens after {curve.lengths[0]} cached tokens; on the right, after more"
    longer = [f"ms, {length}" for length in curve.lengths[1:3]]
    once = curve.seconds[0][0]
    rows = [
        (
            str(n),
            f"{1e3 * seconds:.1f}",
            f"{seconds / once:.2f}",
            f"{curve.spread[0][i]:.0%}",
            f"{1e3 * seconds / n:.1f}",
            *(f"{1e3 * row[i]:.1f}" for row in curve.seconds[1:3]),
        )
        for i, (n, seconds) in enumerate(zip(curve.rows, curve.seconds[0], strict=True))
    ]
    yield from table_lines([("n", "ms", "ratio", "spread", "ms/token", *longer), *rows], left=0)
    yield ""
    most = max(curve.seconds[0])
    for n, seconds in zip(curve.rows, curve.seconds[0], strict=True):
        yield f"{n:4}{1e3 * seconds:9.1f} ms {_bar(seconds / most)}"
    yield ""
    yield f"  Prompts: {profile.prefill_tokens_per_s:.0f} tokens/s"
    counts = ", ".join(f"{1e3 * s:.1f} ms on {n}" for n, s in profile.thread_counts.items())
    yield f"  Threads: {counts}"
    size, rate = format_size(float(model["weight_bytes"])), profile.bandwidth
    yield f"  Memory:  a pass reads {size} in {1e3 * once:.1f} ms, {rate / 1e9:.1f} GB/s;"
    memory = float(profile.machine["memory_bytes_per_s"])
    yield f"           {rate / memory:.0%} of the {memory / 1e9:.1f} GB/s that reading alone gets here"


def _bar(share: float) -> str:
    """A bar to an eighth of a column; in plain characters where the output has no others."""
    eighths = max(round(share * _BAR * 8), 1)
    bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    try:
        bar.encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return "#" * max(round(share * _BAR), 1)
    return bar
