"""Puts drafters and scheduler together: the same ones for the engine, the simulator and the bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from edgespec.core.latency import LatencyCurve, LatencyModel
from edgespec.core.runtime import Runtime
from edgespec.core.scheduler import Scheduler
from edgespec.drafting.model import ModelDrafter
from edgespec.drafting.model_free import MODEL_FREE, model_free
from edgespec.drafting.sources import Source
from edgespec.drafting.vocabulary import Vocabulary

DRAFTERS = ("auto", *MODEL_FREE)
"""Drafters that ``--draft`` names; anything else is a model."""


@dataclass(frozen=True)
class DraftModel:
    """A smaller model that is loaded to draft."""

    runtime: Runtime
    curve: LatencyCurve
    """The latency of its passes."""
    readable: int | None = None
    """Tokens of its tokenizer; ``None``: as many as its logits have columns."""
    vocabulary: Vocabulary | None = None
    """How its tokens become the target's; ``None``: they are the same."""


def model_free_name(draft: str) -> str:
    """The model-free drafter that ``draft`` stands for: beside a model, hierarchy."""
    return draft if draft in MODEL_FREE else "hierarchy"


def assemble(
    draft: str,
    vocab_size: int,
    curve: LatencyCurve | None,
    *,
    persistent: Sequence[Source] = (),
    model: DraftModel | None = None,
    clock: Callable[[], float] = perf_counter,
) -> Scheduler:
    """The scheduler of an engine that is opened with ``draft``, with its drafters.

    ``vocab_size`` is the width of the target's logits, ``curve`` the latency of its passes (``None``: not
    measured), ``persistent`` what ``persistent_sources`` opened for ``model_free_name(draft)``.
    ``clock`` gives seconds.
    """
    drafters = model_free(model_free_name(draft), vocab_size, persistent)
    if model is not None:
        drafters.append(
            ModelDrafter(
                model.runtime,
                vocab_size,
                LatencyModel(model.curve),
                readable=model.readable,
                vocabulary=model.vocabulary,
                cascade=True,
                clock=clock,
            )
        )
    return Scheduler(drafters, LatencyModel(curve))
