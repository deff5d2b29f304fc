"""How much simulated decoding depends on each tuned constant: replays with it halved and doubled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType

import click
from rich.console import Console
from rich.table import Table

from edgespec.bench.experiments.common import Failure
from edgespec.core import latency, scheduler
from edgespec.device.profile import Profile
from edgespec.device.profile_files import read_profile
from edgespec.drafting import (
    acceptance_estimator,
    exploration,
    hierarchy,
    recycling,
    stopping,
    suffix,
    suffix_automaton,
)
from edgespec.errors import UserError
from edgespec.runtimes import get
from edgespec.simulation.simulate import predict
from edgespec.simulation.trace import Trace, read_trace

SIMULATED = (
    scheduler,
    latency,
    hierarchy,
    suffix,
    suffix_automaton,
    recycling,
    acceptance_estimator,
    stopping,
    exploration,
)
"""Modules of which the simulation reads the constants. It has no n-gram cache, no indexes, no other tokenizer, no
cascade, and always a measured curve."""
_MODEL_FREE = ("suffix", "recycling")
_EXCESS = ("margin", "strong")
"""Constants that are a factor over plain decoding: their excess over 1 is scaled."""


@dataclass(frozen=True)
class Sensitivity:
    """The effect of a constant on the simulated tokens per second of a drafter."""

    constant: str
    value: float
    drafter: str
    halved: float
    """Tokens per second with the constant halved, over those with its present value."""
    doubled: float


def scaled(name: str, value: float, factor: float) -> float:
    """``value`` of the constant ``name``, ``factor`` times as large.

    Of a factor on earlier observations it is the memory 1 / (1 - value) that is scaled. Counts stay at least 1, and
    what is below 1 stays at most 1.
    """
    if name == "recent" or name.endswith("forgetting"):
        return max(0.0, 1 - (1 - value) / factor)
    if name in _EXCESS:
        return 1 + factor * (value - 1)
    if isinstance(value, int):
        return max(1, round(value * factor))
    return min(1.0, value * factor) if value < 1 else value * factor


@contextmanager
def changed(module: ModuleType, name: str, value: float) -> Iterator[None]:
    """Give the constant ``name`` of ``module`` another value for a while."""
    before = module.CONSTANTS
    setattr(module, "CONSTANTS", replace(before, **{name: value}))  # noqa: B010
    try:
        yield
    finally:
        setattr(module, "CONSTANTS", before)  # noqa: B010


def tokens_per_s(
    traces: Sequence[Trace], target: Profile, drafter: str, draft: Profile | None
) -> float:
    """Simulated tokens per second of ``drafter`` over all ``traces``."""
    return predict(
        traces,
        target.curve,
        drafter,
        pass_sizes=target.pass_sizes,
        draft_curve=draft.draft_curve(get(draft.runtime).prefill_chunk) if draft else None,
    ).decode_tokens_per_s


def measure(traces: Sequence[Trace], profiles: Sequence[Profile]) -> list[Sensitivity]:
    """Every constant with every drafter, those with the largest effect first.

    Drafters are the model-free ones that can be simulated, and draft models that all ``traces`` and one of the
    ``profiles`` have. Raises ``UserError`` if no profile is of the traces' model.
    """
    by_model = {str(profile.model["name"]): profile for profile in profiles}
    models = {trace.model for trace in traces}
    if len(models) != 1 or not models <= set(by_model):
        raise UserError(
            f"the traces are of {', '.join(sorted(models))} and the profiles of "
            f"{', '.join(by_model)}; give traces of one model, and its profile"
        )
    target = by_model[models.pop()]
    drafts = set.intersection(*(set(trace.drafts) for trace in traces)) & set(by_model)
    found = []
    for drafter in (*_MODEL_FREE, *sorted(drafts)):
        draft = by_model.get(drafter)
        present = tokens_per_s(traces, target, drafter, draft)
        for module in SIMULATED:
            owner = module.__name__.rpartition(".")[2]
            for field in fields(module.CONSTANTS):
                value, ratios = getattr(module.CONSTANTS, field.name), []
                for factor in (0.5, 2.0):
                    with changed(module, field.name, scaled(field.name, value, factor)):
                        ratios.append(tokens_per_s(traces, target, drafter, draft) / present)
                found.append(Sensitivity(f"{owner}.{field.name}", value, drafter, *ratios))
    return sorted(found, key=lambda one: -max(abs(one.halved - 1), abs(one.doubled - 1)))


def print_table(found: Sequence[Sensitivity]) -> None:
    """A row for each constant and drafter that it has an effect on, and the others in a line."""
    table = Table("constant", "drafter", title="Change of simulated tokens per second")
    for header in ("value", "halved", "doubled"):
        table.add_column(header, justify="right")
    moving = [one for one in found if (one.halved, one.doubled) != (1, 1)]
    for one in moving:
        changes = [f"{ratio - 1:+.2%}" for ratio in (one.halved, one.doubled)]
        table.add_row(one.constant, one.drafter, f"{one.value:g}", *changes)
    console = Console()
    console.print(table)
    still = sorted({one.constant for one in found} - {one.constant for one in moving})
    if still:
        console.print(f"Without effect on these traces: {', '.join(still)}", highlight=False)


@click.command()
@click.option(
    "--device-profile",
    "profiles",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="From `edgespec tune`, of the traces' model; of a draft model another.",
)
@click.option(
    "--trace",
    "traces",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="From `edgespec generate --trace FILE`; may be given several times.",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write figures there.")
def main(profiles: tuple[Path, ...], traces: tuple[Path, ...], json_path: Path | None) -> None:
    """Halve and double each tuned constant, and simulate decoding the recorded answers again."""
    try:
        found = measure([*map(read_trace, traces)], [*map(read_profile, profiles)])
    except UserError as error:
        raise Failure(str(error)) from error
    print_table(found)
    if json_path is not None:
        json_path.write_text(json.dumps([asdict(one) for one in found], indent=1), "utf-8")


if __name__ == "__main__":
    main()
