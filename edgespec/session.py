"""A session: one conversation with a model."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, get_args

import numpy as np

from edgespec.answer_text import AnswerText, Reasoning
from edgespec.core.acceptance import Rule
from edgespec.core.decoding import Step, decode, prefill
from edgespec.core.latency import LatencyCurve
from edgespec.core.runtime import Runtime
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Scheduler
from edgespec.core.statistics import Statistics
from edgespec.device.machine import peak_memory_bytes
from edgespec.errors import UserError
from edgespec.progress import Progress, silent
from edgespec.prompt_fitting import fitted
from edgespec.queueing import Answer, Call, Turns
from edgespec.simulation.trace import Recording, StepRecord, Trace, record

if TYPE_CHECKING:
    from edgespec.assemble import DraftModel
    from edgespec.config import EngineConfig
    from edgespec.drafting.ngram_cache import NgramCache
    from edgespec.models.chat_template import ChatTemplate
    from edgespec.models.tokenizer import Tokenizer
    from edgespec.models.vocabulary import Detokenizer

_LABEL = 40
"""Characters of a prompt that name its answer in errors."""
_KEPT_EVERY_S = 60.0
"""Seconds between two saves of the n-gram cache. It is also saved when the engine closes."""


Message = dict[str, str]
"""``role`` (system, user or assistant) and ``content``."""

Notice = Callable[[str], None]
"""A function that receives a notice for the user, one line of text."""


def ignore_notice(line: str) -> None:
    """Drop the notice."""


@dataclass
class EngineState:
    """The state that the sessions of one engine share."""

    target: Runtime
    scheduler: Scheduler
    tokenizer: Tokenizer
    template: ChatTemplate | None = None
    context: list[int] = field(default_factory=list)
    """The token ids of the last answer's context. The target's cached tokens are a prefix of it."""
    draft: DraftModel | None = None
    """The draft model, if there is one."""
    cache: NgramCache | None = None
    """The n-gram cache of earlier answers, if a drafter uses it."""
    config: EngineConfig | None = None
    """The configuration of the engine."""
    curve: LatencyCurve | None = None
    """The latency curve that the scheduler began with."""
    fresh: bool = True
    """Whether no drafter knows earlier answers."""
    turns: Turns = field(default_factory=Turns)
    """Lets one call at a time use the target, the drafters and their caches."""

    def __post_init__(self) -> None:
        # Created after the runtime's own finalizer, so that it runs before it when the program ends.
        weakref.finalize(self, self.turns.stop)


class Session:
    """One conversation: its messages, its context and the statistics of its last answer.

    Several sessions may share one engine, also from several threads: their answers take turns. Each
    reuses the cached tokens that are a prefix of its prompt. ``acceptance`` is the acceptance rule, see
    ``acceptance.accept``. ``reasoning``: show, hide or separate; ``on_reasoning`` receives the pieces of a
    separate reasoning. ``wait``: seconds to wait for other answers before ``EngineBusy``; ``None``: no limit.
    """

    def __init__(
        self,
        state: EngineState,
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
    ) -> None:
        if reasoning not in get_args(Reasoning):
            raise UserError(f"reasoning is {reasoning!r}; give show, hide or separate")
        self.messages: list[Message] = []
        """The whole conversation, including messages that no longer fit in the context."""
        if system is not None:
            self.messages.append({"role": "system", "content": system})
            if state.template is not None and not state.template.takes_system:
                notice(
                    "the model's chat template takes no system prompt: "
                    "it is put before your first message"
                )
        self.statistics = Statistics()
        self.prompt_ids: list[int] = []
        """The token ids of the last prompt."""
        self.token_ids: list[int] = []
        """The token ids of the last answer, its stop token included."""
        self.finish_reason: str | None = None
        """"stop", "length", or None while the last answer is unfinished or was stopped."""
        self.forgotten = 0
        """The number of messages after the system message that no longer fit in the context."""
        self._state = state
        self._sampling = sampling or Sampling()
        self._rule = acceptance
        if acceptance != "lossless" and self._sampling.greedy:
            raise UserError(
                f"{acceptance} acceptance changes nothing in greedy decoding; "
                "give a --temperature above 0, or leave --acceptance out"
            )
        if acceptance == "entropy" and state.draft is None:
            raise UserError("entropy acceptance needs a draft model; give one with --draft MODEL")
        self._stop: frozenset[int] = frozenset() if ignore_stop else state.tokenizer.stop_tokens
        self._mode = reasoning
        self._on_reasoning = on_reasoning
        self._answer_text: AnswerText | None = None
        self._notice = notice
        self._progress = progress
        self._wait = wait
        self._answers = 0
        # The last answer's, for its trace: another session may use the engine meanwhile.
        self._steps: list[StepRecord] = []
        self._fresh = False
        self._running: Callable[[], Answer | None] = lambda: None

    def chat(self, text: str, *, max_tokens: int | None = None) -> Answer:
        """Send ``text`` and stream the answer's pieces; both are added to ``messages``.

        Work begins with the first piece. Closing the stream, or Ctrl-C in it, stops the answer and
        keeps its text so far; an empty answer and ``text`` are removed from ``messages``.
        ``max_tokens=None`` decodes to the context's end. When the conversation overflows the context,
        its oldest turns are dropped until half of the context is free, so that the rest is rarely
        evaluated again; ``notice`` receives a notice. Raises ``UserError`` if ``text`` alone does not fit,
        ``EngineBusy`` and ``EngineClosed`` (see ``Answer``).
        """
        return self._exclusive(self._chat(text, max_tokens), text)

    def complete(self, prompt: str, *, max_tokens: int | None = None) -> Answer:
        """Stream the continuation of ``prompt``, without a chat template and outside the conversation.

        An empty prompt is the model's beginning-of-text token; ``UserError`` if there is none.
        """
        return self._exclusive(self._complete(prompt, max_tokens), prompt)

    def trace(self) -> Trace:
        """The trace of the last answer. A draft model evaluates the answer once for it.

        It takes its turn like an answer. Raises ``UserError`` if there is no answer, ``EngineBusy``,
        and ``EngineClosed``: the drafters decode the answer again, which a closed engine cannot.
        """
        return self._state.turns.run(Call("a trace", self._wait), self._trace)

    @property
    def reasoning(self) -> str:
        """The last answer's reasoning, if it is separate from the text."""
        return self._answer_text.reasoning.strip() if self._answer_text else ""

    def reset(self) -> None:
        """Drop the conversation, except its system message."""
        self._close_running()
        self.messages[:] = self._system()
        self.forgotten = 0

    def _trace(self) -> Trace:
        if not self.token_ids:
            raise UserError("there is no answer to trace; generate at least one token")
        state = self._state
        draft = state.config.draft if state.config else state.scheduler.name
        recording = Recording.of(
            draft, state.target.info, state.curve, self._steps, fresh=self._fresh
        )
        model = state.target.info.name
        return record(model, self.prompt_ids, self.token_ids, state.scheduler.drafters, recording)

    def _system(self) -> list[Message]:
        return [m for m in self.messages[:1] if m["role"] == "system"]

    def _exclusive(self, pieces: Generator[str, None, None], prompt: str) -> Answer:
        """``pieces`` as an answer, which ends the session's running answer first."""
        beginning = prompt if len(prompt) <= _LABEL else f"{prompt[:_LABEL]}…"
        label = f"the answer to {beginning!r}"
        return Answer(pieces, self._state.turns, self._begin, label, self._wait)

    def _begin(self, answer: Answer) -> None:
        if self._running() is not answer:
            self._close_running()
            self._running = weakref.ref(answer)

    def _close_running(self) -> None:
        if (running := self._running()) is not None:
            running.close()

    def _chat(self, text: str, max_tokens: int | None) -> Generator[str, None, None]:
        question = {"role": "user", "content": text}
        self.messages.append(question)
        self._answer_text = None
        try:
            yield from self._answer(self._prompt(max_tokens), max_tokens)
        finally:
            if self.messages and self.messages[-1] is question:  # no reset meanwhile
                whole = self._answer_text.whole if self._answer_text else ""
                if whole or self.finish_reason is not None:
                    self.messages.append({"role": "assistant", "content": whole})
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
                "the prompt is empty and the model has no beginning-of-text token; give a prompt"
            )
        self._check_fits(len(tokens))
        yield from self._answer(tokens, max_tokens, continues=bool(prompt))

    def _prompt(self, max_tokens: int | None) -> list[int]:
        """The token ids of the conversation, without the oldest turns if it overflows."""
        self.finish_reason = None
        template, capacity = self._state.template, self._state.target.info.context
        if template is None:
            raise UserError("this model has no chat template; use --raw (Session.complete)")
        system = self._system()
        turns = self.messages[len(system) :]

        reserve = min(capacity // 4, capacity if max_tokens is None else max_tokens)
        start, tokens = fitted(template, system, turns, self.forgotten, capacity, reserve)
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
        """Stream the text after ``prompt``; set the statistics, token ids and finish reason.

        ``continues``: the answer continues the prompt's text and keeps a leading space.
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
        answer = self._answer_text = AnswerText(
            state.tokenizer, prompt, self._mode, self._on_reasoning, continues=continues
        )
        limit = info.context if max_tokens is None else max_tokens
        if limit < 0:
            raise UserError(f"max_tokens is {limit}; it must be 0 or more")
        try:
            if limit:
                words = state.tokenizer.stream(continues=continues)
                for text in self._stream(prompt, limit, stats, words):
                    if piece := answer.push(text):
                        yield piece
                if piece := answer.end(cut=not self._stopped()):
                    yield piece
        finally:
            stats.peak_memory_bytes = peak_memory_bytes()
            if (cache := state.cache) is not None:
                state.turns.if_free(lambda: cache.save(every=_KEPT_EVERY_S))
        self.finish_reason = "stop" if self._stopped() else "length"

    def _stopped(self) -> bool:
        """Whether the answer ended with a stop token."""
        return bool(self.token_ids) and self.token_ids[-1] in self._stop

    def _stream(
        self, prompt: list[int], limit: int, stats: Statistics, words: Detokenizer
    ) -> Iterator[str]:
        """Evaluate the prompt and decode, streaming text."""
        self.prompt_ids, self._steps = list(prompt), []
        self._fresh, self._state.fresh = self._state.fresh, False
        for step in self._decode(prompt, limit, stats):
            stats.add(step)
            self._steps.append(StepRecord.of(step))
            self.token_ids += step.tokens
            stopped = step.tokens[-1] in self._stop
            if piece := words.push(step.tokens[:-1] if stopped else step.tokens):
                yield piece
        if piece := words.flush():
            yield piece

    def _decode(self, prompt: list[int], limit: int, stats: Statistics) -> Iterator[Step]:
        """Decode after ``prompt``. If another call used the caches since the last step, begin again
        after the tokens so far."""
        state, rng = self._state, self._rng()
        ended = False
        while not ended:
            self._prefill(prompt, stats)
            context, handovers = state.context, state.turns.handovers
            steps = decode(
                state.target,
                state.scheduler,
                context,
                max_tokens=limit,
                sampling=self._sampling,
                stop_tokens=self._stop,
                rng=rng,
                rule=self._rule,
            )
            for step in steps:
                limit, length = limit - len(step.tokens), len(context)
                yield step
                state.turns.check()
                if state.turns.handovers != handovers:
                    prompt = context[:length]
                    ended = not limit or step.tokens[-1] in self._stop
                    break
            else:
                ended = True

    def _prefill(self, prompt: list[int], stats: Statistics) -> None:
        def progress(what: str, done: int, total: int, /) -> None:
            self._progress(what, done, total)
            self._state.turns.check()

        started, target = perf_counter(), self._state.target
        context = self._take_over(prompt)
        stats.prefilled_tokens += len(context) - 1 - target.length
        prefill(target, context, progress)
        stats.prefill_s += perf_counter() - started

    def _rng(self) -> np.random.Generator:
        """A generator per answer, so that a seed gives the same tokens with any draft."""
        self._answers += 1
        seed = self._sampling.seed
        return np.random.default_rng(None if seed is None else (seed, self._answers))

    def _take_over(self, prompt: list[int]) -> list[int]:
        """The context of the answer. The cache is truncated to the common prefix with ``prompt``.

        If the prompt extends the last answer's context, the same list is extended, so that drafters
        need not index it again.
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
