"""An engine: one model, opened on this device, with what drafts for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

from edgespec.core.acceptance import Rule
from edgespec.core.latency import LatencyModel
from edgespec.core.runtime import DEFAULT_CONTEXT, ModelInfo, Runtime
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Scheduler
from edgespec.core.statistics import Statistics
from edgespec.device import profile as profiles
from edgespec.device import profile_files
from edgespec.device.measuring import QUICK_ROWS, measure_profile
from edgespec.device.memory import NGRAM_CACHE_BYTES, RunConfiguration
from edgespec.device.placement import Placement, known
from edgespec.device.planning import Plan
from edgespec.device.profile import Profile
from edgespec.drafting.cross_vocabulary import between
from edgespec.drafting.model import ModelDrafter
from edgespec.drafting.model_free import MODEL_FREE, model_free, persistent_sources
from edgespec.drafting.ngram_cache import MAX_BYTES, NgramCache
from edgespec.errors import UserError
from edgespec.models.chat_template import ChatTemplate
from edgespec.models.store import UnknownModel
from edgespec.opening import (
    Model,
    draft_runtime,
    find,
    find_draft,
    find_places,
    load,
    plan_memory,
)
from edgespec.progress import Progress, silent
from edgespec.runtimes.devices import check_threads
from edgespec.session import Loaded, Notice, Session, ignore_notice

DRAFTERS = ("auto", *MODEL_FREE)
_DRAFT_PROFILED = (1, 2)
"""Of a draft: after a rejection, and after a draft accepted whole."""
_PROFILED_S = 0.9
"""Seconds that this takes, for each model."""


@dataclass(frozen=True)
class Completion:
    """An answer and what it cost. ``token_ids`` includes the stop token."""

    text: str
    token_ids: list[int]
    finish_reason: str
    statistics: Statistics


class Engine:
    """A model ready to answer; open it with ``Engine.open``, close it or use it in ``with``."""

    def __init__(self, loaded: Loaded, recommended: Mapping[str, float] | None = None) -> None:
        self.loaded = loaded
        """What the engine's sessions share: its runtime, scheduler, tokenizer and template."""
        self.recommended: Mapping[str, Any] = recommended or {}
        """Fields of ``Sampling`` that the model's makers recommend for conversation."""

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        runtime: str = "auto",
        device: str = "auto",
        provider: str | None = None,
        draft: str = "auto",
        exact: bool | None = None,
        context: int | None = None,
        threads: int | None = None,
        memory_budget: int | None = None,
        remember: bool = True,
        planned: Callable[[Plan], None] | None = None,
        notice: Notice = ignore_notice,
        progress: Progress = silent,
    ) -> Engine:
        """Open a model: a name in the catalogue (pulled if absent), a GGUF file, a folder with a bundle,
        with safetensors or with what Optimum exported.

        ``runtime`` is auto or one of ``runtimes.RUNTIMES``; ``device`` auto, cpu, gpu[:N] or npu; ``provider`` an
        execution provider of ONNX Runtime. ``draft`` is auto (hierarchy, and what the bundle has), one of
        ``MODEL_FREE``, or a smaller model, named as ``model`` is, which drafts beside hierarchy; it
        runs where the target does, where that can run it. ``exact`` makes greedy tokens
        independent, bit for bit, of what was drafted: by default where the runtime can, and what is auto is chosen
        by speed alone; with ``True`` nothing else will do. ``context`` is the most
        tokens of prompt and answer (default: the model's, at most 4096); ``threads`` defaults to one
        a core. What is auto or left open of runtime, device and threads is what profiles of this
        machine (`edgespec tune`) say is the fastest; without a profile, passes are timed for a second.
        ``memory_budget`` is the most bytes of resident memory to take: runtime (where it is auto),
        context, cache, draft model and passes are chosen to fit. Without ``remember`` nothing that
        was learnt of earlier answers is read, nor what these teach kept. ``planned`` is told what was chosen,
        before it is loaded, wherever its memory can be foreseen; ``notice`` what a user should know
        though nothing went wrong. Raises ``UserError`` for what the caller can put right.
        """
        check_threads(threads)
        found = find(str(model), progress)
        tokenizer = found.tokenizer
        source = tokenizer.chat_template
        template = ChatTemplate(source, tokenizer) if source else None
        drafting = _draft_model(draft, found, progress)
        place = Placement(runtime, device, provider, exact, threads)
        places = find_places(found, place, speculates=draft != "none", notice=notice)
        plan = None
        if memory_budget is not None or (planned and found.shape):
            plan = plan_memory(
                found,
                drafting,
                places,
                context=context,
                tables=draft != "none",
                budget=memory_budget,
            )
            if planned:
                planned(plan)
            if plan.draft is None:
                drafting = None
        place = next(p for p in places if plan is None or p.runtime == plan.use.runtime)
        options: dict[str, Any] = {
            "threads": place.threads,
            "device": place.device,
            "provider": provider,
            "progress": progress,
        }
        with ExitStack() as opened:  # closed again if what follows fails
            draft_model: Runtime | None = None
            if drafting is not None:
                # built first, and loaded without exactness: what it says is only a guess
                own = draft_runtime(place.runtime, drafting)
                fits = min(drafting.context, context or DEFAULT_CONTEXT)
                limits = _limits(plan.draft if plan else None)
                draft_model = load(
                    drafting, own, exact=False, **{"context": fits, **limits}, **options
                )
                opened.callback(draft_model.close)
            limits = _limits(plan.use if plan else None)
            target = load(
                found,
                place.runtime,
                exact=place.padded,
                **{"context": context, **limits},
                **options,
            )
            opened.callback(target.close)
            if exact and not target.info.pass_sizes:
                raise UserError(
                    f"no sizes of pass agree bit for bit on {target.info.device} here; leave --exact out"
                )
            if tokenizer.vocab_size > target.info.vocab_size:
                raise UserError(
                    f"{found.path} has {tokenizer.vocab_size} tokens in its tokenizer and "
                    f"{target.info.vocab_size} in its head; they do not belong together"
                )
            name = draft if draft in MODEL_FREE else "hierarchy"
            lasting = persistent_sources(
                name,
                tokenizer,
                target.info,
                profiles.fingerprint(found.path),
                cache_bytes=MAX_BYTES if memory_budget is None else NGRAM_CACHE_BYTES,
                indexes=memory_budget is None,
                remember=remember,
                notice=notice,
            )
            drafters = model_free(name, target.info.vocab_size, lasting)
            costs = LatencyModel()
            if draft != "none":
                profile = _profile(target, found, place, QUICK_ROWS, progress, notice)
                costs = LatencyModel(profile.curve)
            if drafting is not None and draft_model is not None:
                beside = replace(place, runtime=own, exact=False)
                profile = _profile(draft_model, drafting, beside, _DRAFT_PROFILED, progress, notice)
                drafters.append(
                    ModelDrafter(
                        draft_model,
                        target.info.vocab_size,
                        LatencyModel(profile.draft_curve()),
                        readable=drafting.tokenizer.vocab_size,
                        vocabulary=between(tokenizer, drafting.tokenizer),
                        cascade=True,
                    )
                )
            loaded = Loaded(
                target,
                Scheduler(drafters, costs),
                tokenizer,
                template,
                draft=draft_model,
                cache=next((each for each in lasting if isinstance(each, NgramCache)), None),
            )
            opened.pop_all()
        return cls(loaded, found.sampling)

    @property
    def info(self) -> ModelInfo:
        """What is loaded, and where."""
        return self.loaded.target.info

    @property
    def can_chat(self) -> bool:
        """Whether the model has a chat template."""
        return self.loaded.template is not None

    def session(
        self,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        acceptance: Rule = "lossless",
        notice: Notice = ignore_notice,
        progress: Progress = silent,
    ) -> Session:
        """A new conversation. Sessions of one engine answer one at a time.

        ``acceptance`` is lossless, or a rule that may say what the target alone would not: typical, or
        entropy (of a draft model's distributions).
        """
        return Session(
            self.loaded,
            system=system,
            sampling=sampling,
            acceptance=acceptance,
            notice=notice,
            progress=progress,
        )

    @overload
    def generate(
        self,
        prompt: str,
        *,
        stream: Literal[False] = False,
        max_tokens: int | None = ...,
        chat: bool | None = ...,
        system: str | None = ...,
        **sampling: Any,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: str,
        *,
        stream: Literal[True],
        max_tokens: int | None = ...,
        chat: bool | None = ...,
        system: str | None = ...,
        **sampling: Any,
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str,
        *,
        stream: bool = False,
        max_tokens: int | None = 256,
        chat: bool | None = None,
        system: str | None = None,
        **sampling: Any,
    ) -> Completion | Iterator[str]:
        """Answer ``prompt``, whole or (``stream``) as pieces of text while they come.

        ``chat`` puts the prompt into the model's chat template (default: where it has one);
        ``sampling`` are the fields of ``Sampling``: ``temperature`` (0, greedy, by default),
        ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``, ``seed``.
        """
        session = self.session(system=system, sampling=Sampling(**sampling))
        answer = session.chat if (self.can_chat if chat is None else chat) else session.complete
        pieces = answer(prompt, max_tokens=max_tokens)
        if stream:
            return pieces
        text = "".join(pieces)
        reason = session.finish_reason or "length"
        return Completion(text, session.token_ids, reason, session.statistics)

    @staticmethod
    def plan(
        model: str | Path,
        *,
        runtime: str = "auto",
        device: str = "auto",
        draft: str = "auto",
        context: int | None = None,
        memory_budget: int | None = None,
        progress: Progress = silent,
    ) -> Plan:
        """What ``open`` would load with the same options, and what it would take; loads nothing."""
        found = find(str(model), progress)
        places = find_places(found, Placement(runtime, device), speculates=draft != "none")
        return plan_memory(
            found,
            _draft_model(draft, found, progress),
            places,
            context=context,
            tables=draft != "none",
            budget=memory_budget,
        )

    def close(self) -> None:
        """Free the model, and its draft; keep what was learnt of its answers."""
        if self.loaded.cache is not None:
            self.loaded.cache.close()
        self.loaded.target.close()
        if self.loaded.draft is not None:
            self.loaded.draft.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _profile(
    runtime: Runtime,
    model: Model,
    place: Placement,
    sizes: Sequence[int],
    progress: Progress,
    notice: Notice,
) -> Profile:
    """What passes cost in ``place``; measured now, and kept, if that is not known."""
    profile = known(model.path, place, notice)
    if profile is None:
        sizes = [size for size in sizes if size <= runtime.info.max_rows]
        profile = measure_profile(
            runtime,
            place.setup(model.path),
            quick=True,
            budget_s=_PROFILED_S,
            rows=sizes,
            progress=progress,
        )
        if profile.steady:  # else the next opening may find a better moment
            profile_files.save(profile, notice)
    return profile


def _limits(use: RunConfiguration | None) -> dict[str, Any]:
    """What a plan says of a model, as options of ``load``."""
    if use is None:
        return {}
    return {"context": use.context, "rows": use.rows, "cache_type": use.cache_type}


def _draft_model(draft: str, target: Model, progress: Progress) -> Model | None:
    """The model that ``draft`` names, or that the target's bundle has; ``None`` for other drafters."""
    if draft == "auto" and target.drafts:
        return target.drafts[0]
    if draft in DRAFTERS:
        return None
    try:
        return find_draft(draft, progress)
    except UnknownModel as error:
        choice = ", ".join(DRAFTERS)
        raise UserError(
            f"there is no drafter {draft!r}; take {choice} or a model ({error})"
        ) from error
