from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from edgespec.core.draft import Draft
from edgespec.core.drafter import Budget, Outcome
from edgespec.drafting.hierarchy import CONSTANTS, Hierarchy
from edgespec.drafting.recycling import Recycling
from edgespec.drafting.sources import Source
from edgespec.drafting.suffix import Suffix

NOTHING = np.empty((0, 0), dtype=np.float32)


def step(drafter: Hierarchy, context: list[int], output: list[int], nodes: int = 8) -> Draft:
    """Propose, observe ``output`` of the target, and extend the context by it."""
    draft = drafter.propose(context, Budget(nodes))
    drafter.observe(Outcome(draft, 0, output, NOTHING))
    context += output
    return draft


def test_copies_what_followed_the_longest_match() -> None:
    context = [1, 2, 3, 4, 5, 6, 9, 3, 7, 8, 0, 2, 3]
    assert Hierarchy([Suffix()]).propose(context, Budget(3)).tokens == [4, 5, 6]


def test_nothing_matches_nothing_drafted() -> None:
    for context in ([], [1], [1, 2, 3]):
        assert len(Hierarchy([Suffix()]).propose(context, Budget(4))) == 0
    assert len(Hierarchy([Suffix()]).propose([1, 1, 1], Budget(0))) == 0
    assert len(Hierarchy([]).propose([1, 1, 1], Budget(4))) == 0


def test_a_copy_that_reaches_the_end_goes_on_in_circles() -> None:
    assert Hierarchy([Suffix()]).propose([5, 1, 2, 1, 2, 1, 2], Budget(5)).tokens == [1, 2, 1, 2, 1]


def test_follows_a_growing_context_and_notices_another() -> None:
    drafter, context = Hierarchy([Suffix()]), [1, 2, 3]
    drafter.propose(context, Budget(2))
    context += [4, 1, 2]
    assert drafter.propose(context, Budget(2)).tokens == [3, 4]
    assert drafter.propose([7, 8, 7], Budget(2)).tokens == [8, 7]
    assert drafter.propose(context, Budget(1)).tokens == [3]


def test_confidence_grows_with_the_match() -> None:
    confidence = Hierarchy([Suffix()]).propose([1, 2, 3, 4, 5, 6, 1, 2], Budget(4)).confidence
    assert confidence is not None
    assert list(confidence) == sorted(confidence)
    assert confidence[0] == 2 / 5


def test_confidence_follows_the_output_tokens() -> None:
    for right in (True, False):
        drafter, rng = Hierarchy([Suffix()]), np.random.default_rng(0)
        context = [1, 2, 3, 4]
        first = step(drafter, context, [1]).confidence
        assert not first
        seen: list[float] = []
        for _ in range(200):
            draft = drafter.propose(context, Budget(1))
            output = draft.tokens[0] if right and len(draft) else int(rng.integers(5, 25))
            drafter.observe(Outcome(draft, 0, [output], NOTHING))
            context.append(output)
            seen += draft.confidence or []
        assert seen[-1] > 0.9 if right else seen[-1] < 0.3


def test_learns_from_what_was_not_offered() -> None:
    """Nothing is offered, the target keeps producing what would have been: confidence returns."""
    drafter = Hierarchy([Suffix()])
    context = [1, 2, 3, 4, 5] * 2
    before = drafter.propose(context, Budget(1)).confidence
    assert before is not None
    for i in range(30):
        step(drafter, context, [1 + i % 5], nodes=0)
    after = drafter.propose(context, Budget(1)).confidence
    assert after is not None
    assert after[0] > before[0]


def test_learning_stops_at_the_first_difference() -> None:
    drafter, context = Hierarchy([Suffix()]), [1, 2, 3, 4, 9, 5, 6, 7, 1]
    step(drafter, context, [2, 9])  # a match of 1 was right, one of 2 wrong
    confidence = drafter.propose(context, Budget(5)).confidence
    assert confidence is not None
    assert confidence[0] > 1 / 4
    assert confidence[1] < 2 / 5
    assert confidence[2:] == [3 / 6]  # and the path to a fifth token has hardly a chance


def test_estimates_begin_again_with_every_prompt() -> None:
    drafter, context = Hierarchy([Suffix()]), [1, 2, 3] * 3
    fresh = drafter.propose(context, Budget(3)).confidence
    for i in range(30):
        step(drafter, context, [1 + i % 3])
    learnt = drafter.propose(context, Budget(3)).confidence
    drafter.observe(Outcome(Draft(), 0, [1], NOTHING))
    context += [1, 2, 3]  # one output, two more by the user
    assert drafter.propose(context, Budget(3)).confidence == [16 / 19] * 3
    assert fresh is not None
    assert learnt is not None
    assert learnt[0] > max(fresh[0], 16 / 19)


# -- several sources, trees --------------------------------------------------------------------


class Table:
    """Knows what follows a token, each guess with its kind; ``priors`` are those of the kinds."""

    def __init__(
        self,
        followers: Mapping[int, Sequence[tuple[int, int]]],
        priors: Sequence[float] = (0.8, 0.6, 0.4),
        persistent: bool = True,
        name: str = "table",
    ) -> None:
        self.followers, self.priors, self.persistent, self.name = (
            followers,
            priors,
            persistent,
            name,
        )
        self.outcomes: list[Outcome] = []

    def start(self, context: Sequence[int]) -> int:
        return context[-1]

    def successors(self, place: int, count: int) -> Sequence[tuple[int, int]]:
        return self.followers.get(place, ())[:count]

    def advance(self, place: int, token: int) -> int:
        return token

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


TREE = {0: [(1, 0), (2, 1), (3, 2)], 1: [(4, 0), (5, 1)], 2: [(6, 0)], 4: [(7, 0)]}


def say(drafter: Hierarchy, context: list[int], output: list[int], budget: Budget) -> Draft:
    draft = drafter.propose(context, budget)
    drafter.observe(Outcome(draft, 0, output, NOTHING))
    context += output
    return draft


def first_rate(drafter: Hierarchy, context: list[int]) -> float:
    """What it thinks of the likeliest token; one that costs nothing, so that it is always offered."""
    confidence = drafter.propose(context, Budget(1, pass_seconds=lambda rows: 1.0)).confidence
    assert confidence is not None
    return confidence[0]


def paths(draft: Draft) -> list[float]:
    """The chance of the path to each token."""
    assert draft.confidence is not None
    found: list[float] = []
    parents = draft.parents or range(-1, len(draft) - 1)
    for parent, rate in zip(parents, draft.confidence, strict=True):
        found.append(rate * (found[parent] if parent >= 0 else 1.0))
    return found


def test_one_candidate_a_place_is_a_chain_of_the_likeliest() -> None:
    draft = Hierarchy([Table(TREE)]).propose([0], Budget(8, width=1))
    assert (draft.tokens, draft.parents, draft.confidence) == ([1, 4, 7], None, [0.8, 0.8, 0.8])


def test_several_branch_and_the_likeliest_paths_come_first() -> None:
    draft = Hierarchy([Table(TREE)]).propose([0], Budget(8, width=4))
    # 0.8, 0.64 below it, then 0.6 beside it, 0.512, and 0.48 twice, of which 5 was found first
    assert draft.tokens == [1, 4, 2, 7, 5, 6, 3]
    assert draft.parents == [-1, 0, -1, 1, 0, 2, -1]
    assert paths(draft) == sorted(paths(draft), reverse=True)
    narrow = Hierarchy([Table(TREE)]).propose([0], Budget(8, width=2))
    assert narrow.tokens == [1, 4, 2, 7, 5, 6]
    few = Hierarchy([Table(TREE)]).propose([0], Budget(3, width=4))
    assert (few.tokens, few.parents) == ([1, 4, 2], [-1, 0, -1])


def test_agreeing_sources_give_one_candidate_with_the_best_rate() -> None:
    one, two = Table({0: [(1, 1), (2, 2)]}), Table({0: [(2, 1), (1, 0)]})
    draft = Hierarchy([one, two]).propose([0], Budget(8, width=4))
    assert (draft.tokens, draft.confidence) == ([1, 2], [0.8, 0.6])


def test_a_token_of_one_source_is_followed_by_what_another_knows() -> None:
    draft = Hierarchy([Table({0: [(1, 0)]}), Table({1: [(2, 0)]})]).propose([0], Budget(8))
    assert draft.tokens == [1, 2]


def test_the_rate_of_agreement_is_learnt() -> None:
    """Each source is right half of the time, but always where they agree: about 0.5 for either alone."""
    random = np.random.default_rng(0)
    one, two = Table({}, [0.5]), Table({}, [0.5])
    drafter, context = Hierarchy([one, two]), [0]
    for _ in range(300):
        truth, other = random.permutation(20)[:2].tolist()
        agree = random.random() < 0.5
        one.followers = {context[-1]: [(truth if agree else other, 0)]}
        two.followers = {context[-1]: [(truth if agree else 20, 0)]}
        say(drafter, context, [truth], Budget(1))
    one.followers = two.followers = {context[-1]: [(1, 0)]}
    assert first_rate(drafter, context) > 0.85
    two.followers = {}
    assert 0.3 < first_rate(drafter, context) < 0.7


def test_estimates_of_persistent_sources_outlast_a_prompt_and_others_do_not() -> None:
    rates = {}
    for persistent in (True, False):
        drafter, context = Hierarchy([Table({0: [(1, 0)]}, [0.5], persistent)]), [0]
        for _ in range(50):
            say(drafter, context, [0], Budget(1))
        learnt = first_rate(drafter, context)
        context += [5, 0]  # by the user
        rates[persistent] = learnt, first_rate(drafter, context)
    assert 0 < rates[True][0] < rates[True][1] < 0.1  # trust alone begins again
    assert rates[False][0] < 0.2
    assert rates[False][1] == 0.5


def test_recent_wrong_guesses_cost_trust_in_every_kind_until_the_next_prompt() -> None:
    source = Table({0: [(1, 0)], 2: [(3, 1)]}, [0.5, 0.5], persistent=True)
    drafter, context = Hierarchy([source]), [0]
    for _ in range(10):
        say(drafter, context, [0], Budget(1))
    say(drafter, context, [2], Budget(1))
    assert first_rate(drafter, context) < 0.45  # another kind of guess, which was never verified
    context += [2]  # by the user
    assert first_rate(drafter, context) == 0.5


def test_agreement_with_a_source_that_does_not_persist_is_forgotten() -> None:
    drafter = Hierarchy(
        [Table({0: [(1, 0)]}, [0.5]), Table({0: [(1, 0)]}, [0.7], persistent=False)]
    )
    context = [0]
    for _ in range(50):
        say(drafter, context, [0], Budget(1))
    assert first_rate(drafter, context) < 0.2
    context += [5, 0]
    assert first_rate(drafter, context) == 0.7


def test_looks_and_learns_though_nothing_may_be_offered() -> None:
    table = Table({0: [(1, 0)]}, [0.5])
    drafter, context = Hierarchy([table]), [0]
    for _ in range(30):
        assert not say(drafter, context, [0], Budget(0))
    assert len(table.outcomes) == 30
    assert first_rate(drafter, context) < 0.1


def test_learns_from_candidates_that_were_not_drafted_or_cut_off() -> None:
    """Of two candidates a chain has one; the scheduler cuts that off, too."""
    drafter, context = Hierarchy([Table({0: [(1, 0), (2, 1)], 2: [(0, 2)]}, [0.5, 0.4, 0.3])]), [0]
    for _ in range(20):
        drafter.propose(context, Budget(8))
        drafter.observe(Outcome(Draft(), 0, [2, 0], NOTHING))
        context += [2, 0]
    draft = drafter.propose(context, Budget(1))
    assert draft.tokens == [2]
    assert first_rate(drafter, context) > 0.8


@pytest.mark.parametrize("width", [1, 4])
def test_padding_is_filled_even_with_unlikely_guesses(width: int) -> None:
    unlikely = Table({i: [(i + 1, 0)] for i in range(50)}, [0.04])
    drafter = Hierarchy([unlikely])
    assert CONSTANTS.negligible > 0.04
    assert not drafter.propose([0], Budget(8, width))
    flat = Budget(8, width, pass_seconds=lambda rows: 1.0)
    assert len(drafter.propose([0], flat)) == 8
    padded = Budget(8, width, pass_seconds=lambda rows: 1.0 if rows <= 4 else 2.0)
    assert drafter.propose([0], padded).tokens == [1, 2, 3]
    likely = Hierarchy([Table({i: [(i + 1, 0)] for i in range(50)}, [0.5])])
    assert len(likely.propose([0], Budget(20, width))) == 4  # 0.5 ** 5 < 0.05


def test_an_error_of_a_source_is_raised() -> None:
    class Broken(Table):
        def successors(self, place: int, count: int) -> Sequence[tuple[int, int]]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Hierarchy([Table(TREE), Broken(TREE)]).propose([0], Budget(2))


def test_the_name_and_every_source_observes_every_outcome() -> None:
    sources = [Table(TREE, name="one"), Table(TREE, name="two")]
    drafter = Hierarchy(sources)
    assert (drafter.name, Hierarchy([]).name) == ("one+two", "none")
    say(drafter, [0], [1, 4, 9], Budget(8, width=4))
    assert [[list(o.tokens) for o in source.outcomes] for source in sources] == [[[1, 4, 9]]] * 2


@pytest.mark.parametrize("seed", range(12))
def test_any_sources_and_any_tokens(seed: int) -> None:
    """Random tables, prompt lookup and recycling beside them; right tokens half of the time."""
    random = np.random.default_rng(seed)
    vocab = int(random.integers(2, 12))

    def table() -> Table:
        kinds = int(random.integers(1, 6))
        priors = random.random(kinds).tolist()
        return Table(
            {
                token: [
                    (guess, int(random.integers(kinds)))
                    for guess in random.permutation(vocab)[: random.integers(vocab + 1)].tolist()
                ]
                for token in range(vocab)
            },
            priors,
            persistent=bool(random.integers(2)),
        )

    sources: list[Source] = [
        Suffix(),
        Recycling(vocab),
        *(table() for _ in range(random.integers(4))),
    ]
    drafter = Hierarchy(sources)
    context = [0]
    branched = 0
    for _ in range(150):
        nodes, width = int(random.integers(0, 16)), int(random.integers(1, 5))
        cost = float(random.choice([0.0, 0.1, 1.0]))
        budget = Budget(nodes, width, pass_seconds=lambda rows, cost=cost: 1 + cost * rows)
        draft = drafter.propose(context, budget)
        assert len(draft) <= nodes
        assert set(draft.tokens) <= set(range(vocab))
        assert draft.confidence is not None
        assert all(0 <= rate <= 1 for rate in draft.confidence)
        assert paths(draft) == sorted(paths(draft), reverse=True)
        if width == 1:
            assert draft.parents is None
        else:
            assert all(-1 <= parent < i for i, parent in enumerate(draft.parents or ()))
        for siblings in draft.children():
            tokens = [draft.tokens[i] for i in siblings]
            assert len(set(tokens)) == len(tokens) <= width
            branched += len(tokens) > 1
        output, row = list[int](), 0
        while len(output) < 6:
            following = draft.children()[row]
            if not following or random.random() < 0.5:
                break
            row = 1 + int(random.choice(following))
            output.append(draft.tokens[row - 1])
        accepted = len(output)
        output.append(int(random.integers(vocab)))
        logits = random.standard_normal((1 + len(draft), vocab)).astype(np.float32)
        drafter.observe(Outcome(draft, accepted, output, logits))
        context += output
        if random.random() < 0.05:
            context.append(int(random.integers(vocab)))  # a prompt
    assert branched > 20
