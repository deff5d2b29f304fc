"""An engine: one model on this device, with its drafters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from edgespec.answer_text import Reasoning
from edgespec.assemble import DRAFTERS, DraftModel, assemble, model_free_name
from edgespec.config import EngineConfig, configure
from edgespec.core.acceptance import Rule
from edgespec.core.runtime import DEFAULT_CONTEXT, ModelInfo, Runtime
from edgespec.core.runtime_spec import LoadOptions, RunConfiguration
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Scheduler
from edgespec.core.statistics import Statistics
from edgespec.device import profile as profiles
from edgespec.device import profile_files
from edgespec.device.machine import check_threads
from edgespec.device.measuring import QUICK_ROWS, measure_profile
from edgespec.device.memory import NGRAM_CACHE_BYTES
from edgespec.device.placement import Placement, known
from edgespec.device.planning import Plan
from edgespec.device.profile import Profile
from edgespec.drafting.cross_vocabulary import between
from edgespec.drafting.model_free import persistent_sources
from edgespec.drafting.ngram_cache import MAX_BYTES, NgramCache
from edgespec.drafting.sources import Source
from edgespec.errors import UserError
from edgespec.loading import draft_runtime, find_places, load, plan_memory
from edgespec.local_model import LocalModel, find, find_draft
from edgespec.models.chat_template import ChatTemplate
from edgespec.models.store import UnknownModel
from edgespec.models.tokenizer import Tokenizer
from edgespec.progress import Progress, silent
from edgespec.queueing import Answer
from edgespec.session import EngineState, Notice, Session, ignore_notice

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgespec.config import Options

_DRAFT_PROFILED = (1, 2)
"""Pass sizes of a draft model: after a rejection, and after a fully accepted draft."""
_PROFILED_S = 0.9
"""Seconds of this measurement, per model."""


@dataclass(frozen=True)
class Completion:
    """An answer and its statistics. ``token_ids`` includes the stop token."""

    text: str
    token_ids: list[int]
    finish_reason: str
    statistics: Statistics
    reasoning: str = ""
    """The reasoning, if it was asked for apart from the text."""


class Engine:
    """A loaded model. Open it with ``Engine.open``; close it, or use it in ``with``."""

    def __init__(self, state: EngineState, recommended: Mapping[str, float] | None = None) -> None:
        self._state = state
        self.recommended: Mapping[str, Any] = recommended or {}
        """Fields of ``Sampling`` that the model recommends for chat."""

    @classmethod
    def open(
        cls,
        model: str | Path | EngineConfig,
        *,
        planned: Callable[[Plan], None] | None = None,
        notice: Notice = ignore_notice,
        progress: Progress = silent,
        **options: Unpack[Options],
    ) -> Engine:
        """Open a model with an ``EngineConfig``, or with its fields as keyword arguments.

        Profiles of this machine (`edgespec tune`) choose the fastest runtime, device and threads, if
        these are not given. Without a profile, passes are timed for a second. ``planned`` receives the
        memory plan before loading, if memory can be predicted. ``notice`` receives notices for the user.
        Raises ``UserError`` for errors that the caller can fix, and ``EngineClosed`` in a process that was
        forked after another engine was opened.
        """
        config = configure(model, **options)
        check_threads(config.threads)
        found = find(config.model, progress)
        source = found.tokenizer.chat_template
        template = ChatTemplate(source, found.tokenizer) if source else None
        drafting = _draft_model(config.draft, found, progress)
        places = find_places(config, found, notice=notice)
        if planned and found.unpredictable:
            notice(f"the memory that it takes cannot be predicted: {found.unpredictable}")
        plan = None
        if config.memory_budget is not None or (planned and found.dimensions):
            plan = _plan(config, found, drafting, places)
            if planned:
                planned(plan)
            if plan.draft is None:
                drafting = None
        place = next(p for p in places if plan is None or p.runtime == plan.run.runtime)
        with ExitStack() as opened:  # closed if a later step fails
            draft = None
            if drafting is not None:  # loaded first; not exact: its tokens are verified anyway
                beside = replace(place, runtime=draft_runtime(place.runtime, drafting), exact=False)
                room = min(drafting.context, config.context or DEFAULT_CONTEXT)
                limits = _options(beside, room, plan.draft if plan else None, progress)
                draft = load(drafting, beside.runtime, limits)
                opened.callback(draft.close)
            limits = _options(place, config.context, plan.run if plan else None, progress)
            target = load(found, place.runtime, limits)
            opened.callback(target.close)
            _check(target.info, found, config)
            persistent = _persistent_sources(config, found, target.info, notice)
            curve = None
            if config.draft != "none":
                curve = _profile(target, found, place, QUICK_ROWS, progress, notice).curve
            model_draft = None
            if drafting is not None and draft is not None:
                profile = _profile(draft, drafting, beside, _DRAFT_PROFILED, progress, notice)
                model_draft = DraftModel(
                    draft,
                    profile.draft_curve(beside.runtime.prefill_chunk),
                    drafting.tokenizer.vocab_size,
                    between(found.tokenizer, drafting.tokenizer),
                )
            state = EngineState(
                target,
                assemble(
                    config.draft,
                    target.info.vocab_size,
                    curve,
                    persistent=persistent,
                    model=model_draft,
                ),
                found.tokenizer,
                template,
                draft=model_draft,
                cache=next((each for each in persistent if isinstance(each, NgramCache)), None),
                config=config,
                curve=curve,
                fresh=not any(
                    source.entries if isinstance(source, NgramCache) else True
                    for source in persistent
                ),
            )
            opened.pop_all()
        return cls(state, found.sampling)

    @property
    def target(self) -> Runtime:
        """The model on its runtime, with its cache."""
        return self._state.target

    @property
    def draft_model(self) -> Runtime | None:
        """The draft model on its runtime, if there is one."""
        return None if self._state.draft is None else self._state.draft.runtime

    @property
    def draft(self) -> DraftModel | None:
        """The draft model with its latency curve and vocabulary, if there is one."""
        return self._state.draft

    @property
    def template(self) -> ChatTemplate | None:
        """The model's chat template, if it has one."""
        return self._state.template

    @property
    def tokenizer(self) -> Tokenizer:
        """The target's tokenizer."""
        return self._state.tokenizer

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler of the drafters."""
        return self._state.scheduler

    @property
    def info(self) -> ModelInfo:
        """The loaded target and its device."""
        return self._state.target.info

    @property
    def can_chat(self) -> bool:
        """Whether the model has a chat template."""
        return self._state.template is not None

    def session(
        self,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        acceptance: Rule = "lossless",
        ignore_stop: bool = False,
        reasoning: Reasoning = "show",
        on_reasoning: Callable[[str], None] = ignore_notice,
        notice: Notice = ignore_notice,
        progress: Progress = silent,
        wait: float | None = None,
    ) -> Session:
        """A new conversation. Sessions of one engine answer one at a time; the others wait in a queue.

        ``wait``: seconds to wait for other answers before ``EngineBusy``; ``None``: no limit.
        ``acceptance`` is lossless, typical or entropy; the last two are lossy, and entropy needs a draft
        model. ``ignore_stop``: answers continue after a stop token. ``reasoning``: the answers' reasoning
        is part of their text ("show"), left out ("hide"), or in ``Session.reasoning`` ("separate", and
        ``on_reasoning`` receives its pieces).
        """
        return Session(
            self._state,
            system=system,
            sampling=sampling,
            acceptance=acceptance,
            ignore_stop=ignore_stop,
            reasoning=reasoning,
            on_reasoning=on_reasoning,
            notice=notice,
            progress=progress,
            wait=wait,
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
        reasoning: Reasoning = ...,
        wait: float | None = ...,
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
        reasoning: Reasoning = ...,
        wait: float | None = ...,
        **sampling: Any,
    ) -> Answer: ...

    def generate(
        self,
        prompt: str,
        *,
        stream: bool = False,
        max_tokens: int | None = 256,
        chat: bool | None = None,
        system: str | None = None,
        reasoning: Reasoning = "show",
        wait: float | None = None,
        **sampling: Any,
    ) -> Completion | Answer:
        """Answer ``prompt``: return the whole answer, or (``stream``) its pieces as they are decoded.

        ``chat`` puts the prompt into the model's chat template (default: if it has one);
        ``reasoning``: show, hide or separate, see ``session``;
        ``sampling`` are the fields of ``Sampling``: ``temperature`` (0, greedy, by default),
        ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``, ``seed``.

        Any thread may call it: answers take turns. ``wait``: seconds to wait for other answers before
        ``EngineBusy``; ``None``: no limit. Raises ``EngineClosed`` if the engine is closed meanwhile.
        """
        session = self.session(
            system=system, sampling=Sampling(**sampling), reasoning=reasoning, wait=wait
        )
        answer = session.chat if (self.can_chat if chat is None else chat) else session.complete
        pieces = answer(prompt, max_tokens=max_tokens)
        if stream:
            return pieces
        text = "".join(pieces)
        reason = session.finish_reason or "length"
        return Completion(text, session.token_ids, reason, session.statistics, session.reasoning)

    @staticmethod
    def plan(
        model: str | Path | EngineConfig, *, progress: Progress = silent, **options: Unpack[Options]
    ) -> Plan:
        """The plan of ``open`` with the same options, and its memory. Loads nothing."""
        config = configure(model, **options)
        found = find(config.model, progress)
        places = find_places(config, found)
        return _plan(config, found, _draft_model(config.draft, found, progress), places)

    def close(self) -> None:
        """End the running answer, free the target and the draft model; save the n-gram cache."""
        self._state.turns.close(self._free)

    def _free(self) -> None:
        if self._state.cache is not None:
            self._state.cache.close()
        self._state.target.close()
        if self._state.draft is not None:
            self._state.draft.runtime.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _profile(
    runtime: Runtime,
    model: LocalModel,
    place: Placement,
    sizes: Sequence[int],
    progress: Progress,
    notice: Notice,
) -> Profile:
    """The profile of ``place``; measured and saved if there is none."""
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
        if profile.steady:  # else measure again the next time
            profile_files.save(profile, notice)
    return profile


def _plan(
    config: EngineConfig, model: LocalModel, draft: LocalModel | None, places: Sequence[Placement]
) -> Plan:
    return plan_memory(
        model,
        draft,
        places,
        context=config.context,
        tables=config.draft != "none",
        budget=config.memory_budget,
    )


def _options(
    place: Placement, context: int | None, run: RunConfiguration | None, progress: Progress
) -> LoadOptions:
    """The options to load a model in ``place``, limited by the plan's run configuration."""
    options = LoadOptions(
        context, place.threads, place.device, place.provider, place.padded, progress=progress
    )
    if run is None:
        return options
    return replace(options, context=run.context, rows=run.rows, cache_type=run.cache_type)


def _check(info: ModelInfo, model: LocalModel, config: EngineConfig) -> None:
    """Raise ``UserError`` if the loaded model does not match the request."""
    if config.exact and not info.pass_sizes:
        raise UserError(
            f"no sizes of pass agree bit for bit on {info.device} here; leave --exact out"
        )
    if model.tokenizer.vocab_size > info.vocab_size:
        raise UserError(
            f"{model.path} has {model.tokenizer.vocab_size} tokens in its tokenizer and "
            f"{info.vocab_size} in its head; they do not belong together"
        )


def _persistent_sources(
    config: EngineConfig, model: LocalModel, info: ModelInfo, notice: Notice
) -> list[Source]:
    limited = config.memory_budget is not None
    return persistent_sources(
        model_free_name(config.draft),
        model.tokenizer,
        info,
        profiles.fingerprint(model.path),
        cache_bytes=NGRAM_CACHE_BYTES if limited else MAX_BYTES,
        indexes=not limited,
        remember=config.remember,
        notice=notice,
    )


def _draft_model(draft: str, target: LocalModel, progress: Progress) -> LocalModel | None:
    """The draft model of the name ``draft`` or of the target's bundle; ``None`` for other drafters."""
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
