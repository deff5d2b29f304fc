"""A draft model with another tokenizer drafts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgespec.core.decoding import Step, decode
from edgespec.core.draft import Draft
from edgespec.core.drafter import Budget, Drafter, Outcome
from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Scheduler
from edgespec.drafting.cross_vocabulary import CrossVocabulary
from edgespec.drafting.logit_columns import LogitColumns
from edgespec.drafting.model import ModelDrafter
from edgespec.engine import Engine
from edgespec.models import store
from edgespec.models.catalogue import load_catalogue
from edgespec.models.tokenizer import Tokenizer
from tests.conftest import TEST_MODELS
from tests.core.acceptance.distributions import assert_caught, check
from tests.drafting.test_cross_vocabulary import (
    NORMAL,
    OURS,
    TEXT,
    THEIRS,
    UNUSED,
    names,
    tokenizer,
)
from tests.drafting.test_model import CHEAP, FLAT, Fixed
from tests.memory_runtime import CertainDrafter, MemoryRuntime
from tests.tiny import tiny_gguf


class Reciter(MemoryRuntime):
    """Knows a text by heart, in the tokens of its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        super().__init__(tokenizer.vocab_size, order=10_000, pass_sizes=())
        self.tokenizer, self.text = tokenizer, text.encode()

    def logits_after(self, rows: Sequence[tuple[int, int]]) -> FloatArray:
        output = b"".join(
            self.tokenizer.token_bytes(token)
            for token, _ in rows
            if token not in self.tokenizer.special_ids
        )
        logits = np.zeros(self.info.vocab_size, np.float32)
        rest = self.text[len(output) :] if self.text.startswith(output) else b""
        following = self.tokenizer.encode(rest.decode(errors="ignore"))
        logits[following[0] if following else self.tokenizer.eos or 0] = 12.0
        return logits


class InStep(ModelDrafter):
    """Checks after every draft that the cache holds the context, in the draft's tokens."""

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        before = self.passes
        draft = super().propose(context, budget)
        if self.passes > before:
            own, _, _ = self.vocabulary.read(context)
            cached: list[int] = self.runtime.tokens  # type: ignore[attr-defined]
            assert cached == self.follower._cached
            assert cached[: len(own)] == own
        return draft


def say(
    target: MemoryRuntime,
    drafter: Drafter,
    context: list[int],
    max_tokens: int = 60,
    sampling: Sampling | None = None,
) -> tuple[list[int], list[Step]]:
    before = len(context)
    steps = list(
        decode(
            target, Scheduler([drafter], FLAT), context, max_tokens=max_tokens, sampling=sampling
        )
    )
    return context[before:], steps


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.5, seed=1)])
def test_one_that_knows_the_text_is_accepted(sampling: Sampling) -> None:
    text = TEXT + " naïve café 👍🏽."
    target, draft = Reciter(OURS, text), Reciter(THEIRS, text)
    vocabulary = CrossVocabulary(OURS, THEIRS)
    drafter = InStep(draft, OURS.vocab_size, CHEAP, vocabulary=vocabulary, cascade=True)
    context = OURS.encode("hello")
    output, steps = say(target, drafter, context, 50, sampling)
    assert OURS.decode(output).startswith(text[5:60])
    drafted, accepted = sum(s.drafted for s in steps), sum(s.accepted for s in steps)
    if sampling.greedy:  # what both have is not all of the text: of these alone fewer are right
        assert accepted > 0.85 * drafted
        assert len(output) > 4 * len(steps)
    else:
        assert accepted > 20


A_TO_E = tokenizer(
    ["a", "b", "c", "d", "e", "ab", "ba", "abc", "bab", "cd", "dd", "eab"],
    ["a b", "b a", "ab c", "b ab", "c d", "d d", "e ab"],
)
HOSTILE = {
    "another": tokenizer(
        ["e", "d", "c", "b", "a", "bc", "de", "ab", "cab"], ["b c", "d e", "a b", "c ab"]
    ),
    "the same in another order": tokenizer(["e", "d", "c", "b", "a"]),
    "no token in common": tokenizer(["x", "y", "z", "xy"], ["x y"]),
    "empty": tokenizer(["", "", "a", ""], kinds=[UNUSED, UNUSED, NORMAL, UNUSED]),
    "twice": tokenizer(["a", "a", "b", "b", "ab", "ab", "a"]),
    "huge": tokenizer(["a", "abc" * 5_000, "cde", "b" * 3000]),
    "half characters": tokenizer(["Ã", "©", "a", "b", "ð", "Ł"]),
    "all control": tokenizer(["a"], controls=["b", "c", "<e>", "<f>"]),
    "an end of its own": tokenizer(["a", "b", "c", "d"], controls=["<e>", "b"], eos_token_id=4),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_no_draft_changes_the_answer(name: str, penalty: float, temperature: float) -> None:
    """Sampled output depends on what was drafted; it must still be output."""
    sampling = Sampling(temperature, repetition_penalty=penalty, seed=0)
    theirs = HOSTILE[name]
    for seed in range(2):
        targets = [
            MemoryRuntime(12, order=3, scale=1.0, seed=seed, pass_sizes=(), mute=[0] * (seed % 2))
            for _ in range(2)
        ]
        plain, _ = say(targets[0], CertainDrafter([]), [0, 1, 2], 120, sampling)
        draft = MemoryRuntime(theirs.vocab_size + seed, scale=1.0, seed=seed + 9, pass_sizes=())
        drafter = InStep(
            draft,
            12,
            CHEAP,
            readable=theirs.vocab_size,
            vocabulary=CrossVocabulary(A_TO_E, theirs),
            cascade=True,
        )
        output, steps = say(targets[1], drafter, [0, 1, 2], 120, sampling)
        assert len(output) == 120
        if sampling.greedy:
            assert output == plain
        if name == "another":
            assert sum(s.drafted for s in steps) > 10


# Of the five tokens with the distribution under test.
FIVE = tokenizer(["a", "b", "c", "ab", "ca"], ["a b", "c a"])
DRAFTS = {
    "of the same": tokenizer(["c", "b", "a", "ab", "bc"], ["a b", "b c"]),
    "that it has twice": tokenizer(["b", "a", "a", "b", "ab", "a"], ["a b"]),
    "of few": tokenizer(["b", "c", "a", "x", "y", "z", "v", "w"]),
}


def drafter_for(target: MemoryRuntime, theirs: Tokenizer) -> ModelDrafter:
    runtime = MemoryRuntime(theirs.vocab_size, order=2, scale=1.5, seed=6, pass_sizes=())
    vocabulary = CrossVocabulary(FIVE, theirs)
    return ModelDrafter(
        runtime, 5, Fixed(0.02), readable=theirs.vocab_size, vocabulary=vocabulary, cascade=True
    )


@pytest.mark.parametrize("name", DRAFTS)
def test_what_is_sampled_is_distributed_as_the_targets(name: str) -> None:
    accepted = check(lambda target: drafter_for(target, DRAFTS[name]))
    assert accepted > (50 if name == "of few" else 1000)
    few = drafter_for(MemoryRuntime(5), DRAFTS[name])._select_columns(sampled=True).targets is None
    assert few == (name == "of few")


def test_a_distribution_of_all_that_the_draft_might_say_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the drafter avoids: to draw from two tokens that are one of the target's, and tell of one."""
    theirs = DRAFTS["that it has twice"]

    def make(target: MemoryRuntime) -> Drafter:
        drafter = drafter_for(target, theirs)
        columns = drafter._select_columns(sampled=True)
        ids = np.flatnonzero(drafter.vocabulary.shared >= 0)
        shared = drafter.vocabulary.shared[ids]
        drafter._columns[True] = LogitColumns(ids, ids, shared, columns.column_of)
        return drafter

    assert_caught(make)


def test_a_budget_is_kept_however_many_tokens_a_text_becomes() -> None:
    theirs = tokenizer(["abcdabcd", "a", "b", "c", "d"])
    vocabulary = CrossVocabulary(A_TO_E, theirs)
    for nodes in range(6):
        runtime = MemoryRuntime(5, seed=2, pass_sizes=())
        runtime.logits_after = lambda rows: np.array([9, 0, 0, 0, 0], np.float32)  # type: ignore[method-assign]
        drafter = ModelDrafter(runtime, 12, CHEAP, vocabulary=vocabulary)
        draft = drafter.propose([0, 1], Budget(nodes, pass_seconds=FLAT.seconds))
        assert len(draft) == nodes
        assert [A_TO_E.token_text(t) for t in draft.tokens] == ["abc", "d", "abc", "d"][:nodes] + (
            ["abc"] if nodes == 5 else []
        )


def test_a_model_with_another_tokenizer_drafts(tmp_path: Path, smollm2: Path) -> None:
    """Tiny models have bytes and a few words as tokens, and their output is no text."""
    path = tiny_gguf(tmp_path / "a.gguf")
    with Engine.open(path, draft="none") as engine:
        plain = engine.generate("the world is", max_tokens=30, chat=False).token_ids
    with Engine.open(path, draft=str(smollm2)) as engine:
        scheduler = engine.scheduler
        drafter = scheduler.drafters[-1]
        assert isinstance(drafter, ModelDrafter)
        assert not drafter.vocabulary.same
        scheduler.latency, drafter.follower.costs = Fixed(1.0), Fixed(0.01)
        found = engine.generate("the world is", max_tokens=30, chat=False)
        sampled = engine.generate("the world is", max_tokens=20, chat=False, temperature=1.0)
    assert found.token_ids == plain
    assert found.statistics.drafted > 0
    assert sampled.statistics.drafted > 0


@pytest.mark.slow
def test_smollm2_drafts_for_qwen(smollm2: Path) -> None:
    target = store.pull(load_catalogue()["qwen2.5-coder-1.5b-instruct"], directory=TEST_MODELS)
    prompts = ["Write a function that merges two sorted lists.", "Beschreibe Köln, mit Emojis."]

    def generate(draft: str) -> tuple[list[list[int]], float]:
        with Engine.open(target, draft=draft, context=512) as engine:
            if draft != "none":
                scheduler = engine.scheduler
                drafter = scheduler.drafters[-1]
                assert isinstance(drafter, ModelDrafter)
                scheduler.latency, drafter.follower.costs = Fixed(1.0), Fixed(0.1)
            found = [engine.generate(prompt, max_tokens=60) for prompt in prompts]
            return [f.token_ids for f in found], found[0].statistics.block_efficiency

    plain, _ = generate("none")
    drafted, block_efficiency = generate(str(smollm2))
    assert drafted == plain
    assert block_efficiency > 1.5


def test_a_word_that_becomes_another_by_what_follows_is_evaluated_again() -> None:
    """The draft held "c", "a"; now it is "cab", "d", as many."""
    theirs = HOSTILE["another"]
    draft = MemoryRuntime(theirs.vocab_size, pass_sizes=())
    vocabulary = CrossVocabulary(A_TO_E, theirs)
    drafter, context = InStep(draft, 12, CHEAP, vocabulary=vocabulary), [2, 0]
    for _ in range(2):
        guess = drafter.propose(context, Budget(3, pass_seconds=FLAT.seconds))
    assert names(theirs, draft.tokens[:2]) == ["c", "a"]
    drafter.observe(Outcome(guess, 0, [1, 3], np.zeros((1 + len(guess), 12), np.float32)))
    context += [1, 3]
    drafter.propose(context, Budget(3, pass_seconds=FLAT.seconds))
    assert names(theirs, draft.tokens[:2]) == ["cab", "d"]
