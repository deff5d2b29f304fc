"""One loaded model that decodes in any mode: with other drafters, and with or without padded passes.

Two processes that do the same differ by 10 % and more in speed, for as long as they live; so what is compared runs in
one, wherever that can be.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgespec.assemble import assemble
from edgespec.core.draft import Draft
from edgespec.core.drafter import Budget
from edgespec.core.latency import LatencyCurve, LatencyModel
from edgespec.core.scheduler import Scheduler
from edgespec.device.measuring import measure_curve
from edgespec.drafting.hierarchy import Hierarchy
from edgespec.drafting.model import ModelDrafter
from edgespec.drafting.model_free import persistent_sources
from edgespec.drafting.ngram_cache import NgramCache
from edgespec.drafting.sources import Source
from edgespec.drafting.suffix import Suffix
from edgespec.engine import Engine
from edgespec.session import EngineState

_SIZES = (1, 2, 4, 8, 16)
"""Passes that are timed before anything is decoded."""
ALONE = "model"
"""The draft model without the sources beside it."""


@dataclass(frozen=True)
class Mode:
    """A way to decode with a model that is loaded: what drafts, and whether passes are padded."""

    draft: str
    """One of ``MODEL_FREE``, "model", "hierarchy+model", or "γ = N": the longest match, N tokens of it."""
    exact: bool
    nodes: int = 0
    """Always so many guesses, of one of ``MODEL_FREE``; 0: as many as pay."""

    @property
    def name(self) -> str:
        """For people."""
        return self.draft if self.draft != "none" else "plain"


class Fixed(Hierarchy):
    """Drafts so many tokens wherever that many can be guessed, as systems without a scheduler do: the
    likeliest tree, or chain where passes cannot be trees or ``width`` is 1."""

    def __init__(self, sources: Sequence[Source], nodes: int, width: int = sys.maxsize) -> None:
        super().__init__(sources)
        self.nodes, self.width = nodes, width

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        """No confidences: the scheduler does not cut it."""
        nodes, width = min(self.nodes, budget.nodes), min(self.width, budget.width)
        free = replace(budget, nodes=nodes, width=width, pass_seconds=lambda rows: 1.0)
        draft = super().propose(context, free)
        return Draft(draft.tokens, draft.parents)


class Switch:
    """Puts one loaded model, which was opened exact, into any mode. What drafters and costs learn is
    each mode's own, and none of it lasts beyond ``renew``: a drafter must not copy the answer of an earlier round. With
    a ``path`` n-gram caches are read from there, and ``close`` keeps them."""

    def __init__(self, engine: Engine, path: Path | None = None) -> None:
        self.engine = engine
        self._path, self._caches = path, list[NgramCache]()
        self._exact = engine.target.info
        self._model = engine.draft
        self._curves: dict[bool, LatencyCurve] = {}
        self._states: dict[Mode, EngineState] = {}
        self._current: EngineState | None = None

    @property
    def exact_passes(self) -> bool:
        """Whether the runtime has sizes of pass that agree bit for bit."""
        return bool(self._exact.pass_sizes)

    def renew(self) -> None:
        """Begin a round: nothing was learnt yet."""
        self._states.clear()

    def forget(self) -> None:
        """Of the prompt, what a draft model read in another mode."""
        for state in self._states.values():
            for drafter in state.scheduler.drafters:
                if isinstance(drafter, ModelDrafter):
                    drafter.forget()

    def close(self) -> None:
        """Keep what was learnt."""
        for cache in self._caches:
            cache.close()

    def to(self, mode: Mode) -> EngineState:
        """What the sessions of ``Engine.open(draft=…, exact=…)`` would share."""
        target = self.engine.target
        target.info = self._exact if mode.exact else replace(self._exact, pass_sizes=())
        if mode.exact not in self._curves:
            target.truncate(0)
            self._curves[mode.exact] = measure_curve(target, _SIZES, budget_s=5.0)
        if mode not in self._states:
            engine = self.engine
            self._states[mode] = EngineState(
                target, self._scheduler(mode), engine.tokenizer, engine.template, draft=engine.draft
            )
        state = self._states[mode]
        if state is not self._current:  # the cache holds another state's context
            target.truncate(0)
            self._current, state.context = state, []
        return state

    def _scheduler(self, mode: Mode) -> Scheduler:
        draft, curve = mode.draft, self._curves[mode.exact]
        size = self._exact.vocab_size
        if draft.startswith("γ = "):
            fixed = Fixed([Suffix()], int(draft.removeprefix("γ = ")), width=1)
            return Scheduler([fixed], LatencyModel(curve))
        if draft == ALONE:
            return assemble("none", size, curve, model=self._model)
        name = draft.split("+")[0]
        persistent = persistent_sources(
            name, self.engine.tokenizer, self._exact, "", remember=False
        )
        if self._path and persistent and isinstance(persistent[-1], NgramCache):
            persistent[-1] = NgramCache(self._path, "", size)
        self._caches += [source for source in persistent if isinstance(source, NgramCache)]
        model = self._model if "+" in draft else None
        scheduler = assemble(name, size, curve, persistent=persistent, model=model)
        if mode.nodes:
            fixed_drafters = [
                Fixed(d.sources, mode.nodes) for d in scheduler.drafters if isinstance(d, Hierarchy)
            ]
            return Scheduler(fixed_drafters, scheduler.latency)
        return scheduler
