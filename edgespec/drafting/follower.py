"""Keeps a draft model's cache in step with the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgespec.core.decoding import prefill
from edgespec.core.latency import LatencyModel
from edgespec.core.runtime import FloatArray, Logits, Runtime
from edgespec.drafting.cascade import Cascade


class CacheFollower:
    """Feeds a draft model's runtime, whose cache stays a prefix of the context and the draft.

    Contexts are in the draft model's tokens; an id from ``readable`` on is fed as ``readable - 1``. ``costs``
    is the latency model of the runtime's passes and learns from each of them. With ``cascade``, prompt
    lookup guesses tokens that are evaluated ahead of the draft.
    """

    def __init__(
        self,
        runtime: Runtime,
        costs: LatencyModel,
        readable: int,
        clock: Callable[[], float],
        cascade: Cascade | None = None,
    ) -> None:
        self.runtime, self.costs = runtime, costs
        self.passes = 0
        """Passes so far, without the chunks of prompts."""
        self.step_s = 0.0
        """Expected seconds of this step's passes, without reading a prompt."""
        self._readable, self._clock, self._cascade = readable, clock, cascade
        self._chunk = runtime.info.prefill_chunk
        # Never more than the runtime's cache has, wherever an interruption comes.
        self._cached: list[int] = []
        self._matching = 0  # tokens known to begin both the cache and the context
        # Guesses already evaluated after the drafted tokens, and the logits after each.
        self._ahead: list[tuple[int, FloatArray]] = []
        # Seconds of a target pass over one token: now, and when the draft's passes were last timed.
        self._target_s = self._target_s_when_timed = 0.0

    def begin(self, new_context: bool) -> None:
        """Begin an answer: the context may differ from the cache anywhere."""
        if self._cascade and new_context:
            self._cascade.forget()
        self._matching = 0

    def start_step(self, context: Sequence[int], stable: int, target_s: float) -> None:
        """Begin a step.

        The first ``stable`` tokens of ``context`` are as they were in the last step; ``target_s`` is what a
        target pass over one token takes now.
        """
        self._matching = max(0, min(self._matching, stable, len(context) - 1))
        self._target_s, self.step_s = target_s, 0.0
        self._target_s_when_timed = self._target_s_when_timed or target_s

    def missing(self, context: Sequence[int]) -> int:
        """How many tokens of ``context`` to evaluate before it can be continued, at least 1."""
        cached, end = self._cached, min(len(self._cached), len(context) - 1)
        while self._matching < end and cached[self._matching] == context[self._matching]:
            self._matching += 1
        return len(context) - self._matching

    def catch_up(self, context: Sequence[int], stable: int, answer_tokens: int) -> FloatArray:
        """Evaluate what is ``missing``; the logits after ``context``, ``[V]``.

        ``answer_tokens``: so many at the end of the context count as this step's; the rest is a prompt.
        """
        if self._cascade:
            self._cascade.read(context, stable)
        self._truncate(self._matching)
        self.step_s += self.pass_seconds(min(len(context) - self._matching, answer_tokens))
        if (missing := len(context) - 1 - self._matching) >= self._chunk:
            started = self._clock()
            prefill(self.runtime, self._readable_ids(context))
            self._cached += context[self._matching : -1]
            seconds = (self._clock() - started) * self._chunk / missing
            self.costs.record(self._chunk, seconds, len(self._cached) - missing)
        logits: FloatArray = self._feed(context[len(self._cached) :], "last")[0]
        return logits

    def extend(self, context: Sequence[int], drafted: Sequence[int], room: int) -> FloatArray:
        """The logits after ``context`` and ``drafted``, ``[V]``; a pass, unless they were evaluated ahead.

        Guesses may reach to the first ``room`` tokens after ``context``.
        """
        guesses: Sequence[int] = ()
        if self._cascade:
            if self._ahead:
                used = self.is_evaluated(drafted[-1])
                self._cascade.learn(used)
                _, row = self._ahead.pop(0)
                if used:
                    return row
                self._ahead = []
                self._truncate(len(context) + len(drafted) - 1)
            most = min(room - len(drafted), self.runtime.info.max_rows) - 1
            guesses = self._cascade.guess(context, drafted, most, self.pass_seconds)
        first: FloatArray
        first, *others = self._feed([drafted[-1], *guesses], "all")
        self.step_s += self.pass_seconds(1 + len(guesses))
        self._ahead = list(zip(guesses, others, strict=True))
        return first

    def is_evaluated(self, token: int) -> bool:
        """Whether the logits after ``token``, drafted next, need no pass."""
        return bool(self._ahead) and self._ahead[0][0] == token

    def end_draft(self) -> None:
        """Drop the guesses that the draft did not reach."""
        if self._cascade:
            self._cascade.end(unused=bool(self._ahead))
        self._ahead = []

    def forget(self) -> None:
        """Empty the cache."""
        self._cached, self._matching = [], 0
        self.runtime.truncate(0)

    def pass_seconds(self, tokens: int) -> float:
        """Expected seconds to evaluate ``tokens``.

        While the draft model does not run, its times follow the target's. Else times that were measured on
        a busy machine would make it look expensive for good.
        """
        chunks = max(1.0, tokens / self._chunk)
        pace = self._target_s / self._target_s_when_timed
        seconds = self.costs.seconds(min(tokens, self._chunk), len(self._cached))
        return seconds * chunks * pace

    def _truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the cache."""
        del self._cached[length:]
        self.runtime.truncate(length)

    def _feed(self, tokens: Sequence[int], rows: Logits) -> FloatArray:
        """The logits after each of ``tokens``, or after the last, ``[n, V]``."""
        started = self._clock()
        logits = self.runtime.forward(self._readable_ids(tokens), logits=rows)
        self.runtime.keep(range(len(tokens)))
        self.costs.record(len(tokens), self._clock() - started, len(self._cached))
        self._cached += tokens
        self._target_s_when_timed = self._target_s
        self.passes += 1
        return logits

    def _readable_ids(self, tokens: Sequence[int]) -> list[int]:
        """``tokens``, with ids that the draft model cannot read replaced by one that it can."""
        return [min(token, self._readable - 1) for token in tokens]
