"""Who drafts for the next pass, and how much of it is worth verifying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgespec.core.draft import EMPTY, Draft
from edgespec.core.drafter import Budget, Drafter, Outcome, draft_passes
from edgespec.core.latency import LatencyModel
from edgespec.core.runtime import ModelInfo
from edgespec.core.sampling import Sampling

_WIDTH = 4
"""Candidates for one place, where passes may be trees."""
_MARGIN = 1.02
"""What a pass larger than plain decoding's must promise: times and confidences are estimates."""
_LOSS, _SHARE = 2.0, 0.01
"""What drafts may lose of an answer: so many passes over one token, and so much of one for each token."""
_SURE = 1.5
"""Gain over plain decoding that a draft must promise where more than that is lost."""


@dataclass(frozen=True)
class Choice:
    """What the scheduler decided for a pass, and what it expected of it."""

    drafter: str
    """"none" where the pass is plain decoding's."""
    draft: Draft
    tokens: float
    """Said, on average."""
    pass_s: float
    plain_s: float
    """What a pass of plain decoding would take."""


class Scheduler:
    """Chooses for every pass the drafter and the draft with the most expected tokens per second.

    ``drafters`` are asked in turn, the cheapest to ask first; each is told what the best draft so far
    promises, and one that takes time to draft offers nothing unless it expects to do better. All of
    them learn from what the target says, whoever drafted. Now and then nobody is asked, or what plain
    decoding takes would be believed for good. Only passes without a draft model's before them tell:
    its threads hold cores for a while, which would be taken for a slow machine.

    Some answers are not what was expected, and where passes are dear a few wrong drafts make them
    slower than plain decoding. So what an answer may lose is bounded: once its drafts have cost that
    much more than they gained, only those that promise much are made.
    """

    def __init__(self, drafters: Sequence[Drafter], costs: LatencyModel | None = None) -> None:
        self.drafters = drafters
        self.costs = costs or LatencyModel()
        """Of the target's passes."""
        self._info: ModelInfo | None = None
        self._padded: list[int] = []  # by rows of a pass
        self._said, self._lost = 0, 0.0  # of this answer: tokens, and passes over one token

    @property
    def name(self) -> str:
        """The names of the drafters it chooses among."""
        return "+".join(drafter.name for drafter in self.drafters) or "none"

    @property
    def draft_passes(self) -> int:
        """Passes that draft models have run."""
        return sum(draft_passes(drafter) for drafter in self.drafters)

    def begin(self) -> None:
        """An answer begins, of which nothing is lost yet."""
        self._said, self._lost = 0, 0.0

    def choose(
        self, context: Sequence[int], left: int, info: ModelInfo, sampling: Sampling
    ) -> Choice:
        """What to verify after ``context``, of which at most ``left`` tokens will be said."""
        if info is not self._info:
            most = min(info.max_rows, max(info.pass_sizes, default=info.max_rows))
            self._info, self._padded = info, [info.padded(rows) for rows in range(most + 1)]
            self.costs.plain = self._padded[1]
        length, padded = len(context) - 1, self._padded
        nodes = min(len(padded) - 1, left) - 1  # the target adds a token of its own
        # Only a tree's first branch has the bits of a chain.
        width = _WIDTH if info.trees and not info.pass_sizes else 1

        def pass_seconds(rows: int) -> float:
            return self.costs.seconds(padded[rows], length)

        plain_s = pass_seconds(1)
        best = Choice("none", EMPTY, 1.0, plain_s, plain_s)
        if self.costs.plain_is_stale:
            return best
        lost = self._lost > _LOSS + _SHARE * self._said
        # Drafters are told beforehand: what was drawn may not be dropped for what it promises.
        best_so_far = (_SURE if lost else 1.0), plain_s
        for drafter in self.drafters:
            budget = Budget(nodes, width, left, pass_seconds, sampling, best_so_far)
            draft, tokens = cut(drafter.propose(context, budget), budget)
            if draft:
                best_so_far = tokens, pass_seconds(1 + len(draft))
                best = Choice(drafter.name, draft, *best_so_far, plain_s)
        return best

    def learn(
        self, outcome: Outcome, size: int, seconds: float, length: int, draft_passes: int = 0
    ) -> None:
        """Take in what came of a pass over ``size`` tokens, padding included, after ``length``.

        ``draft_passes``: of draft models, just before it.
        """
        if size > self.costs.plain or not draft_passes:
            self.costs.record(size, seconds, length)
        said = len(outcome.said)
        self._said += said
        if outcome.draft:  # by what such passes take: a single one may have been held up
            plain_s = self.costs.seconds(self._padded[1], length)
            self._lost += self.costs.seconds(size, length) / plain_s - said
        for drafter in self.drafters:
            drafter.observe(outcome)


def cut(draft: Draft, budget: Budget) -> tuple[Draft, float]:
    """The first γ tokens of ``draft``, γ <= ``budget.nodes``, with the largest expected tokens per
    second, and the tokens expected to be said.

    That is SmartSpec's goodput: (1 + Σ_i Π_{j on the path to i} a_j) / t(n), a the draft's confidences
    and t(n) the time of a pass over n = γ + 1 tokens, padded as the runtime pads it. The first tokens of
    a tree are a tree, the likeliest of its size if it was grown best first. What the best draft
    so far promises is among the choices, as γ = 0, and tokens that only fill padding are free. A draft
    without confidences is taken as it is, up to ``nodes``.
    """
    draft = draft.first(budget.nodes)
    if draft.confidence is None:
        return draft, 1.0 + draft.expected
    plain_s = budget.pass_seconds(1)
    best, (best_tokens, rival_s) = 0, budget.best_so_far or (1.0, plain_s)
    best_rate = best_tokens / rival_s
    expected = 1.0
    chances: list[float] = []
    parents = draft.parents or range(-1, len(draft) - 1)
    for gamma, (confidence, parent) in enumerate(zip(draft.confidence, parents, strict=True), 1):
        chances.append(confidence * (chances[parent] if parent >= 0 else 1.0))
        expected += chances[-1]
        seconds = budget.pass_seconds(gamma + 1)
        rate = expected / (seconds if seconds == plain_s else seconds * _MARGIN)
        if rate > best_rate:
            best, best_tokens, best_rate = gamma, expected, rate
    return _laid_out(draft.first(best)), best_tokens


def _laid_out(draft: Draft) -> Draft:
    """A tree's tokens branch by branch, the likeliest first, which is a chain's in its rows' bits."""
    if draft.is_chain:
        return replace(draft, parents=None)
    assert draft.parents is not None
    children = draft.children()
    order: list[int] = []
    waiting = children[0][::-1]
    while waiting:
        order.append(waiting.pop())
        waiting += children[order[-1] + 1][::-1]
    row_of = {token: row for row, token in enumerate([-1, *order], -1)}
    return replace(
        draft,
        tokens=[draft.tokens[i] for i in order],
        parents=[row_of[draft.parents[i]] for i in order],
        probabilities=None if draft.probabilities is None else draft.probabilities[order],
        confidence=None if draft.confidence is None else [draft.confidence[i] for i in order],
    )
