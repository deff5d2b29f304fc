"""A draft model with another tokenizer: what it reads, what its text becomes, and that nothing changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgespec.core.decoding import Step, decode
from edgespec.core.draft import Draft
from edgespec.core.drafter import Budget, Drafter, Outcome
from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Scheduler
from edgespec.drafting import cross_vocabulary as module
from edgespec.drafting.cross_vocabulary import CrossVocabulary, between
from edgespec.drafting.logit_columns import LogitColumns
from edgespec.drafting.model import ModelDrafter
from edgespec.engine import Engine
from edgespec.models import store
from edgespec.models.catalogue import load_catalogue
from edgespec.models.tokenizer import Tokenizer
from tests.conftest import TEST_MODELS
from tests.core.acceptance.distributions import assert_caught, check
from tests.drafting.test_model import CHEAP, FLAT, Fixed
from tests.memory_runtime import CertainDrafter, MemoryRuntime
from tests.models.corpus import CORPUS, INVALID, random_texts
from tests.models.test_tokenizer import FakeFile
from tests.tiny import MERGES, _byte_characters, tiny_gguf

NORMAL, CONTROL, BYTE, UNUSED = 1, 3, 6, 5


def tokenizer(
    tokens: Sequence[str],
    merges: Sequence[str] = (),
    controls: Sequence[str] = (),
    kinds: Sequence[int] | None = None,
    **roles: object,
) -> Tokenizer:
    """A byte-level BPE."""
    every = [*tokens, *controls]
    kinds = [*(kinds or [NORMAL] * len(tokens)), *[CONTROL] * len(controls)]
    file = FakeFile(
        model="gpt2", pre="qwen2", tokens=every, token_type=kinds, merges=list(merges), **roles
    )
    return Tokenizer.from_gguf(file)  # type: ignore[arg-type]


def whole(merges: Sequence[str], controls: Sequence[str], **roles: object) -> Tokenizer:
    """One with a token for every byte, the last byte first."""
    tokens = [*_byte_characters()[::-1], *(merge.replace(" ", "") for merge in merges)]
    return tokenizer(tokens, merges, controls, **roles)


OURS = whole(
    [*MERGES.replace("\n", "|").split("|"), ". Ċ", ".Ċ Ċ"],
    ["<s>", "<|end|>", "<|user|>", "<stop>"],
    eos_token_id=256 + len(MERGES.replace("\n", "|").split("|")) + 3,
)
THEIRS = whole(
    [
        "t h",
        "th e",
        "Ġ the",
        "i n",
        "in g",
        "l l",
        "e ll",
        "h ell",
        "o r",
        "w or",
        "Ġ w",
        "Ġw or",
        "Ċ Ċ",
        "Ġ Ġ",
        "Ã ©",
        "ð Ł",
    ],
    ["<|user|>", "<b>", "</s>"],
    bos_token_id=256 + 16 + 1,
    eos_token_id=256 + 16 + 2,
    add_bos_token=True,
)
TEXT = "hello world, the thing in the world is well.\n\nThe end of the thing, hello.\n\nthe theing in it"


def names(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [tokenizer.token_text(id) for id in ids]


def spelled(vocabulary: CrossVocabulary, tokens: Sequence[int]) -> list[int]:
    return [token for token, _, _ in vocabulary.spell(tokens)]


def text_of(tokenizer: Tokenizer, ids: Sequence[int]) -> bytes:
    return b"".join(map(tokenizer.token_bytes, ids))


@pytest.mark.parametrize("name", CORPUS)
def test_the_context_is_read_in_the_drafts_tokens_however_it_comes(name: str) -> None:
    """Bit by bit it becomes what the draft's tokenizer makes of the whole."""
    text = CORPUS[name]
    said = OURS.encode(text)
    vocabulary, context = CrossVocabulary(OURS, THEIRS), list[int]()
    for token in said:
        context.append(token)
        own, _, ready = vocabulary.read(context)
        spoken = text_of(OURS, context)
        assert ready == (spoken.decode("utf-8", "ignore").encode() == spoken)
        assert text_of(THEIRS, own[1:]) == spoken.decode("utf-8", "ignore").encode()
    if said:
        at_once, _, _ = CrossVocabulary(OURS, THEIRS).read(said)
        assert own == at_once == [THEIRS.bos, *THEIRS.encode(text)]


def test_what_is_said_to_be_stable_is() -> None:
    for text in random_texts(60, ["<|user|>"]):
        vocabulary, context = CrossVocabulary(OURS, THEIRS), list[int]()
        before: list[int] = []
        for token in OURS.encode(text, special=True):
            context.append(token)
            own, stable, _ = vocabulary.read(context)
            assert own[:stable] == before[:stable]
            before = list(own)


@pytest.mark.parametrize("text", ["a word or two, ", "没有空格的文字", "x"])
def test_only_the_end_of_the_context_is_read_again(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    encode = module._encode
    monkeypatch.setattr(
        module, "_encode", lambda t, text: read.append(len(text)) or encode(t, text)
    )
    vocabulary, context = CrossVocabulary(OURS, THEIRS), list[int]()
    for token in OURS.encode(text * 100):
        context.append(token)
        vocabulary.read(context)
    assert len(read) >= 90
    assert max(read) <= 40


def test_another_context_is_read_anew_and_one_that_was_interrupted() -> None:
    vocabulary = CrossVocabulary(OURS, THEIRS)
    first, second = OURS.encode("hello world"), OURS.encode("hello there")
    vocabulary.read(first)
    own, stable, _ = vocabulary.read(second)
    assert (own[1:], stable) == (THEIRS.encode("hello there"), 0)

    class Growing(list[int]):
        broken = False

        def __iter__(self) -> Iterator[int]:
            yield from self[: -1 if self.broken else None]
            if self.broken:
                raise KeyboardInterrupt

    context = Growing(OURS.encode("hello"))
    vocabulary.read(context)
    context.extend(OURS.encode(" or world"))
    context.broken = True
    with pytest.raises(KeyboardInterrupt):
        vocabulary.read(context)
    context.broken = False
    own, stable, _ = vocabulary.read(context)
    assert (own[1:], stable) == (THEIRS.encode("hello or world"), 0)


@pytest.mark.parametrize("data", INVALID.values(), ids=list(INVALID))
def test_bytes_that_are_no_text_break_nothing(data: bytes) -> None:
    byte = {OURS.token_bytes(id): id for id in range(256)}
    vocabulary, context = CrossVocabulary(OURS, THEIRS), list[int]()
    for value in (*data, *b" and on"):
        context.append(byte[bytes([value])])
        own, _, _ = vocabulary.read(context)
    known = (data + b" and on").decode("utf-8", "replace").encode()
    assert text_of(THEIRS, own[1:]) == known


def test_control_tokens_are_those_of_the_same_name_or_the_end() -> None:
    vocabulary = CrossVocabulary(OURS, THEIRS)
    own, _, ready = vocabulary.read(OURS.encode("<s><|user|>hello<|end|><|user|>", special=True))
    assert ready
    assert names(THEIRS, own) == ["<b>", "<|user|>", "hell", "o", "</s>", "<|user|>"]
    ids = {name: id for id, name in enumerate(names(THEIRS, range(THEIRS.vocab_size)))}
    end = [ids["hell"], ids["o"], ids["</s>"], ids["hell"]]
    assert names(OURS, spelled(vocabulary, end)) == [
        *names(OURS, OURS.encode("hello")),
        names(OURS, [OURS.eos or 0])[0],
    ]
    assert names(OURS, spelled(vocabulary, [ids["<|user|>"]])) == ["<|user|>"]
    assert spelled(vocabulary, [ids["<b>"], ids["hell"]]) == [], "it has none such"
    with_bos = tokenizer([*_byte_characters()], controls=["<b>"])
    own, _, _ = CrossVocabulary(with_bos, THEIRS).read(with_bos.encode("<b>a<b>", special=True))
    assert names(THEIRS, own) == ["<b>", "a", "<b>"], "it begins but once"
    # a text never becomes one
    assert "<|user|>" not in names(OURS, spelled(vocabulary, THEIRS.encode("<|user|>")))


@pytest.mark.parametrize("name", CORPUS)
def test_a_drafts_text_becomes_what_the_targets_tokenizer_makes_of_it(name: str) -> None:
    text = CORPUS[name][:200]
    found = CrossVocabulary(OURS, THEIRS).spell(THEIRS.encode(text))
    assert [token for token, _, _ in found] == OURS.encode(text)
    ends = [end for _, end, _ in found]
    assert ends == sorted(ends)
    for i, end in enumerate(
        ends
    ):  # the tokens so far end within so many of the draft's, not one less
        size = len(text_of(OURS, [token for token, _, _ in found[: i + 1]]))
        drafted = THEIRS.encode(text)
        assert len(text_of(THEIRS, drafted[:end])) >= size
        assert len(text_of(THEIRS, drafted[: end - 1])) < size


def test_a_character_that_is_not_whole_is_not_spelled() -> None:
    vocabulary = CrossVocabulary(OURS, THEIRS)
    tokens = THEIRS.encode("a 👍")
    for count in range(2, len(tokens)):
        assert text_of(OURS, spelled(vocabulary, tokens[:count])) == b"a "
    assert text_of(OURS, spelled(vocabulary, tokens)) == "a 👍".encode()


def test_what_the_target_says_as_one_token_is_learnt_however_it_would_be_cut() -> None:
    odd = tokenizer([*_byte_characters(), "xqz"])  # which no merge makes
    x, q, z, a = (THEIRS.encode(letter)[0] for letter in "xqza")
    vocabulary = CrossVocabulary(odd, THEIRS)
    assert names(odd, spelled(vocabulary, [a, x, q, z, a])) == ["a", "x", "q", "z", "a"]
    vocabulary.read([odd.encode("a")[0], 256])
    found = vocabulary.spell([a, x, q, z, a])
    assert [(odd.token_text(token), end) for token, end, _ in found] == [
        ("a", 1),
        ("xqz", 4),
        ("a", 5),
    ]
    assert names(odd, spelled(vocabulary, [a, x, q, a])) == ["a", "x", "q", "a"]
    vocabulary.read(odd.encode("xqzxqz"))  # as often as not it says it otherwise
    assert names(odd, spelled(vocabulary, [x, q, z])) == ["xqz"]


def test_a_last_token_that_is_often_only_a_beginning_is_less_certain() -> None:
    vocabulary = CrossVocabulary(OURS, THEIRS)
    full_stop = THEIRS.encode(".")
    assert vocabulary.spell(full_stop)[0][2] == 1.0
    context: list[int] = []
    chances = []
    for _ in range(6):
        context += OURS.encode("hello.\n\n")
        vocabulary.read(context)
        chances.append(vocabulary.spell(full_stop)[0][2])
    assert chances == sorted(chances, reverse=True)
    assert chances[-1] < 0.5
    assert vocabulary.spell(THEIRS.encode(". a"))[0][2] == 1.0, "what follows shows it"
    for text in (".\n\n", "hello.\n\n the end"):
        assert spelled(vocabulary, THEIRS.encode(text)) == OURS.encode(text)
    context += OURS.encode("hello. " * 50)
    vocabulary.read(context)
    assert vocabulary.spell(full_stop)[0][2] > 0.8


def test_what_is_learnt_is_bounded() -> None:
    vocabulary = CrossVocabulary(OURS, THEIRS)
    rng = np.random.default_rng(0)
    for run in rng.integers(0, THEIRS.vocab_size, (2000, 6)).tolist():
        vocabulary._learn(tuple(run), 7)
    assert len(vocabulary._runs) == module._RUNS
    assert vocabulary._runs[tuple(run)].whole == 1
    for _ in range(1000):
        vocabulary._learn((1, 2), 3)
    assert vocabulary._runs[1, 2].whole <= 64


def test_shared_tokens_have_the_same_bytes_and_count_once() -> None:
    target = tokenizer(["a", "b", "", "ab", "c", "a"], ["a b"], ["<x>", "<e>"])
    draft = tokenizer(["ab", "", "a", "a", "d", "<x>"])
    assert CrossVocabulary(target, draft).shared.tolist() == [3, -1, 0, 0, -1, -1]
    # a token with the name of a control token is a text


def test_a_text_that_the_target_cannot_spell_ends_there() -> None:
    vocabulary = CrossVocabulary(tokenizer(["a", "b"]), THEIRS)
    assert spelled(vocabulary, THEIRS.encode("abxab")) == [0, 1]


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


def test_a_token_of_a_byte_gives_way_to_the_character() -> None:
    file = FakeFile(
        model="llama",
        tokens=["<unk>", "<0x61>", "a", "▁a", "b", "▁"],
        token_type=[2, BYTE, NORMAL, NORMAL, NORMAL, NORMAL],
        scores=[0.0, 0.0, -1.0, -2.0, -3.0, -4.0],
    )
    target = Tokenizer.from_gguf(file)  # type: ignore[arg-type]
    draft = tokenizer(["Ġa", "a", "b"])
    vocabulary = CrossVocabulary(target, draft)
    assert vocabulary.shared.tolist() == [3, 2, 4]
    assert spelled(vocabulary, [1, 2, 0]) == [2, 4, 3], "no space is put before what goes on"
    own, _, _ = CrossVocabulary(draft, target).read([1, 2])
    assert own[-2:] == [2, 4]


def test_vocabularies_that_are_alike_need_no_translation(smollm2: Path) -> None:
    file = tokenizer(names(THEIRS, range(272)))
    assert between(file, tokenizer([*names(THEIRS, range(270)), "x", "y"])) is None
    assert between(file, OURS) is not None
    assert between(file, tokenizer(names(THEIRS, range(100)))) is not None


class Reciter(MemoryRuntime):
    """Knows a text by heart, in the tokens of its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        super().__init__(tokenizer.vocab_size, order=10_000, pass_sizes=())
        self.tokenizer, self.text = tokenizer, text.encode()

    def logits_after(self, rows: Sequence[tuple[int, int]]) -> FloatArray:
        said = b"".join(
            self.tokenizer.token_bytes(token)
            for token, _ in rows
            if token not in self.tokenizer.special_ids
        )
        logits = np.zeros(self.info.vocab_size, np.float32)
        rest = self.text[len(said) :] if self.text.startswith(said) else b""
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
    said, steps = say(target, drafter, context, 50, sampling)
    assert OURS.decode(said).startswith(text[5:60])
    drafted, accepted = sum(s.drafted for s in steps), sum(s.accepted for s in steps)
    if sampling.greedy:  # what both have is not all of the text: of these alone fewer are right
        assert accepted > 0.85 * drafted
        assert len(said) > 4 * len(steps)
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
def test_nothing_that_a_draft_says_changes_the_answer(
    name: str, penalty: float, temperature: float
) -> None:
    """Sampled, what is said depends on what was drafted; it must still be said."""
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
        said, steps = say(targets[1], drafter, [0, 1, 2], 120, sampling)
        assert len(said) == 120
        if sampling.greedy:
            assert said == plain
        if name == "another":
            assert sum(s.drafted for s in steps) > 10


# Of the five tokens whose distribution is looked at.
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
    """The tokens of tiny models are but bytes and a few words, and what they say is no text."""
    path = tiny_gguf(tmp_path / "a.gguf")
    with Engine.open(path, draft="none") as engine:
        plain = engine.generate("the world is", max_tokens=30, chat=False).token_ids
    with Engine.open(path, draft=str(smollm2)) as engine:
        scheduler = engine.loaded.scheduler
        drafter = scheduler.drafters[-1]
        assert isinstance(drafter, ModelDrafter)
        assert not drafter.vocabulary.same
        scheduler.costs, drafter.follower.costs = Fixed(1.0), Fixed(0.01)
        found = engine.generate("the world is", max_tokens=30, chat=False)
        sampled = engine.generate("the world is", max_tokens=20, chat=False, temperature=1.0)
    assert found.token_ids == plain
    assert found.statistics.drafted > 0
    assert sampled.statistics.drafted > 0


@pytest.mark.slow
def test_smollm2_drafts_for_qwen(smollm2: Path) -> None:
    target = store.pull(load_catalogue()["qwen2.5-coder-1.5b-instruct"], directory=TEST_MODELS)
    prompts = ["Write a function that merges two sorted lists.", "Beschreibe Köln, mit Emojis."]

    def said(draft: str) -> tuple[list[list[int]], float]:
        with Engine.open(target, draft=draft, context=512) as engine:
            if draft != "none":
                scheduler = engine.loaded.scheduler
                drafter = scheduler.drafters[-1]
                assert isinstance(drafter, ModelDrafter)
                scheduler.costs, drafter.follower.costs = Fixed(1.0), Fixed(0.1)
            found = [engine.generate(prompt, max_tokens=60) for prompt in prompts]
            return [f.token_ids for f in found], found[0].statistics.block_efficiency

    plain, _ = said("none")
    drafted, block_efficiency = said(str(smollm2))
    assert drafted == plain
    assert block_efficiency > 1.5
