"""One draft from several sources (Hierarchy Drafting, Cho et al. 2025), a chain or a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from edgespec.core.draft import Draft
from edgespec.core.drafter import Budget, Outcome
from edgespec.drafting.sources import Source


@dataclass(frozen=True)
class HierarchyConstants:
    """Constants of drafting from sources. All of them are guesses."""

    candidates: int = 4
    """Guesses that each source is asked for at one position."""
    negligible: float = 0.05
    """Chance of a path below which it pays nowhere, unless it only fills padding."""
    prior_weight: float = 4.0
    """Observations that the prior of a kind of guess counts for."""
    persistent_forgetting: float = 0.99
    """Factor on the weight of earlier observations of a kind, per observation, for persistent sources."""
    answer_forgetting: float = 0.9
    """The same for sources whose kinds start anew with every answer."""
    trust_weight: float = 6.0
    """Observations that full trust in all estimates counts for at the start of an answer."""
    trust_forgetting: float = 0.9
    """Factor on the weight of earlier observations of trust, per observation."""


CONSTANTS = HierarchyConstants()

_KINDS = 1 << 16
"""Kinds of one source, at most."""

Evidence = tuple[int, ...]
"""For a token at a position: each source that guessed it and the kind of its guess, as
``source * _KINDS + kind``."""


class EvidenceEstimator:
    """Estimates the acceptance rate of guesses by their evidence: Beta posteriors that forget slowly.

    The prior of agreement is the highest rate of the agreeing sources. They have read the same text, so they are
    hardly independent; what agreement adds is learnt soon.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._seen: dict[Evidence, tuple[float, float]] = {}  # hits, trials

    def rate(self, evidence: Evidence) -> float:
        """The posterior's mean."""
        if len(evidence) == 1:
            source, kind = divmod(evidence[0], _KINDS)
            prior = self._sources[source].priors[kind]
        else:
            prior = max([self.rate((one,)) for one in evidence])
        hits, trials = self._seen.get(evidence, (0.0, 0.0))
        weight = CONSTANTS.prior_weight
        return (hits + weight * prior) / (trials + weight)

    def learn(self, evidence: Evidence, correct: bool) -> None:
        """Count a verified guess, for its evidence together and for each source of it."""
        for each in {evidence, *((one,) for one in evidence)}:
            hits, trials = self._seen.get(each, (0.0, 0.0))
            kept = min([self._forgetting(one // _KINDS) for one in each])
            self._seen[each] = (kept * hits + correct, kept * trials + 1)

    def begin_answer(self) -> None:
        """Forget what does not persist from one answer to the next."""
        passing = {i for i, source in enumerate(self._sources) if not source.persistent}
        for evidence in [e for e in self._seen if passing & {one // _KINDS for one in e}]:
            del self._seen[evidence]

    def _forgetting(self, source: int) -> float:
        if self._sources[source].persistent:
            return CONSTANTS.persistent_forgetting
        return CONSTANTS.answer_forgetting


class Hierarchy:
    """Asks its sources, those nearest to the context first, and extends the likeliest path.

    The draft grows best first by the chance of the path to each token (OPT-Tree, Wang et al. 2025; EAGLE-2): a
    chain where a position may have one candidate, a tree otherwise. A token that several sources guess is one
    candidate, and its acceptance rate is estimated by which sources agree on it. All guesses on the path of the
    output tokens are verified, also those that the scheduler cut, so the estimates learn at no cost even while
    nothing is drafted. Where the best guesses were correct less often than estimated, all estimates are scaled
    down until the next prompt: some answers are unlike everything before, and there are many kinds to learn.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.name = "+".join(source.name for source in sources) or "none"
        self._estimator = EvidenceEstimator(sources)
        self._hits = self._expected_hits = 0.0  # of recent best guesses
        self._context: Sequence[int] = ()
        self._length = -1  # the context's length if only output tokens were added
        # By draft token, -1 for the context's last: the candidates after it, and which are drafted.
        self._candidates: dict[int, dict[int, Evidence]] = {}
        self._nodes: dict[tuple[int, int], int] = {}
        self._best: dict[int, tuple[int, float]] = {}  # the best guess, and its estimated rate

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        """At most ``budget.nodes`` tokens with confidences, the likeliest path first."""
        if context is not self._context or len(context) != self._length:  # a prompt was added
            self._estimator.begin_answer()
            self._hits = self._expected_hits = 0.0
        self._context, self._length = context, len(context)
        self._candidates, self._nodes, self._best = {}, {}, {}
        tokens: list[int] = []
        parents: list[int] = []
        confidence: list[float] = []
        # Negative chance of the path, order of insertion, parent, token, rate, the sources' places of the parent.
        frontier: list[tuple[float, int, int, int, float, list[Any]]] = []
        count = free = 0
        while free < budget.nodes and budget.pass_seconds(2 + free) <= budget.pass_seconds(1):
            free += 1  # tokens that only fill padding

        def look(node: int, chance: float, places: list[Any]) -> None:
            nonlocal count
            for token, rate in self._look_up(node, places, budget.width):
                if chance * rate >= CONSTANTS.negligible or count < free:
                    heappush(frontier, (-chance * rate, count, node, token, rate, places))
                    count += 1

        look(-1, 1.0, [source.start(context) for source in self.sources])
        while frontier and len(tokens) < budget.nodes:
            negative, _, parent, token, rate, places = heappop(frontier)
            node = self._nodes[parent, token] = len(tokens)
            tokens.append(token)
            parents.append(parent)
            confidence.append(rate)
            if len(tokens) < budget.nodes:
                after = [s.advance(p, token) for s, p in zip(self.sources, places, strict=True)]
                look(node, -negative, after)
        return Draft(tokens, None if budget.width == 1 else parents, confidence=confidence)

    def observe(self, outcome: Outcome) -> None:
        """Verify the guesses along the path of the output tokens; the sources learn."""
        self._length += len(outcome.tokens)
        node: int | None = -1
        for actual in outcome.tokens:
            if node is None or node not in self._candidates:
                break
            for token, evidence in self._candidates[node].items():
                self._estimator.learn(evidence, token == actual)
            if node in self._best:
                guess, rate = self._best[node]
                kept = CONSTANTS.trust_forgetting
                self._hits = kept * self._hits + (guess == actual)
                self._expected_hits = kept * self._expected_hits + rate
            node = self._nodes.get((node, actual))
        self._candidates = {}
        for source in self.sources:
            source.observe(outcome)

    def _look_up(self, node: int, places: Sequence[Any], width: int) -> list[tuple[int, float]]:
        """The likeliest candidates after ``node``, at most ``width``, and their acceptance rates."""
        found: dict[int, Evidence] = {}
        for i, (source, place) in enumerate(zip(self.sources, places, strict=True)):
            for token, kind in source.successors(place, CONSTANTS.candidates):
                found[token] = (*found.get(token, ()), i * _KINDS + kind)
        self._candidates[node] = found
        weight = CONSTANTS.trust_weight
        trust = min(1.0, (self._hits + weight) / (self._expected_hits + weight))
        rates = [
            (token, trust * self._estimator.rate(evidence)) for token, evidence in found.items()
        ]
        rates.sort(key=lambda pair: -pair[1])
        if rates:
            self._best[node] = rates[0]
        return rates[:width]
