"""A smaller model drafts, token by token, for as long as that is expected to pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt

from edgespec.core.decoding import prefill
from edgespec.core.draft import EMPTY, Draft
from edgespec.core.drafter import Budget, Outcome
from edgespec.core.latency import LatencyModel
from edgespec.core.runtime import FloatArray, Logits, Runtime
from edgespec.core.sampling import Sampling, draw
from edgespec.drafting.calibration import (
    GREEDY_PRIOR,
    SAMPLED_PRIOR,
    Calibration,
    Mean,
    bin_of,
)
from edgespec.drafting.cascade import Cascade
from edgespec.drafting.head import Head, make_head
from edgespec.drafting.vocabulary import SameVocabulary, Vocabulary

_RECENT = 0.98
"""What a step leaves of the tokens and times before it: the last 50 or so make the going rate."""
_PROMPT_SLOPE = 0.2
"""Of a draft's costs beyond the sizes seen: its long passes are prompts, which it has to compute."""
_ANSWER_PRIOR = 50.0
"""Tokens of an answer before any was heard: the first one should not be half over before it is drafted."""
_ANSWER_WEIGHT = 0.3
"""The weight of an answer's length in the running mean of theirs."""
_EXPLORED = 0.02
"""The share of all time that may be given away, beyond what drafting has gained so far, to find out
whether it would pay now."""
_RISKED = 0.15
"""And no more than this share of the time since the last trial, and of what the answer has taken so
far: it may be at its end."""
_STRONG = 1.5
"""Tokens that another drafter must promise for nothing to be tried in its place."""
_READING = 0.12
"""The share of the time that the rest of the answer is expected to take which reading the prompt may take:
it is spent for certain, and whether drafts will be right is not."""
_TRIALS = 5
"""Steps that finding out takes."""


class ModelDrafter:
    """Drafts with ``runtime``, whose cache it keeps a prefix of the context.

    Where target and draft share a tokenizer, their vocabularies may be padded to different
    sizes: ids from ``vocab_size`` on, the width of the target's logits, are never drafted, and ids
    from ``readable`` on (default: the draft's own size, if it is not trimmed) never fed to the draft.
    Where they do not, the cache, the context and what is drafted are in the draft's own tokens, and
    ``vocabulary`` translates.

    **Greedy** drafts are the draft's likeliest tokens. **Sampled** ones are drawn from its
    distribution after the same penalty, temperature and cuts as the target's, and come with their
    distributions. So that they stay distributed as these say, whether a token is offered is decided
    before it is drawn, and by nothing that was drawn after it; so they have no ``confidence``,
    by which the scheduler would cut. With a seed, what is said depends on what was drafted, and so on
    the time that passes took. With another tokenizer greedy drafts are what the draft's text is in
    the target's tokens, which offers more than the tokens that both have; only from these, renormalised,
    sampled ones are drawn. Where they are few, the likeliest text is a certain guess for sampling, too.

    **When to stop** (SVIP, with what it costs in place of a threshold). Before a token is taken, the
    draft's top probability there is known; ``Calibration`` makes the chance of acceptance of it, as
    learnt from what the target said. A token is offered, and another pass run, if what is to be
    gained exceeds the seconds it takes — the draft's pass, the target's longer one — at the going
    rate of tokens per second (the marginal form of goodput: what maximises a ratio maximises tokens
    - rate · seconds). SpecDec++'s rule, a threshold on the chance that at least one token drafted was
    rejected, is part of it: a further token gains the product of the rates up to it, so the complement
    of that chance times its own rate, which what it costs is the threshold for. The chance of a token
    that no pass has looked at yet is the mean of late, of first tokens or of later ones. The same rule at the start of a step decides whether to draft at
    all, where also what another drafter has to offer must be surpassed. If not, the draft model does
    not run, until evaluating what it missed and a few trials are paid for by what it gained before, or
    take less than a fiftieth of all time: then it is given another chance. What a
    prompt costs the draft is spread over what is expected to be said still: as much as was said already,
    or what answers of late were longer. It reads all of it: of prompts of 630 to
    800 tokens (to summarise, to answer from) one that read only the first 48 and the last 512 guessed
    67 % of the answer right in place of 82 %, with the last 256 58 %.

    With ``cascade``, repetition drafts for the draft model, where that saves it passes.
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
        self.runtime, self._clock = runtime, clock
        self.name = runtime.info.name
        self._chunk = runtime.info.prefill_chunk
        self.costs = costs or LatencyModel(slope=_PROMPT_SLOPE)
        """Of the draft's passes."""
        self.passes = 0
        """Run so far, without those that only take in a prompt."""
        self.vocabulary = vocabulary or SameVocabulary(vocab_size)
        """Whose ``read`` and ``spell`` put the target's tokens into the draft's, and back."""
        info = runtime.info
        self._ids = (
            np.arange(info.vocab_size) if info.token_ids is None else np.array(info.token_ids)
        )
        self._heads: dict[bool, Head] = {}  # of tokens that are drawn, and of those that are not
        self._vocab_size = vocab_size
        if info.token_ids is None:
            readable = min(readable or info.vocab_size, info.vocab_size)
        self._readable = readable or vocab_size
        self._cascade = Cascade() if cascade else None
        # Guesses already evaluated after what is drafted, and the logits after each.
        self._ahead: list[tuple[int, FloatArray]] = []
        self._calibrations = {True: Calibration(GREEDY_PRIOR), False: Calibration(SAMPLED_PRIOR)}
        self._means = (Mean(), Mean())  # of first tokens, and of later ones where they are reached
        # What is in the cache, of this context or of an earlier one; never more than is there,
        # wherever an interruption comes.
        self._held: list[int] = []
        self._context: Sequence[int] = []
        self._same = 0  # tokens known to begin both
        self._begun = self._heard = -1  # the context's length when the prompt ended, and by now
        self._answer = _ANSWER_PRIOR  # mean length of an answer
        self._seed: int | None = None
        self._rng = np.random.default_rng()
        self._idle_s = self._total_s = self._gained_s = 0.0
        self._plain_s = 0.0  # a target pass over one token, when the draft's were last timed
        # Steps, tokens, and times in passes over one token, which a machine's pace does not change.
        self._recent: npt.NDArray[np.float64] = np.zeros(3)
        self._budget = Budget(0)
        # Of the step: tokens and their bins, and what the draft's passes are expected to have taken
        # without reading a prompt.
        self._looked: list[tuple[int, int]] = []
        self._seconds = 0.0

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        """At most ``budget.nodes`` tokens, as many as are expected to pay; often none."""
        sampling = budget.sampling
        if context is not self._context or len(context) != self._heard:
            self._begin(context, sampling)
        self._heard = len(context)
        self._budget, self._looked, self._seconds = budget, [], 0.0
        self._plain_s = self._plain_s or budget.pass_seconds(1)
        own, stable, whole = self.vocabulary.read(context)
        self._same = max(0, min(self._same, stable, len(own) - 1))
        room = min(budget.nodes, self.runtime.info.context - len(own) + 1)
        if room <= 0 or not whole:
            return EMPTY
        missing = len(own) - self._count_same(own)
        if not self._begins_to_pay(missing, room) and (
            (budget.best_so_far is not None and budget.best_so_far[0] >= _STRONG)
            or not self._explores(missing)
        ):
            return EMPTY
        calibration = self._calibrations[sampling.greedy]
        head = self._head(drawn=not sampling.greedy)
        offered, drafted, tops = 0, list[int](), list[float]()
        drawn: list[int] = []
        drawn_from: list[FloatArray] = []
        chance, expected = 1.0, 0.0
        if self._cascade:
            self._cascade.read(own, stable)
        logits = self._catch_up(own)
        while True:
            scores, top = head.scores(logits, sampling, own, drafted)
            bin = bin_of(top)
            rate = calibration.rates[bin]
            pays = self._pays(chance, rate, 0.0, offered, room)
            if not pays and head.targets is not None:  # nothing is drawn, or will be heard of it
                self._means[offered > 0].learn(rate)
                break
            column = int(scores.argmax()) if head.targets is None else draw(scores, self._rng)
            drafted.append(int(head.ids[column]))
            tops.append(top)
            if not pays:
                break
            offered += 1
            if head.targets is not None:
                drawn.append(int(head.targets[column]))
                self._looked.append((drawn[-1], bin))
                drawn_from.append(np.zeros(self._vocab_size, np.float32))
                drawn_from[-1][head.targets] = scores
            chance *= rate
            expected += chance
            later = self._means[1].rate
            seconds = 0.0 if self._foreseen(drafted[-1]) else self._pass_s(1)
            if not self._pays(chance, later, seconds, offered, room):
                break
            logits = self._after(own, drafted, room if sampling.greedy else 0)
        if self._cascade:
            self._cascade.end(unused=bool(self._ahead))
        self._ahead = []
        if head.targets is None:
            return self._certain(drafted, tops, offered, calibration, budget.nodes)
        if not offered:
            return EMPTY
        return Draft(drawn, probabilities=np.array(drawn_from), expected=expected)

    def _certain(
        self,
        drafted: Sequence[int],
        tops: Sequence[float],
        offered: int,
        calibration: Calibration,
        nodes: int,
    ) -> Draft:
        """The tokens that ``drafted`` spells; offered are those that end in its first ``offered``."""
        tokens: list[int] = []
        confidence: list[float] = []
        begun = 0
        for token, end, whole in self.vocabulary.spell(drafted):
            bin = bin_of(math.prod(tops[begun:end]))
            begun = end
            self._looked.append((token, bin))
            if end <= offered and len(tokens) < nodes:
                tokens.append(token)
                confidence.append(calibration.rates[bin] * whole)
        return Draft(tokens, confidence=confidence)

    def observe(self, outcome: Outcome) -> None:
        """Learn what was accepted; also of a greedy token that was looked at and not offered."""
        self._heard += len(outcome.said)
        calibration = self._calibrations[self._budget.sampling.greedy]
        pairs = zip(self._looked, outcome.said, strict=False)
        for position, ((token, bin), said) in enumerate(pairs):
            calibration.learn(bin, token == said)
            self._means[position > 0].learn(token == said)
            if token != said:
                break
        if len(self._looked) == 1:
            self._means[1].fade()  # or what it never tries again would never pay
        target_s = self._budget.pass_seconds
        seconds = self._seconds + target_s(1 + len(outcome.draft))
        self._looked, self._seconds = [], 0.0
        self._total_s += seconds
        self._gained_s += len(outcome.said) * target_s(1) - seconds
        self._recent = _RECENT * self._recent + (1, len(outcome.said), seconds / target_s(1))

    def forget(self) -> None:
        """Empty the draft's cache."""
        self._held, self._same = [], 0
        self.runtime.truncate(0)

    def _begin(self, context: Sequence[int], sampling: Sampling) -> None:
        """A prompt: learn how long the last answer was."""
        if self._heard > self._begun >= 0:
            self._answer += _ANSWER_WEIGHT * (self._heard - self._begun - self._answer)
        self._begun = len(context)
        if self._cascade and context is not self._context:
            self._cascade.forget()
        self._context, self._same = context, 0
        if sampling.seed != self._seed:  # a stream apart from that which the target draws from
            self._seed = sampling.seed
            self._rng = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(1,)))

    def _count_same(self, context: Sequence[int]) -> int:
        """How many tokens of the context the cache holds, but for the last: logits follow it."""
        held, end = self._held, min(len(self._held), len(context) - 1)
        while self._same < end and held[self._same] == context[self._same]:
            self._same += 1
        return self._same

    def _catch_up(self, context: Sequence[int]) -> FloatArray:
        """Evaluate what the cache lacks of the context; the logits that follow it, ``[V]``."""
        self._truncate(self._same)
        said = max(2, self._heard - self._begun)  # the rest is a prompt
        self._seconds += self._pass_s(min(len(context) - self._same, said))
        if (missing := len(context) - 1 - self._same) >= self._chunk:
            started = self._clock()
            prefill(self.runtime, self._read(context))
            self._held += context[self._same : -1]
            seconds = (self._clock() - started) * self._chunk / missing
            self.costs.record(self._chunk, seconds, len(self._held) - missing)
        logits: FloatArray = self._feed(context[len(self._held) :], "last")[0]
        return logits

    def _after(self, context: Sequence[int], drafted: Sequence[int], room: int) -> FloatArray:
        """The logits after ``drafted``, ``[V]``: a pass, if a guess did not simulate its last token.

        ``room``: for so many tokens from the first drafted one on guesses may be evaluated.
        """
        guesses: Sequence[int] = ()
        if self._cascade:
            if self._ahead:
                foreseen = self._foreseen(drafted[-1])
                self._cascade.learn(foreseen)
                _, row = self._ahead.pop(0)
                if foreseen:
                    return row
                self._ahead = []
                self._truncate(len(context) + len(drafted) - 1)
            most = min(room - len(drafted), self.runtime.info.max_rows) - 1
            guesses = self._cascade.guess(context, drafted, most, self._pass_s)
        first: FloatArray
        first, *others = self._feed([drafted[-1], *guesses], "all")
        self._seconds += self._pass_s(1 + len(guesses))
        self._ahead = list(zip(guesses, others, strict=True))
        return first

    def _foreseen(self, token: int) -> bool:
        """Whether the logits after ``token`` are there already."""
        return bool(self._ahead) and self._ahead[0][0] == token

    def _truncate(self, length: int) -> None:
        """Forget all but the first ``length`` tokens of the cache."""
        del self._held[length:]
        self.runtime.truncate(length)

    def _feed(self, tokens: Sequence[int], rows: Logits) -> FloatArray:
        """The logits after each of ``tokens``, or after the last, ``[n, V]``."""
        started = self._clock()
        logits = self.runtime.forward(self._read(tokens), logits=rows)
        self.runtime.keep(range(len(tokens)))
        self.costs.record(len(tokens), self._clock() - started, len(self._held))
        self._held += tokens
        self._plain_s = self._budget.pass_seconds(1)
        self.passes += 1
        return logits

    def _read(self, tokens: Sequence[int]) -> list[int]:
        """``tokens``, those that the draft model cannot read replaced by one that it can."""
        return [min(token, self._readable - 1) for token in tokens]

    def _head(self, drawn: bool) -> Head:
        """What tokens are taken from, ``drawn`` or not; made when it is first asked for."""
        if drawn not in self._heads:
            vocabulary, sizes = self.vocabulary, (self._vocab_size, self._readable)
            self._heads[drawn] = make_head(self._ids, vocabulary, *sizes, drawn)
        return self._heads[drawn]

    def _begins_to_pay(self, missing: int, room: int) -> bool:
        """Whether a first pass pays, which also evaluates what is ``missing`` of the context."""
        seconds = self._pass_s(min(missing, 2))
        steps, tokens, _ = self._recent
        said = self._heard - self._begun
        left = min(self._budget.tokens, max(said, self._answer - said))
        reading_s = self._pass_s(missing) - seconds
        if reading_s > _READING * left / self._going_rate():
            return False
        left *= steps / tokens if tokens else 1.0
        seconds += reading_s / max(left, 1)
        return self._pays(1.0, self._means[0].rate, seconds, 0, room, self._rival_gain())

    def _explores(self, missing: int) -> bool:
        """Whether enough was decoded plainly to find out how drafting would do now."""
        target_s = self._budget.pass_seconds
        self._idle_s += target_s(1)
        cost_s = self._pass_s(missing) + _TRIALS * (self._pass_s(1) + target_s(2) - target_s(1))
        answer_s = (self._heard - self._begun) / self._going_rate()
        spare_s = _EXPLORED * self._total_s + self._gained_s
        if cost_s > min(spare_s, _RISKED * self._idle_s, _RISKED * answer_s):
            return False
        self._idle_s = 0.0
        self._means = (Mean(), Mean())
        for calibration in self._calibrations.values():
            calibration.halve()
        return True

    def _going_rate(self) -> float:
        """Tokens per second of late; no less than plain decoding's."""
        _, tokens, passes = self._recent
        return max(1.0, tokens / passes if passes else 0.0) / self._budget.pass_seconds(1)

    def _rival_gain(self) -> float:
        """Tokens by which the best draft so far surpasses none, less what its time is worth."""
        if self._budget.best_so_far is None:
            return 0.0
        tokens, seconds = self._budget.best_so_far
        return tokens - 1 - self._going_rate() * (seconds - self._budget.pass_seconds(1))

    def _pays(
        self,
        chance: float,
        rate: float,
        seconds: float,
        offered: int,
        room: int,
        gain_elsewhere: float = 0.0,
    ) -> bool:
        """Whether a further token, or a few more after it, gain more than they take.

        ``chance``: that what is ``offered`` is accepted; ``rate``: that the token then is;
        ``seconds``: what it takes the draft to get there.
        """
        target_s, draft_s = self._budget.pass_seconds, self._pass_s(1)
        going_rate = self._going_rate()
        before, gain = target_s(1 + offered), -gain_elsewhere
        for rows in range(2 + offered, 2 + room):
            chance *= rate
            gain += chance
            if gain > going_rate * (seconds + target_s(rows) - before):
                return True
            rate, seconds = self._means[1].rate, seconds + draft_s
        return False

    def _pass_s(self, tokens: int) -> float:
        """Seconds that it is expected to take the draft to evaluate ``tokens``.

        While it does not run, its times are taken to follow the target's: a busy machine that was
        measured then would have it look dear for good.
        """
        chunks = max(1.0, tokens / self._chunk)
        pace = self._budget.pass_seconds(1) / self._plain_s
        seconds = self.costs.seconds(min(tokens, self._chunk), len(self._held))
        return seconds * chunks * pace
