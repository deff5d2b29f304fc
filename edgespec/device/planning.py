"""Chooses a run configuration for a memory budget, before loading (after SpecMemo).

These are given up, in this order, until the rest fits:

1. rows of a pass: drafts get shorter, which costs a little speed;
2. the draft model: costs speed, never changes the output;
3. the runtime, if it is auto: with another one, near ties may give other tokens;
4. the cache's precision, where the runtime has a smaller one: costs a little quality;
5. context: the model forgets the conversation sooner, which a user notices most.

Prompt lookup takes a few hundred bytes per token and is never given up: the context bounds its tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgespec.core.runtime import MAX_ROWS
from edgespec.core.runtime_spec import ModelDimensions, RunConfiguration, RuntimeSpec
from edgespec.device.memory import DRAFT_ROWS, MIB, Memory, predict
from edgespec.errors import UserError

LEAST_CONTEXT = 256
"""Tokens for a question and an answer: with less a model is of no use."""
_STEP = 64
"""Contexts that are chosen are multiples of so many tokens."""
_MUCH = 1.1
"""Where context must be given up anyway, something else is only for so many times as much context."""
_ROWS = (MAX_ROWS, 8, 4, 2)
_RESERVE, _SHARE = 8 * MIB, 25
"""Kept free of every budget, with one part in ``_SHARE`` of the prediction: it is one."""
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


@dataclass(frozen=True)
class Asked:
    """What is to be planned for."""

    model: ModelDimensions
    runtimes: Sequence[RuntimeSpec]
    """That may run it, the preferred one first."""
    context: int
    draft: ModelDimensions | None = None
    draft_context: int = 0
    """The most that the draft model takes."""
    draft_runtime: Callable[[RuntimeSpec], RuntimeSpec] = lambda target: target
    """The runtime of the draft model, by that of the target."""
    tables: bool = True
    """Whether the context is searched for drafts."""
    built: bool = True
    """``False``: runtimes that take built models have them built first."""


@dataclass(frozen=True)
class Plan:
    """What is run, and what it takes."""

    run: RunConfiguration
    draft: RunConfiguration | None
    memory: Memory
    budget: int | None
    least: int
    """The smallest budget, in bytes, in which the model runs at all."""
    given_up: tuple[str, ...] = ()
    """In words: what of what was asked for, and for what."""

    @property
    def reserve(self) -> int:
        """Bytes kept free, since a prediction is no measurement."""
        return _reserve(self.memory)

    def as_dict(self) -> dict[str, Any]:
        """The one object of ``plan --json``."""
        run = self.run
        return {
            "runtime": run.runtime.name,
            "context": run.context,
            "cache_type": run.cache_type,
            "draft_model": self.draft is not None,
            "max_rows": run.rows,
            "memory": dict(self.memory.components()),
            "total_bytes": self.memory.total,
            "reserve_bytes": self.reserve,
            "budget_bytes": self.budget,
            "smallest_budget_bytes": self.least,
            "given_up": list(self.given_up),
        }


def parse_bytes(text: str) -> int:
    """``900MiB``, ``1.5 GB`` or plain bytes; a ``UserError`` for anything else."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if not found or found[2] not in _UNITS:
        raise UserError(f"{text[:40]!r} is not a size; write 900MiB, 2GB or plain bytes")
    size = int(float(found[1]) * _UNITS[found[2]])
    if not size:
        raise UserError("a memory budget of 0 is too small; write 900MiB, 2GB or plain bytes")
    return size


def show_bytes(size: int) -> str:
    """Format a size in whole MiB, rounded up: a shown budget is always enough."""
    return f"{-(-size // MIB)} MiB"


def plan(asked: Asked, budget: int | None) -> Plan:
    """What to run within ``budget`` bytes; everything asked for where there is none.

    Raises ``UserError`` where nothing fits.
    """
    first, *others = _choices(asked)
    if budget is None:
        return Plan(*_with_context(asked, first, asked.context), None, _least(asked))
    best = _fitted(asked, first, budget)
    for choice in others:
        most = best[0].context if best else 0
        if most == asked.context:
            break
        fitted = _fitted(asked, choice, budget)
        if fitted and (fitted[0].context == asked.context or fitted[0].context > _MUCH * most):
            best = fitted
    least = _least(asked)
    if best is None:
        raise UserError(
            f"{show_bytes(budget)} is too little for this model; "
            f"the smallest --memory-budget that it runs in is {show_bytes(least)}"
        )
    return Plan(*best, budget, least, tuple(_given_up(asked, first, *best[:2])))


@dataclass(frozen=True)
class _Choice:
    runtime: RuntimeSpec
    cache_type: str
    drafts: bool
    rows: int


def _choices(asked: Asked) -> Iterator[_Choice]:
    """All that may be run, the best first: see the module's text."""
    usual = [(runtime, runtime.cache_types_of(asked.model)[0]) for runtime in asked.runtimes]
    smaller = [(r, kind) for r in asked.runtimes for kind in r.cache_types_of(asked.model)[1:]]
    for runtime, kind in usual + smaller:
        for drafts in (True, False) if asked.draft else (False,):
            for rows in _ROWS:
                yield _Choice(runtime, kind, drafts, rows)


def _with_context(
    asked: Asked, choice: _Choice, context: int
) -> tuple[RunConfiguration, RunConfiguration | None, Memory]:
    run = RunConfiguration(
        choice.runtime, context, choice.cache_type, choice.rows, _built(asked, choice.runtime)
    )
    own = None
    if choice.drafts and asked.draft:
        runtime = asked.draft_runtime(choice.runtime)
        types = runtime.cache_types_of(asked.draft)
        kind = choice.cache_type if choice.cache_type in types else types[0]
        room = min(context, asked.draft_context)
        own = RunConfiguration(runtime, room, kind, DRAFT_ROWS, _built(asked, runtime))
    draft = (asked.draft, own) if asked.draft and own else None
    return run, own, predict(asked.model, run, draft, asked.tables)


def _built(asked: Asked, runtime: RuntimeSpec) -> bool:
    return asked.built or "built" not in runtime.forms


def _fitted(
    asked: Asked, choice: _Choice, budget: int
) -> tuple[RunConfiguration, RunConfiguration | None, Memory] | None:
    """With the largest context that fits; ``None`` where not even the least does."""

    def fits(context: int) -> bool:
        memory = _with_context(asked, choice, context)[2]
        return memory.total + _reserve(memory) <= budget

    low, high = min(LEAST_CONTEXT, asked.context), asked.context
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    if low < asked.context:
        low = max(min(LEAST_CONTEXT, asked.context), low // _STEP * _STEP)
    return _with_context(asked, choice, low)


def _least(asked: Asked) -> int:
    context = min(LEAST_CONTEXT, asked.context)
    needs = (_with_context(asked, choice, context)[2] for choice in _choices(asked))
    return min(memory.total + _reserve(memory) for memory in needs)


def _reserve(memory: Memory) -> int:
    return _RESERVE + memory.total // _SHARE


def _given_up(
    asked: Asked, first: _Choice, run: RunConfiguration, draft: RunConfiguration | None
) -> Iterator[str]:
    """A line for everything that the first choice has and the plan has not."""

    def saved(**smaller: Any) -> str:
        """What ``smaller`` saves of the plan as it was asked for."""
        whole = _with_context(asked, first, asked.context)[2].total
        context = smaller.pop("context", asked.context)
        less = _with_context(asked, replace(first, **smaller), context)[2].total
        return f"saves {show_bytes(max(0, whole - less))}"

    if run.runtime != first.runtime:
        change = saved(runtime=run.runtime, cache_type=run.runtime.cache_types_of(asked.model)[0])
        yield f"{first.runtime.name}: {run.runtime.name} needs less ({change}); near ties may give other tokens"
    if asked.draft and draft is None:
        yield f"the draft model ({saved(drafts=False)}): n-grams draft instead, and the answers are the same"
    if run.rows < first.rows:
        yield f"passes of more than {run.rows} rows: drafts are shorter and answers slower, but the same"
    usual = run.runtime.cache_types_of(asked.model)[0]
    if run.cache_type != usual:
        yield f"a cache of {usual}: {run.cache_type} is smaller and slightly less precise"
    if run.context < asked.context:
        lost = asked.context - run.context
        yield (
            f"{lost} of {asked.context} tokens of context ({saved(context=run.context)}): "
            "long conversations lose their oldest turns sooner"
        )
