"""The loop: plan, draft, verify, accept, learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from edgespec.core.acceptance import Rule, accept
from edgespec.core.drafter import Outcome
from edgespec.core.runtime import Runtime
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Choice, Scheduler
from edgespec.progress import Progress, silent


@dataclass(frozen=True)
class Step:
    """One step of the decoding loop. The times are in seconds and add up to the whole step."""

    tokens: list[int]
    """The output tokens, a stop token included; already in the context."""
    accepted: int
    """The number of output tokens that were drafted."""
    choice: Choice
    draft_s: float
    pass_s: float
    overhead_s: float
    """Acceptance, learning and bookkeeping."""
    draft_passes: int = 0
    """Draft model passes of this step."""

    @property
    def drafted(self) -> int:
        """The number of tokens that the pass verified."""
        return len(self.choice.draft)


def prefill(target: Runtime, context: list[int], progress: Progress = silent) -> None:
    """Evaluate ``context[target.length:-1]``. The first decoding pass evaluates the last token.

    ``progress`` is called before every chunk. An exception from it, or Ctrl-C, cancels between
    chunks and leaves a valid cache. Raises ``ContextOverflow`` when the context does not fit.
    """
    end, size = len(context) - 1, target.info.prefill_chunk
    while (done := target.length) < end:
        progress("reading the prompt", done, end)
        chunk = context[done : min(done + size, end)]
        target.forward(chunk, logits="none")
        target.keep(range(len(chunk)))


def decode(
    target: Runtime,
    scheduler: Scheduler,
    context: list[int],
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    stop_tokens: AbstractSet[int] = frozenset(),
    rng: np.random.Generator | None = None,
    rule: Rule = "lossless",
    clock: Callable[[], float] = perf_counter,
) -> Iterator[Step]:
    """Decode at most ``max_tokens`` tokens after ``context``, one step at a time, and append them to it.

    On entry the cache must hold a proper prefix of ``context``; the rest is prefilled. Decoding ends
    after a stop token, after ``max_tokens``, or when the cache is full; then the last output token is
    not in the cache. The cache always holds a prefix of ``context``, even after an exception. After a
    step it holds ``context[:-1]`` with any draft, so later passes are the same with and without
    drafting. ``rule`` is the acceptance rule. ``clock`` returns seconds.
    """
    if max_tokens <= 0:
        return
    sampling = sampling or Sampling()
    rng = rng or np.random.default_rng(sampling.seed)
    info = target.info

    prefill(target, context)
    scheduler.begin()
    left = min(max_tokens, info.context - target.length)
    while left > 0:
        started, passes = clock(), scheduler.draft_passes
        choice = scheduler.choose(context, left, info, sampling)
        draft = choice.draft
        drafted_at, passes = clock(), scheduler.draft_passes - passes

        parents = None
        if draft.parents is not None and not draft.is_chain:
            parents = [-1, *(p + 1 for p in draft.parents)]
        logits = target.forward([context[-1], *draft.tokens], parents)
        passed_at = clock()

        verification = accept(draft, logits, sampling, context, rng, rule)
        tokens = verification.tokens
        stop = next((i for i, token in enumerate(tokens) if token in stop_tokens), None)
        if stop is not None:
            tokens = tokens[: stop + 1]
        accepted = min(len(verification.tokens) - 1, len(tokens))

        draft_s, pass_s = drafted_at - started, passed_at - drafted_at
        outcome = Outcome(draft, accepted, tokens, logits)
        scheduler.learn(outcome, info.padded(1 + len(draft)), pass_s, target.length, passes)
        context.extend(tokens)  # before keep: an interrupt in between leaves the cache valid
        target.keep(verification.rows[: len(tokens)])
        left = 0 if stop is not None else left - len(tokens)

        overhead_s = clock() - passed_at
        yield Step(tokens, accepted, choice, draft_s, pass_s, overhead_s, passes)
