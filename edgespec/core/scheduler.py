"""Chooses the drafter of the next pass, and how much of its draft to verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgespec.core.draft import EMPTY, Draft
from edgespec.core.drafter import Budget, Drafter, Outcome, draft_passes
from edgespec.core.latency import LatencyModel
from edgespec.core.runtime import ModelInfo
from edgespec.core.sampling import Sampling


@dataclass(frozen=True)
class SchedulerConstants:
    """Constants of the scheduler. All of them are guesses."""

    width: int = 4
    """Candidates for one position, where passes may be trees."""
    margin: float = 1.02
    """Factor by which a draft must beat plain decoding's rate: times and confidences are estimates."""
    loss_passes: float = 2.0
    """What drafts may lose of an answer, in passes over one token."""
    loss_share: float = 0.01
    """What drafts may lose in addition, in passes over one token for each output token."""
    strong: float = 1.5
    """Expected tokens of a pass that a draft must surpass once more than that is lost."""


CONSTANTS = SchedulerConstants()


@dataclass(frozen=True)
class Choice:
    """The scheduler's decision for a pass, and what it expects of it."""

    drafter: str
    """"none" for a pass of plain decoding."""
    draft: Draft
    tokens: float
    """Expected output tokens."""
    pass_s: float
    """Expected seconds of the pass."""
    plain_s: float
    """Expected seconds of a pass of plain decoding."""


class Scheduler:
    """Chooses for every pass the drafter and the draft with the most expected tokens per second.

    ``drafters`` are asked in turn, the cheapest first. Each gets the expectation of the best draft so far; a drafter
    that takes time to draft offers nothing unless it expects more. All of them learn from the output tokens,
    whoever drafted. Now and then no drafter is asked, to measure plain decoding again. Only passes that follow no
    draft model's pass count for that: a draft model's threads hold cores for a while, which would look like a
    slow machine.

    The loss of an answer is bounded, because a few wrong drafts can make an answer slower than plain decoding where
    long passes are expensive: once drafts have cost that much more than they gained, only strong drafts are made.
    """

    def __init__(self, drafters: Sequence[Drafter], costs: LatencyModel | None = None) -> None:
        self.drafters = drafters
        self.costs = costs or LatencyModel()
        """The latency model of the target's passes."""
        self._info: ModelInfo | None = None
        self._padded: list[int] = []  # by rows of a pass
        self.begin()

    @property
    def name(self) -> str:
        """The names of the drafters it chooses among."""
        return "+".join(drafter.name for drafter in self.drafters) or "none"

    @property
    def draft_passes(self) -> int:
        """Passes that draft models have run."""
        return sum(draft_passes(drafter) for drafter in self.drafters)

    def begin(self) -> None:
        """Begin an answer, which has lost nothing yet."""
        self._output_tokens = 0
        self._lost_passes = 0.0  # in passes over one token

    def choose(
        self, context: Sequence[int], left: int, info: ModelInfo, sampling: Sampling
    ) -> Choice:
        """What to verify after ``context``, when at most ``left`` output tokens follow."""
        if info is not self._info:
            most = min(info.max_rows, max(info.pass_sizes, default=info.max_rows))
            self._info, self._padded = info, [info.padded(rows) for rows in range(most + 1)]
            self.costs.plain = self._padded[1]
        length, padded = len(context) - 1, self._padded
        nodes = min(len(padded) - 1, left) - 1  # the target adds a token of its own
        # Only a tree's first branch has the bits of a chain.
        width = CONSTANTS.width if info.trees and not info.pass_sizes else 1

        def pass_seconds(rows: int) -> float:
            return self.costs.seconds(padded[rows], length)

        plain_s = pass_seconds(1)
        best = Choice("none", EMPTY, 1.0, plain_s, plain_s)
        if self.costs.plain_is_stale:
            return best
        allowed = CONSTANTS.loss_passes + CONSTANTS.loss_share * self._output_tokens
        # Passed to drafters beforehand: a draft that was drawn may not be dropped for its expectation.
        best_so_far = (CONSTANTS.strong if self._lost_passes > allowed else 1.0), plain_s
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
        """Learn from a pass over ``size`` tokens, padding included, after ``length`` cached ones.

        ``draft_passes``: passes of draft models just before it.
        """
        if size > self.costs.plain or not draft_passes:
            self.costs.record(size, seconds, length)
        count = len(outcome.said)
        self._output_tokens += count
        if outcome.draft:  # by expected times: a single pass may have been held up
            plain_s = self.costs.seconds(self._padded[1], length)
            self._lost_passes += self.costs.seconds(size, length) / plain_s - count
        for drafter in self.drafters:
            drafter.observe(outcome)


def cut(draft: Draft, budget: Budget) -> tuple[Draft, float]:
    """The first γ tokens of ``draft`` with the most expected tokens per second, γ <= ``budget.nodes``;
    and the expected output tokens.

    Goodput (SmartSpec): (1 + Σ_i Π_{j on the path to i} a_j) / t(n), with the draft's confidences a and the time
    t(n) of a pass over n = γ + 1 tokens, padded as the runtime pads it. The first tokens of a tree are a tree, the
    likeliest of its size if it was grown best first. γ = 0 stands for the best draft so far. Tokens that only fill
    padding are free. A draft without confidences is not cut, except to ``nodes``.
    """
    draft = draft.first(budget.nodes)
    if draft.confidence is None:
        return draft, 1.0 + draft.expected
    plain_s = budget.pass_seconds(1)
    best, (best_tokens, best_s) = 0, budget.best_so_far or (1.0, plain_s)
    best_rate = best_tokens / best_s
    expected = 1.0
    path_chances: list[float] = []
    parents = draft.parents or range(-1, len(draft) - 1)
    for gamma, (confidence, parent) in enumerate(zip(draft.confidence, parents, strict=True), 1):
        path_chances.append(confidence * (path_chances[parent] if parent >= 0 else 1.0))
        expected += path_chances[-1]
        seconds = budget.pass_seconds(gamma + 1)
        rate = expected / (seconds if seconds == plain_s else seconds * CONSTANTS.margin)
        if rate > best_rate:
            best, best_tokens, best_rate = gamma, expected, rate
    return _branch_by_branch(draft.first(best)), best_tokens


def _branch_by_branch(draft: Draft) -> Draft:
    """The same tree with its tokens branch by branch, the likeliest first: that has a chain's row bits."""
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
