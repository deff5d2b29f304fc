"""One draft out of several sources (Hierarchy Drafting, Cho et al. 2025), a chain or a tree."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any

from edgespec.core.draft import Draft
from edgespec.core.drafter import Budget, Outcome
from edgespec.drafting.sources import Source

_CANDIDATES = 4
"""Guesses that a source is asked for at one place."""
_NEGLIGIBLE = 0.05
"""A path with less chance than this pays nowhere, unless it is free."""
_PRIOR_WEIGHT = 4.0
"""How many observations the prior of a kind is worth."""
_FORGETTING = {True: 0.99, False: 0.9}
"""What an observation leaves of the weight of those before it, of its kind, where chances last and where
they do not."""
_TRUST_WEIGHT, _TRUST_FORGETTING = 6.0, 0.9
"""Observations that trust in all the chances together is worth at first, and what one leaves of those before."""
_KINDS = 1 << 16
"""Kinds of one source, at most."""

Evidence = tuple[int, ...]
"""For a token at a place: what kind of guess it is to each source that guessed it, and which source
that is: ``source * _KINDS + kind``."""


class Chances:
    """How often guesses on the same evidence were right: Beta posteriors that forget slowly.

    The prior of agreement is the best of what the agreeing sources promise: they have seen the same
    text, so that they are hardly independent, and how much agreement is worth is soon learnt.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._seen: dict[Evidence, tuple[float, float]] = {}  # hits, trials
        self._forgetting = [_FORGETTING[source.lasting] for source in sources]

    def rate(self, evidence: Evidence) -> float:
        """The posterior's mean."""
        if len(evidence) == 1:
            source, kind = divmod(evidence[0], _KINDS)
            prior = self._sources[source].priors[kind]
        else:
            prior = max([self.rate((one,)) for one in evidence])
        hits, trials = self._seen.get(evidence, (0.0, 0.0))
        return (hits + _PRIOR_WEIGHT * prior) / (trials + _PRIOR_WEIGHT)

    def learn(self, evidence: Evidence, right: bool) -> None:
        """Count a guess that was judged, for what agreed on it together, and for each of them."""
        for each in {evidence, *((one,) for one in evidence)}:
            hits, trials = self._seen.get(each, (0.0, 0.0))
            left = min([self._forgetting[one // _KINDS] for one in each])
            self._seen[each] = (left * hits + right, left * trials + 1)

    def renew(self) -> None:
        """An answer begins: forget what does not last."""
        passing = {i for i, source in enumerate(self._sources) if not source.lasting}
        for evidence in [e for e in self._seen if passing & {one // _KINDS for one in e}]:
            del self._seen[evidence]


class Hierarchy:
    """Asks its sources, those nearest to what is being said first, and goes where guesses are likeliest.

    The draft grows best first by the chance of the path to each token (OPT-Tree, Wang et al. 2025;
    EAGLE-2): a chain where a place may have one candidate, a tree otherwise. Tokens that several
    sources guess are one candidate (so drafts are merged where they agree), and which sources they
    are is what its chance is estimated by, from how often such guesses were right. All of the draft's
    guesses are judged as far as the target's words reach, also those that the scheduler cut off, so that
    the estimates go on learning, for nothing, even while nothing is drafted. Some answers are not at all
    like what was seen, and kinds are many: where the best guesses of late were right less often than
    promised, all chances are taken for as much smaller, until the next prompt.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.name = "+".join(source.name for source in sources) or "none"
        self._chances = Chances(sources)
        self._right = self._promised = 0.0  # of the best guesses of late
        self._context: Sequence[int] = ()
        self._heard = -1  # the context's length if only the target has added to it
        # By draft token, -1 for the context's last: the candidates after it, and which are drafted.
        self._candidates: dict[int, dict[int, Evidence]] = {}
        self._nodes: dict[tuple[int, int], int] = {}
        self._best: dict[int, tuple[int, float]] = {}  # guesses, and their chances

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        """At most ``budget.nodes`` tokens with confidences, the likeliest path first."""
        if context is not self._context or len(context) != self._heard:  # a prompt came in between
            self._chances.renew()
            self._right = self._promised = 0.0
        self._context, self._heard = context, len(context)
        self._candidates, self._nodes, self._best = {}, {}, {}
        tokens: list[int] = []
        parents: list[int] = []
        confidence: list[float] = []
        # Less chance, places made later, parent, token, rate and the sources' places of the parent.
        frontier: list[tuple[float, int, int, int, float, list[Any]]] = []
        count = free = 0
        while free < budget.nodes and budget.pass_seconds(2 + free) <= budget.pass_seconds(1):
            free += 1  # tokens that only fill padding

        def look(node: int, chance: float, places: list[Any]) -> None:
            nonlocal count
            for token, rate in self._look_up(node, places, budget.width):
                if chance * rate >= _NEGLIGIBLE or count < free:
                    heappush(frontier, (-chance * rate, count, node, token, rate, places))
                    count += 1

        look(-1, 1.0, [source.start(context) for source in self.sources])
        while frontier and len(tokens) < budget.nodes:
            less, _, parent, token, rate, places = heappop(frontier)
            node = self._nodes[parent, token] = len(tokens)
            tokens.append(token)
            parents.append(parent)
            confidence.append(rate)
            if len(tokens) < budget.nodes:
                after = [s.advance(p, token) for s, p in zip(self.sources, places, strict=True)]
                look(node, -less, after)
        return Draft(tokens, None if budget.width == 1 else parents, confidence=confidence)

    def observe(self, outcome: Outcome) -> None:
        """Judge the guesses along the path that was said; the sources learn."""
        self._heard += len(outcome.said)
        node: int | None = -1
        for said in outcome.said:
            if node is None or node not in self._candidates:
                break
            for token, evidence in self._candidates[node].items():
                self._chances.learn(evidence, token == said)
            if node in self._best:
                guess, rate = self._best[node]
                self._right = _TRUST_FORGETTING * self._right + (guess == said)
                self._promised = _TRUST_FORGETTING * self._promised + rate
            node = self._nodes.get((node, said))
        self._candidates = {}
        for source in self.sources:
            source.observe(outcome)

    def _look_up(self, node: int, places: Sequence[Any], width: int) -> list[tuple[int, float]]:
        """The likeliest candidates after ``node``, at most ``width``, and their chances."""
        found: dict[int, Evidence] = {}
        for i, (source, place) in enumerate(zip(self.sources, places, strict=True)):
            for token, kind in source.successors(place, _CANDIDATES):
                found[token] = (*found.get(token, ()), i * _KINDS + kind)
        self._candidates[node] = found
        trust = min(1.0, (self._right + _TRUST_WEIGHT) / (self._promised + _TRUST_WEIGHT))
        rates = [(token, trust * self._chances.rate(evidence)) for token, evidence in found.items()]
        rates.sort(key=lambda pair: -pair[1])
        if rates:
            self._best[node] = rates[0]
        return rates[:width]
