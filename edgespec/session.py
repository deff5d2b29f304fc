"""A session: one conversation with a model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from edgespec.core.acceptance import Rule
from edgespec.core.decoding import decode, prefill
from edgespec.core.latency import LatencyCurve
from edgespec.core.runtime import Runtime
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Scheduler
from edgespec.core.statistics import Statistics
from edgespec.device.machine import peak_memory_bytes
from edgespec.errors import UserError
from edgespec.progress import Progress, silent
from edgespec.simulation.trace import Recording, StepRecord, Trace, record

if TYPE_CHECKING:
    from edgespec.assemble import DraftModel
    from edgespec.config import EngineConfig
    from edgespec.drafting.ngram_cache import NgramCache
    from edgespec.models.chat_template import ChatTemplate
    from edgespec.models.tokenizer import Tokenizer
    from edgespec.models.vocabulary import Detokenizer

_KEPT_EVERY_S = 60.0
"""Seconds between two times that what was learnt of answers is kept; it is when the engine closes, too."""

Message = dict[str, str]
"""``role`` (system, user or assistant) and ``content``."""

Notice = Callable[[str], None]
"""Told, in one line, what a user should know though nothing went wrong."""


def ignore_notice(line: str) -> None:
    """Tell nobody."""


@dataclass
class EngineState:
    """What the sessions of one engine share: the model on its runtime, and what is in its cache."""

    target: Runtime
    scheduler: Scheduler
    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    context: list[int] = field(default_factory=list)
    """The tokens of the last answer's context; those that the target has cached are a prefix of it."""
    draft: DraftModel | None = None
    """The model that a drafter drafts with, if one does."""
    cache: NgramCache | None = None
    """What is learnt of answers for later ones, if a drafter looks there."""
    config: EngineConfig | None = None
    """What the engine was opened with."""
    curve: LatencyCurve | None = None
    """The latency curve that the scheduler began with."""
    fresh: bool = True
    """Whether no drafter knows anything of earlier answers."""


class Session:
    """One conversation: its messages, its context and the figures of its last answer.

    Several sessions may share one engine, one answer at a time: each takes over of the cache what
    its own prompt begins with. ``acceptance`` is how drafted tokens are accepted, see ``acceptance.accept``.
    """

    def __init__(
        self,
        state: EngineState,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        acceptance: Rule = "lossless",
        ignore_stop: bool = False,
        notice: Notice = ignore_notice,
        progress: Progress = silent,
    ) -> None:
        self.messages: list[Message] = []
        """The whole conversation, also what no longer fits in the context."""
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self.statistics = Statistics()
        self.prompt_ids: list[int] = []
        """The tokens that the last answer follows."""
        self.token_ids: list[int] = []
        """What the last answer said, its stop token included."""
        self.finish_reason: str | None = None
        """"stop", "length", or None while the last answer is unfinished or was stopped."""
        self.forgotten = 0
        """How many messages after the system's no longer fit in the context."""
        self._state = state
        self._sampling = sampling or Sampling()
        self._rule = acceptance
        if acceptance != "lossless" and self._sampling.greedy:
            raise UserError(
                f"{acceptance} acceptance changes nothing where the likeliest token is taken; "
                "give a --temperature above 0, or leave --acceptance out"
            )
        if acceptance == "entropy" and state.draft is None:
            raise UserError("entropy acceptance trusts a draft model; give one with --draft MODEL")
        self._stop: frozenset[int] = frozenset() if ignore_stop else state.tokenizer.stop_tokens
        self._notice = notice
        self._progress = progress
        self._answers = 0
        # Of the last answer, for its trace: another session may use the engine meanwhile.
        self._steps: list[StepRecord] = []
        self._fresh = False
        self._running: Generator[str, None, None] | None = None

    def chat(self, text: str, *, max_tokens: int | None = None) -> Generator[str, None, None]:
        """Say ``text`` and stream the answer's pieces; both are kept in ``messages``.

        Nothing happens before the first piece is asked for. Closing the generator, or Ctrl-C in it,
        stops the answer and keeps what was said of it; if that is nothing, ``text`` is withdrawn.
        ``max_tokens=None`` goes on to the context's end. When the conversation overflows the
        context, its oldest turns are dropped until half of it is free, so that the rest is
        evaluated again only now and then, and ``notice`` is told. Raises ``UserError`` if ``text``
        alone does not fit.
        """
        return self._exclusive(self._chat(text, max_tokens))

    def complete(self, prompt: str, *, max_tokens: int | None = None) -> Generator[str, None, None]:
        """Stream what follows ``prompt`` as it stands: no template, outside the conversation.

        An empty prompt is the model's beginning-of-text token; ``UserError`` if it has none.
        """
        return self._exclusive(self._complete(prompt, max_tokens))

    def trace(self) -> Trace:
        """The last answer, to be decoded again on another device's clock; draft models read it once.

        Raises ``UserError`` where nothing was said.
        """
        if not self.token_ids:
            raise UserError("nothing was said, so there is nothing to trace")
        state = self._state
        draft = state.config.draft if state.config else state.scheduler.name
        recording = Recording.of(
            draft, state.target.info, state.curve, self._steps, fresh=self._fresh
        )
        model = state.target.info.name
        return record(model, self.prompt_ids, self.token_ids, state.scheduler.drafters, recording)

    def reset(self) -> None:
        """Forget the conversation, except its system message."""
        self._close_running()
        self.messages[:] = self._system()
        self.forgotten = 0

    def _system(self) -> list[Message]:
        return [m for m in self.messages[:1] if m["role"] == "system"]

    def _exclusive(self, answer: Generator[str, None, None]) -> Generator[str, None, None]:
        """``answer``, once started the only one of this session that runs."""
        self._close_running()
        self._running = answer
        yield from answer

    def _close_running(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def _chat(self, text: str, max_tokens: int | None) -> Generator[str, None, None]:
        self.messages.append({"role": "user", "content": text})
        said = ""
        try:
            for piece in self._answer(self._prompt(max_tokens), max_tokens):
                said += piece
                yield piece
        finally:
            if said or self.finish_reason is not None:
                self.messages.append({"role": "assistant", "content": said})
            else:
                self.messages.pop()

    def _complete(self, prompt: str, max_tokens: int | None) -> Generator[str, None, None]:
        self.finish_reason = None
        tokenizer = self._state.tokenizer
        tokens = tokenizer.encode(prompt)
        if tokenizer.bos is not None and (tokenizer.add_bos or not tokens):
            tokens = [tokenizer.bos, *tokens]
        if not tokens:
            raise UserError(
                "the prompt is empty and the model has no token to begin with; say more"
            )
        self._check_fits(len(tokens))
        yield from self._answer(tokens, max_tokens, continues=bool(prompt))

    def _prompt(self, max_tokens: int | None) -> list[int]:
        """The conversation's tokens, without the oldest turns if it overflows."""
        self.finish_reason = None
        template, capacity = self._state.template, self._state.target.info.context
        if template is None:
            raise UserError("this model has no chat template; use it for completion (no chat)")
        system = self._system()
        turns = self.messages[len(system) :]
        start = self.forgotten
        tokens = template.render(system + turns[start:])
        reserve = min(capacity // 4, capacity if max_tokens is None else max_tokens)
        if len(tokens) + reserve > capacity:
            for start in [i for i, m in enumerate(turns) if m["role"] == "user" and i > start]:
                tokens = template.render(system + turns[start:])
                if len(tokens) <= capacity // 2:
                    break
        self._check_fits(len(tokens))
        if start > self.forgotten:
            self.forgotten = start
            self._notice(
                f"the conversation outgrew the context of {capacity} tokens: "
                f"the model no longer sees its oldest {start} messages"
            )
        return tokens

    def _check_fits(self, length: int) -> None:
        capacity = self._state.target.info.context
        if length > capacity:
            enough = -(-(length + 256) // 256) * 256
            raise UserError(
                f"the prompt is {length} tokens long and the context holds {capacity}; "
                f"shorten it, or use --context {enough} if the model allows it"
            )

    def _answer(
        self, prompt: list[int], max_tokens: int | None, *, continues: bool = False
    ) -> Iterator[str]:
        """Stream the text that follows ``prompt``; sets the figures, ids and finish reason.

        ``continues``: it goes on from the prompt's text, so that a leading space belongs to it.
        """
        state, info = self._state, self._state.target.info
        stats = self.statistics = Statistics(
            prompt_tokens=len(prompt),
            runtime=info.runtime,
            device=info.device,
            drafter=state.scheduler.name,
            acceptance=self._rule,
            exact=bool(info.pass_sizes) and self._rule == "lossless",
        )
        if state.draft is not None:
            stats.draft_pass_cost = state.draft.runtime.info.weight_bytes / info.weight_bytes
        self.token_ids = []
        limit = info.context if max_tokens is None else max_tokens
        if limit < 0:
            raise UserError(f"max_tokens is {limit}; it must be 0 or more")
        try:
            if limit:
                words = state.tokenizer.stream(continues=continues)
                yield from self._stream(prompt, limit, stats, words)
        finally:
            if state.cache is not None:
                state.cache.save(every=_KEPT_EVERY_S)
            stats.peak_memory_bytes = peak_memory_bytes()
        stopped = bool(self.token_ids) and self.token_ids[-1] in self._stop
        self.finish_reason = "stop" if stopped else "length"

    def _stream(
        self, prompt: list[int], limit: int, stats: Statistics, words: Detokenizer
    ) -> Iterator[str]:
        """Evaluate the prompt and decode, streaming text."""
        state, target = self._state, self._state.target
        started = perf_counter()
        self.prompt_ids, self._steps = list(prompt), []
        self._fresh, state.fresh = state.fresh, False
        context = self._take_over(prompt)
        stats.prefilled_tokens = len(context) - 1 - target.length
        prefill(target, context, self._progress)
        stats.prefill_s = perf_counter() - started
        for step in decode(
            target,
            state.scheduler,
            context,
            max_tokens=limit,
            sampling=self._sampling,
            stop_tokens=self._stop,
            rng=self._rng(),
            rule=self._rule,
        ):
            stats.add(step)
            self._steps.append(StepRecord.of(step))
            self.token_ids += step.tokens
            stopped = step.tokens[-1] in self._stop
            if piece := words.push(step.tokens[:-1] if stopped else step.tokens):
                yield piece
            if state.context is not context:
                raise RuntimeError("another session answered before this answer was finished")
        if piece := words.flush():
            yield piece

    def _rng(self) -> np.random.Generator:
        """Its own for every answer, so that a seed gives the same words whatever was drafted."""
        self._answers += 1
        seed = self._sampling.seed
        return np.random.default_rng(None if seed is None else (seed, self._answers))

    def _take_over(self, prompt: list[int]) -> list[int]:
        """The context to answer from: the cache is cut to what it shares with ``prompt``.

        A prompt that goes on from the last answer's context extends that very list, so that
        drafters need not index it again.
        """
        state = self._state
        before, cached = state.context, state.target.length
        same = _common_prefix(before, prompt)
        state.target.truncate(min(same, cached, len(prompt) - 1))
        if same == len(before):
            before.extend(prompt[same:])
        else:
            state.context = prompt
        return state.context


def _common_prefix(a: list[int], b: list[int]) -> int:
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(i for i in range(length) if a[i] != b[i])
