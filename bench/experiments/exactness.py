"""Greedy answers with and without drafting: are they the same tokens?

On the onnx runtime with ``--exact`` they must be identical. llama.cpp's kernels depend on the size
of a pass, so there answers may part at a near tie: then the target's own logits of the two tokens,
after the prefix that both answers share, must lie less than 0.5 apart.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
from edgespec.bench.workloads import Prompt, read_prompts
from edgespec.core.decoding import prefill
from edgespec.core.runtime import Runtime
from edgespec.engine import Engine
from edgespec.runtimes import get

NEAR_TIE = 0.5
"""A smaller difference of two logits may fall either way with another order of summation."""


@dataclass(frozen=True)
class Answer:
    """Token ids of a prompt and of its answer, and the tokens per target pass."""

    prompt: list[int]
    tokens: list[int]
    block_efficiency: float
    exact: bool


@dataclass(frozen=True)
class Difference:
    """Where two answers part. ``gap`` is the target's between the logits of the two tokens."""

    prompt: int
    position: int
    gap: float


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The first position at which two answers differ; ``None`` if they are identical.

    One cannot go on where the other ended: both end at the same stop token or at the same length.
    """
    pairs = enumerate(zip(a, b, strict=True))
    return next((i for i, (x, y) in pairs if x != y), None)


def answers(engine: Engine, prompts: Sequence[Prompt], max_tokens: int) -> list[Answer]:
    """The engine's greedy answers, each to a conversation of its own."""
    found = []
    for number, prompt in enumerate(prompts, 1):
        session = engine.session()
        answer = session.chat if engine.can_chat else session.complete
        for _ in answer(prompt.text, max_tokens=max_tokens):
            pass
        figures = session.statistics
        note(f"{number}/{len(prompts)} {prompt.category}, {figures.drafter}")
        tau = figures.block_efficiency
        found.append(Answer(session.prompt_ids, session.token_ids, tau, figures.exact))
    return found


def logit_gap(target: Runtime, prefix: list[int], a: int, b: int) -> float:
    """How far apart the target's logits of ``a`` and ``b`` are after ``prefix``."""
    target.truncate(0)
    prefill(target, prefix)
    logits = target.forward([prefix[-1]])[-1]
    return abs(float(logits[a]) - float(logits[b]))


@experiment
@runtime_option
@click.option(
    "--prompts",
    "count",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="How many prompts.",
)
@click.option("--draft", default="hierarchy", show_default=True)
@max_tokens_option(default=128)
@context_option(default=2048)
@threads_option
def main(
    model: str,
    runtime: str,
    count: int,
    draft: str,
    max_tokens: int,
    context: int,
    threads: int | None,
    json_path: Path | None,
) -> None:
    """Compare the greedy tokens of `--draft none` and of --draft, both with `--exact`.

    Exits with 1 if they differ, other than at a near tie where the runtime is not exact.
    """
    prompts = read_prompts()[:count]

    def open_engine(draft: str) -> Engine:
        return Engine.open(model, runtime=runtime, draft=draft, context=context, threads=threads)

    with open_engine("none") as engine:
        plain = answers(engine, prompts, max_tokens)
    differences = []
    with open_engine(draft) as engine:
        drafted = answers(engine, prompts, max_tokens)
        for prompt, a, b in zip(prompts, plain, drafted, strict=True):
            if (i := first_difference(a.tokens, b.tokens)) is not None:
                prefix = a.prompt + a.tokens[:i]
                gap = logit_gap(engine.target, prefix, a.tokens[i], b.tokens[i])
                differences.append(Difference(prompt.id, i, gap))

    near_ties = sum(difference.gap < NEAR_TIE for difference in differences)
    allowed = 0 if get(runtime).exact else near_ties
    tau = sum(answer.block_efficiency for answer in drafted) / len(drafted)
    row = [
        f"{len(prompts) - len(differences)} of {len(prompts)}",
        str(near_ties),
        str(len(differences) - near_ties),
        "yes" if all(answer.exact for answer in plain + drafted) else "no",
        str(sum(len(answer.tokens) for answer in drafted)),
        f"{tau:.2f}",
    ]
    tables = [
        table(
            ["identical", f"gap < {NEAR_TIE}", "others", "exact", "tokens", "tokens a pass"], [row]
        )
    ]
    if differences:
        rows = [[str(d.prompt), str(d.position), f"{d.gap:.3f}"] for d in differences]
        tables.append(table(["prompt", "first difference at", "logit gap"], rows))
    figures = {
        "prompts": len(prompts),
        "identical": len(prompts) - len(differences),
        "near_ties": near_ties,
        "differences": [asdict(difference) for difference in differences],
    }
    report(f"Exactness: {runtime}, none vs {draft}", machine(model), tables, json_path, figures)
    sys.exit(len(differences) > allowed)
