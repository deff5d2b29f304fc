"""The speed-up by what the n-gram cache learned in an earlier process, on tasks of the same kind."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgespec.bench.child import in_child
from edgespec.bench.experiments.common import (
    experiment,
    machine,
    max_tokens_option,
    note,
    report,
    runtime_option,
    table,
)
from edgespec.bench.experiments.speed import PLAIN, Run, geometric_mean, run, speedups
from edgespec.bench.experiments.switching import Mode, Switch
from edgespec.bench.workloads import PROMPTS, read_prompts
from edgespec.engine import Engine


def day(model: str, runtime: str, name: str, cache: Path, max_tokens: int) -> dict[int, float]:
    """By prompt of the category ``name``: hierarchy's rate over plain decoding's, the cache at ``cache``."""
    runs: list[Run] = []
    with Engine.open(model, runtime=runtime, draft="none") as engine:
        switch = Switch(engine, cache)
        mode = Mode("hierarchy", bool(engine.info.pass_sizes))
        prompts = [
            prompt for prompt in read_prompts(PROMPTS / "habits.jsonl") if prompt.category == name
        ]
        run(switch, PLAIN, prompts[0], 8, False)  # warms everything up
        for number, prompt in enumerate(prompts, 1):
            # once: a second answer would only repeat the first
            learnt = run(switch, mode, prompt, max_tokens, False)
            runs += [learnt, run(switch, PLAIN, prompt, max_tokens, False)]
            note(f"{name}: {number}/{len(prompts)}: {speedups(runs, mode)[prompt.id]:.2f}×")
        switch.close()
    return speedups(runs, mode)


@experiment
@runtime_option
@max_tokens_option(default=128)
def main(model: str, runtime: str, max_tokens: int, json_path: Path | None) -> None:
    """Greedy answers to questions of one kind, half of them in a second process that finds what the
    first one learnt; and as a check the second half without it."""
    gains = {}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept.ngrams"
        gains["day 1"] = in_child(day, model, runtime, "day 1", kept, max_tokens)
        gains["day 2"] = in_child(day, model, runtime, "day 2", kept, max_tokens)
        alone = Path(folder) / "alone.ngrams"
        gains["day 2, nothing kept"] = in_child(day, model, runtime, "day 2", alone, max_tokens)
    rows = [
        [name, f"{geometric_mean(g.values()):.2f}", f"{min(g.values()):.2f}–{max(g.values()):.2f}"]
        for name, g in gains.items()
    ]
    tables = [table(["", "gain over plain decoding, geometric mean", "of the questions"], rows)]
    report(f"Learning: {runtime}, {max_tokens} tokens", machine(model), tables, json_path, gains)
