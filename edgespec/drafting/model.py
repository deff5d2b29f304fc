"""A smaller model drafts, token by token, for as long as that is expected to pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from edgespec.core.draft import EMPTY, Draft
from edgespec.core.drafter import Budget, Outcome
from edgespec.core.latency import LatencyModel
from edgespec.core.runtime import FloatArray, Runtime
from edgespec.core.sampling import Sampling, draw
from edgespec.drafting import exploration
from edgespec.drafting.cascade import Cascade
from edgespec.drafting.exploration import Exploration
from edgespec.drafting.follower import CacheFollower
from edgespec.drafting.logit_columns import LogitColumns, select_columns
from edgespec.drafting.stopping import AnswerLength, StoppingRule
from edgespec.drafting.vocabulary import Ids, SameVocabulary, Vocabulary


@dataclass(frozen=True)
class ModelConstants:
    """Constants of drafting with a model."""

    prompt_slope: float = 0.2
    """Cost of a further token in a draft pass, in passes over one token, where no profile measured it. A
    guess; the draft's long passes are prompts, which are bound by computation."""


CONSTANTS = ModelConstants()


class ModelDrafter:
    """Drafts with ``runtime``, whose cache it keeps a prefix of the context.

    Decide at the end of this round: docs/reference/figures.md has a geometric mean of 1.24 beside the sources against 1.21
    without it (14 questions), and 1.26 against 1.17 (7 others).

    Target and draft may share a tokenizer and pad their vocabularies to different sizes. Ids from ``vocab_size``
    on, the width of the target's logits, are never drafted. Ids from ``readable`` on (default: the draft's own
    size, if it is not trimmed) are never fed to the draft. With different tokenizers, the cache, the context and
    the draft are in the draft's own tokens, and ``vocabulary`` translates.

    **Greedy** drafts are the draft's likeliest tokens. **Sampled** drafts are drawn from its distribution after
    the same penalty, temperature and cuts as the target's, and come with their distributions. To stay distributed
    as these say, a token is offered or not before it is drawn, and nothing drawn later changes that. So they have
    no ``confidence``, by which the scheduler would cut. With a seed, the output depends on what was drafted, and so
    on measured times. With another tokenizer, greedy drafts are the draft's text in the target's tokens; sampled
    drafts are drawn only from the tokens that both have, renormalised. Where these are few, sampling too takes the
    likeliest text, as certain.

    **When to stop** (SVIP, with costs in place of a threshold): the draft's top probability gives a token's
    acceptance rate (``AcceptanceEstimator``). A token is offered, and another pass run, if the expected gain
    exceeds its cost (``StoppingRule``). The same rule decides at the start of a step whether to draft at all; then
    the best draft so far must be surpassed too. If not, the draft model does not run until ``Exploration`` can
    afford a trial. The cost of reading a prompt is spread over the expected rest of the answer. The draft model
    reads all of it: on prompts of 630 to 800 tokens (to summarise, to answer from), a draft that read only the first
    48 and the last 512 tokens guessed 67 % of the answer right instead of 82 %; with the last 256, 58 %.

    With ``cascade``, prompt lookup drafts for the draft model, where that saves passes.
    """

    def __init__(
        self,
        runtime: Runtime,
        vocab_size: int,
        costs: LatencyModel | None = None,
        readable: int | None = None,
        clock: Callable[[], float] = perf_counter,
        vocabulary: Vocabulary | None = None,
        cascade: bool = False,
    ) -> None:
        info = runtime.info
        self.name = info.name
        self.vocabulary = vocabulary or SameVocabulary(vocab_size)
        """Translates between the target's tokens and the draft's."""
        if info.token_ids is None:
            readable = min(readable or info.vocab_size, info.vocab_size)
        self._vocab_size, self._readable = vocab_size, readable or vocab_size
        self.follower = CacheFollower(
            runtime,
            costs or LatencyModel(slope=CONSTANTS.prompt_slope),
            self._readable,
            clock,
            Cascade() if cascade else None,
        )
        self.stopping = StoppingRule(self.follower.pass_seconds)
        self._exploration, self._answer = Exploration(), AnswerLength()
        self._columns: dict[bool, LogitColumns] = {}  # by whether tokens are sampled
        self._context: Sequence[int] = []
        self._budget = Budget(0)
        self._seed: int | None = None
        self._rng = np.random.default_rng()

    @property
    def runtime(self) -> Runtime:
        """The draft model."""
        return self.follower.runtime

    @property
    def passes(self) -> int:
        """Draft passes so far, without those that only read a prompt."""
        return self.follower.passes

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        """At most ``budget.nodes`` tokens, as many as are expected to pay; often none."""
        if context is not self._context or not self._answer.is_continued(len(context)):
            self._begin(context, budget.sampling)
        own, stable, complete = self.vocabulary.read(context)
        room = min(budget.nodes, self.runtime.info.context - len(own) + 1)
        self._budget = budget
        self.stopping.start_step(budget, room)
        self.follower.start_step(own, stable, budget.pass_seconds(1))
        if room <= 0 or not complete or not self._drafts(self.follower.missing(own)):
            return EMPTY
        logits = self.follower.catch_up(own, stable, max(2, self._answer.tokens))
        columns = self._select_columns(sampled=not budget.sampling.greedy)
        if columns.targets is None:
            return self._draft_likeliest(own, logits, columns, room)
        return self._draft_sampled(own, logits, columns, columns.targets)

    def observe(self, outcome: Outcome) -> None:
        """Learn what was accepted; also of a greedy token that was evaluated and not offered."""
        self._answer.add(len(outcome.tokens))
        step_s = self.follower.step_s + self._budget.pass_seconds(1 + len(outcome.draft))
        self.follower.step_s = 0.0
        self._exploration.record(step_s, self.stopping.observe(outcome.tokens, step_s))

    def forget(self) -> None:
        """Empty the draft's cache."""
        self.follower.forget()

    def _begin(self, context: Sequence[int], sampling: Sampling) -> None:
        """Begin an answer."""
        self._answer.begin(len(context))
        self.follower.begin(new_context=context is not self._context)
        self._context = context
        if sampling.seed != self._seed:  # a stream apart from that which the target draws from
            self._seed = sampling.seed
            self._rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(1,)))

    def _drafts(self, missing: int) -> bool:
        """Whether to draft in this step: because it pays, or as a trial."""
        budget, stopping = self._budget, self.stopping
        if stopping.pays_to_start(missing, self._answer.expected_left(budget.tokens)):
            return True
        best = budget.best_so_far
        if best is not None and best[0] >= exploration.CONSTANTS.strong:
            return False
        answer_s = self._answer.tokens / stopping.token_rate()
        draft_s, target_s = self.follower.pass_seconds, budget.pass_seconds
        if not self._exploration.starts(missing, answer_s, draft_s, target_s):
            return False
        stopping.forget_half()
        return True

    def _pays_to_go_on(self, token: int, chance: float, offered: int) -> bool:
        """Whether a pass after ``token``, the last of ``offered``, is expected to pay."""
        seconds = 0.0 if self.follower.is_evaluated(token) else self.follower.pass_seconds(1)
        return self.stopping.pays(chance, self.stopping.later.rate, seconds, offered)

    def _draft_likeliest(
        self, context: Sequence[int], logits: FloatArray, columns: LogitColumns, room: int
    ) -> Draft:
        """The likeliest tokens after ``context``, of which ``logits`` are the first's."""
        sampling, stopping = self._budget.sampling, self.stopping
        offered, drafted, tops = 0, list[int](), list[float]()
        chance = 1.0
        while True:
            scores, top = columns.scores(logits, sampling, context, drafted)
            rate = stopping.acceptance(top)
            pays = stopping.pays(chance, rate, 0.0, offered)
            drafted.append(int(columns.ids[int(scores.argmax())]))
            tops.append(top)
            if not pays:
                break
            offered += 1
            chance *= rate
            if not self._pays_to_go_on(drafted[-1], chance, offered):
                break
            logits = self.follower.extend(context, drafted, room if sampling.greedy else 0)
        self.follower.end_draft()
        return self._spell(drafted, tops, offered)

    def _draft_sampled(
        self, context: Sequence[int], logits: FloatArray, columns: LogitColumns, targets: Ids
    ) -> Draft:
        """Tokens drawn after ``context``, with their distributions."""
        sampling, stopping = self._budget.sampling, self.stopping
        drafted: list[int] = []
        tokens: list[int] = []  # the same in the target's ids
        rows: list[FloatArray] = []
        chance, expected = 1.0, 0.0
        while True:
            p, top = columns.scores(logits, sampling, context, drafted)
            rate = stopping.acceptance(top)
            if not stopping.pays(chance, rate, 0.0, len(drafted)):
                stopping.learn_unverified(rate, len(drafted))
                break
            column = draw(p, self._rng)
            drafted.append(int(columns.ids[column]))
            tokens.append(int(targets[column]))
            stopping.add(tokens[-1], top)
            rows.append(np.zeros(self._vocab_size, np.float32))
            rows[-1][targets] = p
            chance *= rate
            expected += chance
            if not self._pays_to_go_on(drafted[-1], chance, len(drafted)):
                break
            logits = self.follower.extend(context, drafted, 0)
        self.follower.end_draft()
        if not tokens:
            return EMPTY
        return Draft(tokens, probabilities=np.array(rows), expected=expected)

    def _spell(self, drafted: Sequence[int], tops: Sequence[float], offered: int) -> Draft:
        """The target's tokens for ``drafted``; those that end in its first ``offered`` are the draft."""
        tokens: list[int] = []
        confidence: list[float] = []
        start = 0
        for token, end, complete in self.vocabulary.spell(drafted):
            top = math.prod(tops[start:end])
            start = end
            self.stopping.add(token, top)
            if end <= offered and len(tokens) < self._budget.nodes:
                tokens.append(token)
                confidence.append(self.stopping.acceptance(top) * complete)
        return Draft(tokens, confidence=confidence)

    def _select_columns(self, sampled: bool) -> LogitColumns:
        """The columns for ``sampled`` or greedy drafts; selected when first asked for."""
        if sampled not in self._columns:
            info = self.runtime.info
            ids = np.arange(info.vocab_size) if info.token_ids is None else np.array(info.token_ids)
            self._columns[sampled] = select_columns(
                ids, self.vocabulary, self._vocab_size, self._readable, sampled
            )
        return self._columns[sampled]
