"""Who drafts and how much: the most expected tokens per second, and a change is noticed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgespec.core.decoding import decode
from edgespec.core.draft import EMPTY, Draft
from edgespec.core.drafter import Budget, Drafter, Outcome
from edgespec.core.latency import LatencyCurve, LatencyModel
from edgespec.core.runtime import FloatArray, Logits, ModelInfo
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Scheduler, cut
from edgespec.drafting.hierarchy import Hierarchy
from edgespec.drafting.model import ModelDrafter
from edgespec.drafting.suffix import Suffix
from edgespec.simulation.simulate import Clock, Guesses, Replay, ReplayDraft

ROWS = tuple(range(1, 17))
VOCABULARY = 30


def curve(seconds: Callable[[int], float]) -> LatencyCurve:
    return LatencyCurve(ROWS, (0,), (tuple(seconds(n) for n in ROWS),), ((0.0,) * len(ROWS),))


STEEP, FLAT = curve(lambda n: 0.01 * n), curve(lambda n: 0.01)
USUAL = curve(lambda n: 0.01 * (1 + 0.1 * (n - 1)))


def info(*pass_sizes: int) -> ModelInfo:
    return ModelInfo("m", "a", VOCABULARY, 1, 10_000, 1, "cpu", "memory", pass_sizes)


def gamma(confidence: list[float], curve: LatencyCurve, *pass_sizes: int, nodes: int = 8) -> int:
    costs, padded = LatencyModel(curve), info(*pass_sizes).padded
    budget = Budget(nodes, pass_seconds=lambda rows: costs.seconds(padded(rows)))
    return len(cut(Draft(list(range(len(confidence))), confidence=confidence), budget)[0])


def test_steep_passes_are_never_made_longer_and_flat_ones_always() -> None:
    assert gamma([0.99] * 8, STEEP) == 0
    assert gamma([0.5] * 8, FLAT) == 8
    assert gamma([0.04] * 8, FLAT) == 8


def test_the_length_maximises_tokens_per_second() -> None:
    costs = curve(lambda n: 0.01 * (1 + 0.2 * (n - 1)))
    assert gamma([0.1] * 8, costs) == 0
    assert gamma([0.9, 0.9, 0.1, 0.9], costs) == 2
    assert gamma([0.9] * 8, costs) == 7  # 5.70 / 2.4 against 6.13 / 2.6 for eight


def test_tokens_that_only_fill_padding_are_free() -> None:
    assert gamma([0.01] * 8, STEEP, 2, 4, 8) == 1
    assert gamma([0.01] * 8, STEEP, 4, 8) == 3


def test_never_more_than_the_nodes_and_no_estimate_means_no_cut() -> None:
    assert gamma([1.0] * 8, FLAT, nodes=3) == 3
    assert gamma([1.0] * 8, FLAT, nodes=0) == 0
    steep = Budget(8, pass_seconds=float)
    assert len(cut(Draft([1, 2, 3]), steep)[0]) == 3
    assert len(cut(Draft([1, 2, 3]), Budget(2, pass_seconds=float))[0]) == 2


def test_a_tree_keeps_its_likeliest_tokens_branch_by_branch() -> None:
    tree = Draft([1, 2, 3, 4, 5], [-1, -1, 0, 1, 0], confidence=[0.6, 0.3, 0.5, 0.9, 0.4])
    flat = Budget(8, pass_seconds=lambda rows: 1.0)
    kept, expected = cut(tree, flat)
    assert (kept.tokens, kept.parents) == ([1, 3, 5, 2, 4], [-1, 0, 0, -1, 3])
    assert kept.confidence == [0.6, 0.5, 0.4, 0.3, 0.9]
    assert expected == pytest.approx(1 + 0.6 + 0.3 + 0.6 * 0.5 + 0.3 * 0.9 + 0.6 * 0.4)
    # a further token costs a fifth of a pass: the first two branch, and one follows the first
    kept, expected = cut(tree, Budget(8, pass_seconds=lambda rows: 1 + 0.2 * (rows - 1)))
    assert (kept.tokens, kept.parents) == ([1, 3, 2], [-1, 0, -1])
    assert expected == pytest.approx(1 + 0.6 + 0.3 + 0.3)
    kept, _ = cut(tree, Budget(1, pass_seconds=lambda rows: 1.0))
    assert (kept.tokens, kept.parents) == ([1], None)


class Offers:
    """Offers the same tokens with the same confidence, and records the drafts of all outcomes."""

    def __init__(self, name: str, tokens: Sequence[int], confidence: float) -> None:
        self.name, self.tokens, self.confidence = name, tokens, confidence
        self.budgets: list[Budget] = []
        self.drafts: list[Draft] = []

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        self.budgets.append(budget)
        tokens = self.tokens[: budget.nodes]
        return Draft(tokens, confidence=[self.confidence] * len(tokens)) if tokens else EMPTY

    def observe(self, outcome: Outcome) -> None:
        self.drafts.append(outcome.draft)


def test_the_drafter_with_the_most_expected_tokens_per_second_drafts_and_all_of_them_learn() -> (
    None
):
    drafters = [
        Offers("poor", [1, 2], 0.5),
        Offers("good", [3, 4], 0.9),
        Offers("fair", [5, 6], 0.8),
    ]
    scheduler = Scheduler(drafters, LatencyModel(USUAL))
    choice = scheduler.choose([1, 2, 3], 50, info(), Sampling())
    assert (choice.drafter, choice.draft.tokens) == ("good", [3, 4])
    assert choice.tokens == pytest.approx(1 + 0.9 + 0.81)
    assert choice.pass_s == pytest.approx(0.012)
    assert choice.plain_s == pytest.approx(0.01)
    assert [drafter.budgets[0].best_so_far for drafter in drafters] == [
        (1.0, pytest.approx(0.01)),
        (pytest.approx(1.75), pytest.approx(0.012)),
        (pytest.approx(2.71), pytest.approx(0.012)),
    ]
    scheduler.learn(Outcome(choice.draft, 1, [3, 9], np.zeros((3, 30), np.float32)), 3, 0.01, 2)
    assert all(drafter.drafts == [choice.draft] for drafter in drafters)
    assert scheduler.name == "poor+good+fair"


@pytest.mark.parametrize("confidence", [0.7, 0.95])
def test_an_answer_loses_little_to_drafts_that_are_never_right(confidence: float) -> None:
    """Two tokens of 0.7 give an expected 1.15 times plain decoding's rate, four of 0.95 1.8 times."""
    slow = curve(lambda n: 0.01 if n == 1 else 0.01 + 0.003 * n)
    scheduler = Scheduler([wrong := Offers("wrong", [1] * 4, confidence)], LatencyModel(slow))
    for _ in range(2):  # another answer may lose as much
        wrong.drafts.clear()
        target = Replay([2] * 200, slow, clock := Clock(), info())
        steps = list(decode(target, scheduler, [2, 2], max_tokens=150, clock=clock))
        assert [step.tokens for step in steps] == [[2]] * 150
        drafted = sum(map(bool, wrong.drafts))
        if confidence > 0.9:
            assert drafted > 100
        else:  # 2 passes and 1.5 may be lost, and each of them loses 0.9
            assert 2 <= drafted <= 4


class Draws:
    """Draws a token, likely to be accepted or not, and offers it whatever it was."""

    name = "draws"

    def __init__(self) -> None:
        self.budgets: list[Budget] = []

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        self.budgets.append(budget)
        token = len(self.budgets) % 2
        row = np.zeros((1, VOCABULARY), np.float32)
        row[0, :2] = 0.5
        return Draft([token], probabilities=row, expected=0.9 if token else 0.01)

    def observe(self, outcome: Outcome) -> None:
        pass


def test_after_a_large_loss_drafts_must_expect_more_and_nothing_drawn_is_dropped() -> None:
    """Dropping what was drawn, for being an unlikely token, would change the distribution of the output."""
    scheduler = Scheduler([draws := Draws()], LatencyModel(USUAL))
    chosen = [scheduler.choose([1, 2], 50, info(), Sampling(1.0)) for _ in range(2)]
    for _ in range(3):
        wrong = Outcome(Draft([5] * 8), 0, [2], np.zeros((9, VOCABULARY), np.float32))
        scheduler.learn(wrong, 9, 0.018, 2)
    chosen += [scheduler.choose([1, 2], 50, info(), Sampling(1.0)) for _ in range(2)]
    assert [list(choice.draft.tokens) for choice in chosen] == [[1], [0], [1], [0]]
    assert [budget.best_so_far and budget.best_so_far[0] for budget in draws.budgets] == [
        1,
        1,
        1.5,
        1.5,
    ]


def test_no_draft_where_it_does_not_pay_nor_for_the_last_token() -> None:
    scheduler = Scheduler([Offers("good", [3, 4], 0.9)], LatencyModel(STEEP))
    assert scheduler.choose([1], 50, info(), Sampling()).drafter == "none"
    scheduler = Scheduler([Offers("good", [3, 4], 0.9)], LatencyModel(FLAT))
    assert scheduler.choose([1], 1, info(), Sampling()).draft == EMPTY
    assert len(scheduler.choose([1], 2, info(), Sampling()).draft) == 1


# -- changes in mid-answer, on a clock that passes alone move ----------------------------------


def song(rng: np.random.Generator, count: int, agreement: float) -> list[int]:
    """0, 1, 2, 3, 4, 0, … of which ``agreement`` goes on as it did; the rest jumps elsewhere."""
    tokens = [0]
    while len(tokens) < count:
        goes_on = rng.random() < agreement
        tokens.append((tokens[-1] + 1) % 5 if goes_on else int(rng.integers(5, VOCABULARY)))
    return tokens


def drafted(
    tokens: list[int], make: Callable[[Clock], Drafter], curves: Sequence[tuple[int, LatencyCurve]]
) -> list[int]:
    """Tokens drafted by each pass; from pass ``curves[i][0]`` on, passes take the times of its curve."""
    clock = Clock()
    target = Replay(tokens, curves[0][1], clock, info())
    steps = decode(
        target,
        Scheduler([make(clock)], LatencyModel(curves[0][1])),
        tokens[:60],
        max_tokens=len(tokens) - 60,
        clock=clock,
    )
    out: list[int] = []
    for step in steps:
        out.append(step.drafted)
        target.curve = [now for start, now in curves if start <= len(out)][-1]
    return out


def suffix(clock: Clock) -> Drafter:
    return Hierarchy([Suffix()])


def model(tokens: list[int], top: float, pass_s: float = 0.001) -> Callable[[Clock], ModelDrafter]:
    """Guesses that the song goes on, always as sure as ``top``."""
    guesses = [(token + 1) % 5 for token in [0, *tokens[:-1]]]

    def make(clock: Clock) -> ModelDrafter:
        cost = curve(lambda n: pass_s * (1 + 0.2 * (n - 1)))
        draft = ReplayDraft(tokens, cost, clock, info())
        draft.guesses = Guesses(guesses, [top] * len(guesses))
        return ModelDrafter(draft, VOCABULARY, LatencyModel(cost), clock=clock)

    return make


@pytest.mark.parametrize("drafter", ["suffix", "model"])
def test_slower_passes_change_the_choice_within_twenty_and_faster_ones_change_it_back(
    drafter: str,
) -> None:
    agreement = 0.5
    slow = curve(lambda n: 0.01 if n == 1 else 0.015 * (1 + 0.1 * (n - 1)))
    found = []
    for seed in range(4):
        tokens = song(np.random.default_rng(seed), 3000, agreement)
        make = suffix if drafter == "suffix" else model(tokens, agreement)
        found.append(drafted(tokens, make, [(0, USUAL), (200, slow), (400, USUAL)])[:900])
    drafts = np.array(found) > 0
    assert drafts[:, 100:200].mean() > 0.3
    assert drafts[:, 220:400].mean() < (0.15 if drafter == "suffix" else 0.2)
    assert drafts[:, 500:].mean() > 0.3


@pytest.mark.parametrize(("seed", "agreement"), [(0, 0.7), (1, 0.5)])
def test_a_draft_model_that_slows_the_target_down_does_not_look_like_a_slow_machine(
    seed: int, agreement: float
) -> None:
    """Its threads hold cores after its passes: with them drafting loses, and plain decoding does not."""
    tokens = song(np.random.default_rng(seed), 2000, agreement)

    class Disturbed(Replay):
        """Passes after the draft model's take 1.6 times as long."""

        seen = 0

        def forward(
            self,
            tokens: Sequence[int],
            parents: Sequence[int] | None = None,
            *,
            logits: Logits = "all",
        ) -> FloatArray:
            before = clock.now
            rows = super().forward(tokens, parents, logits=logits)
            if drafter.passes > self.seen:
                self.seen = drafter.passes
                clock.now += 0.6 * (clock.now - before)
            return rows

    clock = Clock()
    drafter = model(tokens, agreement, pass_s=0.003)(clock)
    target = Disturbed(tokens, USUAL, clock, info())
    scheduler = Scheduler([drafter], LatencyModel(USUAL))
    steps = decode(target, scheduler, tokens[:60], max_tokens=1900, clock=clock)
    output = sum(len(step.tokens) for step in steps)
    assert clock.now < 1.1 * 0.01 * output


@pytest.mark.parametrize("drafter", ["suffix", "model"])
def test_acceptance_that_falls_changes_the_choice_within_twenty_passes(drafter: str) -> None:
    after = []
    for seed in range(1, 5):
        rng = np.random.default_rng(seed)
        tokens = song(rng, 1500, 0.9)
        good = len(tokens)
        tokens += song(rng, 1500, 0.1)
        make = suffix if drafter == "suffix" else model(tokens, 0.9)
        clock, steps = Clock(), []
        target = Replay(tokens, USUAL, clock, info())
        scheduler, context = Scheduler([make(clock)], LatencyModel(USUAL)), tokens[:60]
        for step in decode(target, scheduler, context, max_tokens=2900, clock=clock):
            steps.append((len(context), step.drafted))
        before = [drafted for length, drafted in steps if length < good]
        assert np.mean(before[-100:]) > 3
        after.append([drafted for length, drafted in steps if length >= good][20:120])
    assert np.mean(after) < (0.8 if drafter == "suffix" else 0.9)
