"""Chooses the drafter of the next pass and the length of its draft."""

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
    """The most time that drafts may lose in an answer, in passes over one token."""
    loss_share: float = 0.01
    """The further time that drafts may lose, in passes over one token per output token."""
    strong: float = 1.5
    """Expected tokens of a pass that a draft must exceed after more time was lost."""


CONSTANTS = SchedulerConstants()


@dataclass(frozen=True)
class Choice:
    """The scheduler's decision for a pass, with the expected result."""

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

    The scheduler asks ``drafters`` in turn, the cheapest first. Each gets the expectation of the best draft so far.
    A drafter that takes time to draft returns an empty draft unless it expects more. All drafters learn from all
    output tokens. From time to time the scheduler asks no drafter, to measure plain decoding again. A pass after a
    draft model's pass does not count for that: the draft model's threads keep cores busy for a while, and the
    machine would seem slow.

    The loss of an answer is bounded, because a few wrong drafts can make an answer slower than plain decoding where
    long passes are expensive. When drafts have lost more time than the bound, only strong drafts are verified.
    """

    def __init__(self, drafters: Sequence[Drafter], latency: LatencyModel | None = None) -> None:
        self.drafters = drafters
        self.latency = latency or LatencyModel()
        """The latency model of the target's passes."""
        self._info: ModelInfo | None = None
        self._padded: list[int] = []  # by rows of a pass
        self.begin()

    @property
    def name(self) -> str:
        """The names of its drafters."""
        return "+".join(drafter.name for drafter in self.drafters) or "none"

    @property
    def draft_passes(self) -> int:
        """The number of passes that draft models have run."""
        return sum(draft_passes(drafter) for drafter in self.drafters)

    def begin(self) -> None:
        """Begin an answer."""
        self._output_tokens = 0
        self._lost_passes = 0.0  # in passes over one token

    def choose(
        self, context: Sequence[int], left: int, info: ModelInfo, sampling: Sampling
    ) -> Choice:
        """Choose the draft to verify after ``context``; at most ``left`` output tokens follow."""
        if info is not self._info:
            most = min(info.max_rows, max(info.pass_sizes, default=info.max_rows))
            self._info, self._padded = info, [info.padded(rows) for rows in range(most + 1)]
            self.latency.plain = self._padded[1]
        length, padded = len(context) - 1, self._padded
        nodes = min(len(padded) - 1, left) - 1  # the target adds a token of its own
        # Only a tree's first branch has the bits of a chain.
        width = CONSTANTS.width if info.trees and not info.pass_sizes else 1

        def pass_seconds(rows: int) -> float:
            return self.latency.seconds(padded[rows], length)

        plain_s = pass_seconds(1)
        best = Choice("none", EMPTY, 1.0, plain_s, plain_s)
        if self.latency.plain_is_stale:
            return best
        allowed = CONSTANTS.loss_passes + CONSTANTS.loss_share * self._output_tokens
        # Drafters get it beforehand: the scheduler must not drop a drawn draft for its expectation.
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
        """Learn from a pass over ``size`` tokens (padding included) after ``length`` cached tokens.

        ``draft_passes``: the number of draft model passes just before it.
        """
        if size > self.latency.plain or not draft_passes:
            self.latency.record(size, seconds, length)
        count = len(outcome.tokens)
        self._output_tokens += count
        if outcome.draft:  # by expected times: a single measured time may be an outlier
            plain_s = self.latency.seconds(self._padded[1], length)
            self._lost_passes += self.latency.seconds(size, length) / plain_s - count
        for drafter in self.drafters:
            drafter.observe(outcome)


def cut(draft: Draft, budget: Budget) -> tuple[Draft, float]:
    """The first γ tokens of ``draft`` with the most expected tokens per second, γ <= ``budget.nodes``;
    and the expected output tokens.

    Goodput (SmartSpec): (1 + Σ_i Π_{j on the path to i} a_j) / t(n), with the draft's confidences a and the time
    t(n) of a pass over n = γ + 1 tokens, padded as the runtime pads it. The first tokens of a tree are a tree, the
    likeliest of its size if it was grown best first. γ = 0 means the best draft so far. Tokens in the place of
    padding are free. A draft without confidences is cut only to ``nodes``.
    """
    draft = draft.first(budget.nodes)
    if draft.confidence is None:
        return draft, 1.0 + draft.expected
    plain_s = budget.pass_seconds(1)
    best, (best_tokens, best_s) = 0, budget.best_so_far or (1.0, plain_s)
    best_rate = best_tokens / best_s
    expected = 1.0
    path_probabilities: list[float] = []
    parents = draft.parents or range(-1, len(draft) - 1)
    for gamma, (confidence, parent) in enumerate(zip(draft.confidence, parents, strict=True), 1):
        path_probabilities.append(confidence * (path_probabilities[parent] if parent >= 0 else 1.0))
        expected += path_probabilities[-1]
        seconds = budget.pass_seconds(gamma + 1)
        rate = expected / (seconds if seconds == plain_s else seconds * CONSTANTS.margin)
        if rate > best_rate:
            best, best_tokens, best_rate = gamma, expected, rate
    return _branch_by_branch(draft.first(best)), best_tokens


def _branch_by_branch(draft: Draft) -> Draft:
    """The same tree, ordered branch by branch, the likeliest first: its first branch has the row bits of a chain."""
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
