from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgespec.core.decoding import Step, decode, prefill
from edgespec.core.draft import Draft
from edgespec.core.drafter import Budget, Drafter, Outcome
from edgespec.core.latency import LatencyModel
from edgespec.core.runtime import ContextOverflow, Runtime
from edgespec.core.sampling import Sampling
from edgespec.core.scheduler import Scheduler
from edgespec.drafting.hierarchy import Hierarchy
from edgespec.drafting.suffix import Suffix
from edgespec.export import build_onnx
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.memory_runtime import CertainDrafter, MemoryRuntime, RandomDrafter, RandomTrees
from tests.tiny import tiny_gguf

CHUNK = 32
Make = Callable[[MemoryRuntime], Drafter]
DRAFTERS: dict[str, Make] = {
    "ngram": lambda target: Hierarchy([Suffix()]),
    "random": RandomDrafter,
    "always 3": lambda target: CertainDrafter([3] * 40),
}


NEAR_TIE = 0.1
"""Of two logits, whose deviation is 3; passes of different sizes differ by less."""


def load_torch(path: Path) -> Runtime:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from edgespec.export.reference import TorchRuntime

    return TorchRuntime(path, context=128, threads=1)


def load_llama_cpp(path: Path) -> Runtime:
    pytest.importorskip("llama_cpp")
    from edgespec.runtimes.llama_cpp.runtime import LlamaCppRuntime

    return LlamaCppRuntime(path, context=128, threads=1, device="cpu")


def load_onnx(path: Path) -> Runtime:
    return OnnxRuntime(build_onnx(path, path.with_name("built")), context=128, exact=False)


LOAD = {"torch": load_torch, "llama-cpp": load_llama_cpp, "onnx": load_onnx}


class FlatCosts(LatencyModel):
    """Every pass costs the same, so everything offered is taken."""

    def seconds(self, size: int, length: int = 0) -> float:
        return 1.0


def say(
    target: MemoryRuntime,
    drafter: Drafter,
    prompt: list[int],
    max_tokens: int = 60,
    stop: frozenset[int] = frozenset(),
    sampling: Sampling | None = None,
) -> tuple[list[int], list[Step]]:
    """What the loop says, with its promises checked after every step."""
    context, said, steps = list(prompt), [], []
    for step in decode(
        target,
        Scheduler([drafter], FlatCosts()),
        context,
        max_tokens=max_tokens,
        stop_tokens=stop,
        sampling=sampling,
    ):
        said += step.tokens
        steps.append(step)
        assert context == prompt + said
        assert target.tokens == context[:-1]
        assert 0 <= step.accepted <= step.drafted
        assert len(step.tokens) - step.accepted in (0, 1)
    return said, steps


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("pass_sizes", [(2, 4, 6, 8, 16, 32), ()])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_output_is_the_same_whatever_is_drafted(
    name: str, pass_sizes: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, 12, int(rng.integers(1, 40))).tolist()
    stop = frozenset({int(rng.integers(12))}) if seed % 2 else frozenset()
    sampling = Sampling(repetition_penalty=1.3 if seed == 2 else 1.0)

    def run(make: Make) -> tuple[list[int], list[Step]]:
        target = MemoryRuntime(seed=seed, period=5, pass_sizes=pass_sizes)
        return say(target, make(target), prompt, 80, stop, sampling)

    plain, steps = run(lambda target: Hierarchy([]))
    assert all(len(step.tokens) == 1 for step in steps)
    drafted, steps = run(DRAFTERS[name])
    assert drafted == plain
    assert sum(step.drafted for step in steps) > 0 or len(plain) < 3


def test_drafting_saves_passes() -> None:
    target = MemoryRuntime(period=5, order=1)
    said, steps = say(target, Hierarchy([Suffix()]), [0, 1, 2, 3, 4] * 3, 80)
    assert len(said) == 80
    assert len(steps) < 30


@pytest.mark.parametrize("draft", [[], [1], [1, 2, 3, 4, 5, 6, 7]])
@pytest.mark.parametrize("max_tokens", [0, 1, 2, 3, 7])
def test_max_tokens_is_exact(draft: list[int], max_tokens: int) -> None:
    target = MemoryRuntime(vocab_size=8, period=8, order=1, scale=0.1)
    said, steps = say(target, CertainDrafter(draft), [0], max_tokens)
    assert said == [1, 2, 3, 4, 5, 6, 7][:max_tokens]
    assert all(step.drafted < max_tokens for step in steps)


def test_a_stop_token_inside_an_accepted_draft_ends_the_answer_there() -> None:
    target = MemoryRuntime(vocab_size=8, period=8, order=1, scale=0.1)
    said, steps = say(target, CertainDrafter([1, 2, 3, 4]), [0], 50, frozenset({3}))
    assert said == [1, 2, 3]
    assert [(s.drafted, s.accepted) for s in steps] == [(4, 3)]


def test_no_stop_token_in_an_answer_means_none_is_cut() -> None:
    target = MemoryRuntime(vocab_size=8, period=8, order=1, scale=0.1)
    said, _ = say(target, CertainDrafter([1, 2, 9 % 8, 4]), [0], 12, frozenset({7}))
    assert said == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("name", ["none", *DRAFTERS])
@pytest.mark.parametrize("room", [1, 2, 5, 9])
def test_the_end_of_the_context(name: str, room: int) -> None:
    prompt = [0, 1, 2, 3, 4] * 4
    target = MemoryRuntime(context=len(prompt) - 1 + room, period=5)
    drafter = Hierarchy([]) if name == "none" else DRAFTERS[name](target)
    said, _ = say(target, drafter, prompt, 100)
    assert len(said) == room
    assert target.length == target.info.context


def test_a_context_that_is_already_full_says_nothing_and_one_that_overflows_raises() -> None:
    target = MemoryRuntime(context=4)
    assert len(say(target, Hierarchy([]), [1, 2, 3, 4])[0]) == 1
    target.truncate(0)
    assert say(target, Hierarchy([]), [1, 2, 3, 4, 5])[0] == []
    target.truncate(0)
    with pytest.raises(ContextOverflow):
        say(target, Hierarchy([]), [1, 2, 3, 4, 5, 6])


def test_drafts_stay_within_the_budget_and_outcomes_tell_the_truth() -> None:
    target = MemoryRuntime(period=5)
    drafter = RandomDrafter(target)
    said, steps = say(target, drafter, [1, 2, 3], 50)
    assert [o.accepted for o in drafter.outcomes] == [s.accepted for s in steps]
    assert [t for o in drafter.outcomes for t in o.tokens] == said
    for outcome in drafter.outcomes:
        assert outcome.logits.shape == (1 + len(outcome.draft), 12)
        assert list(outcome.tokens[: outcome.accepted]) == list(
            outcome.draft.tokens[: outcome.accepted]
        )


def branches_taken(steps: list[Step]) -> int:
    """How often what was accepted is not what the draft begins with."""
    return sum(list(s.choice.draft.tokens[: s.accepted]) != s.tokens[: s.accepted] for s in steps)


@pytest.mark.parametrize("seed", range(8))
def test_greedy_output_is_the_same_whatever_trees_are_drafted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, 12, int(rng.integers(1, 40))).tolist()
    stop = frozenset({int(rng.integers(12))}) if seed % 2 else frozenset()
    sampling = Sampling(repetition_penalty=1.3 if seed % 3 == 2 else 1.0)

    def run(drafter: Drafter) -> tuple[list[int], list[Step]]:
        target = MemoryRuntime(seed=seed, period=5, pass_sizes=())
        return say(target, drafter, prompt, 80, stop, sampling)

    plain, _ = run(Hierarchy([]))
    drafted, steps = run(RandomTrees(prompt + plain, range(12), seed))
    assert drafted == plain
    assert branches_taken(steps) > len(plain) // 40


def converse(
    runtime: Runtime, drafter: Drafter, prompt: list[int], stop: int, sampling: Sampling
) -> tuple[list[int], list[Step]]:
    context, steps = list(prompt), []
    runtime.truncate(0)
    for step in decode(
        runtime,
        Scheduler([drafter], FlatCosts()),
        context,
        max_tokens=40,
        sampling=sampling,
        stop_tokens={stop},
    ):
        steps.append(step)
        assert runtime.length == len(context) - 1
    return context[len(prompt) :], steps


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize(
    ("name", "temperature"),
    [*((name, 0.0) for name in LOAD), ("torch", 0.7)],  # the others' rows differ by more
)
def test_trees_do_not_change_what_a_model_says(
    name: str, temperature: float, architecture: str, tmp_path: Path
) -> None:
    """But for near ties: passes of different sizes are not the same to the last bit."""
    runtime = LOAD[name](tiny_gguf(tmp_path / "a.gguf", architecture))
    if not runtime.info.trees:
        pytest.skip("its passes are chains")
    branches = compared = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        prompt = rng.integers(0, 256, 20).tolist()
        sampling = Sampling(temperature, seed=seed)
        stop = converse(runtime, Hierarchy([]), prompt, -1, sampling)[0][-5]
        plain, _ = converse(runtime, Hierarchy([]), prompt, stop, sampling)
        trees = RandomTrees(prompt + plain, [stop, *rng.integers(0, 256, 8).tolist()], seed)
        drafted, steps = converse(runtime, trees, prompt, stop, sampling)
        branches += branches_taken(steps)
        pairs = zip(plain, drafted, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(plain))
        compared += same
        if drafted != plain:
            runtime.truncate(0)
            logits = runtime.forward(prompt + plain[:same], logits="last")[0]
            assert abs(logits[plain[same]] - logits[drafted[same]]) < NEAR_TIE
    runtime.close()
    assert branches > 5
    assert compared > 40


def test_more_nodes_than_allowed_are_cut_to_the_first_which_are_a_tree() -> None:
    target = MemoryRuntime(vocab_size=8, period=8, order=1, scale=0.1, pass_sizes=())
    drafter = CertainDrafter([7, 1, 1, 2, 2, 3] * 4, [-1, -1, 0, 1, 2, 3, *range(5, 23)])
    said, steps = say(target, drafter, [0], 6)
    assert said == [1, 2, 3, 4, 5, 6]
    assert [(s.drafted, s.accepted) for s in steps] == [(5, 2), (2, 0), (1, 0), (0, 0)]


def test_a_stop_token_inside_a_tree_ends_the_answer_there() -> None:
    target = MemoryRuntime(vocab_size=8, period=8, order=1, scale=0.1, pass_sizes=())
    drafter = CertainDrafter([3, 1, 2, 3, 3, 4], [-1, -1, 1, 0, 2, 4])
    said, steps = say(target, drafter, [0], 50, frozenset({3}))
    assert said == [1, 2, 3]
    assert [(s.drafted, s.accepted) for s in steps] == [(6, 3)]


def test_padding_is_spent_on_the_best_guess_there_is() -> None:
    class Steep(LatencyModel):
        def seconds(self, size: int, length: int = 0) -> float:
            return float(size**2)

    def drafted(pass_sizes: tuple[int, ...]) -> set[int]:
        target = MemoryRuntime(period=5, scale=4.0, pass_sizes=pass_sizes)
        context = [1, 2, 3, 4, 1, 3, 2, 1, 4, 3]
        steps = decode(target, Scheduler([Hierarchy([Suffix()])], Steep()), context, max_tokens=40)
        return {step.drafted for step in list(steps)[:-4]} - {0}  # at the end there is less to say

    assert drafted((2, 4, 8)) == {1}
    assert drafted((4, 8)) == {3}
    assert drafted(()) == set()


def test_long_prompts_are_prefilled_in_chunks_without_logits() -> None:
    target = MemoryRuntime(context=4096)
    context = np.random.default_rng(0).integers(0, 12, 2 * CHUNK + 9).tolist()
    seen: list[tuple[int, int]] = []
    prefill(target, context, lambda what, done, total: seen.append((done, total)))
    assert target.passes == [CHUNK, CHUNK, 8]
    assert target.tokens == context[:-1]
    assert seen == [(i * CHUNK, len(context) - 1) for i in range(3)]


def test_prefill_can_be_cancelled_between_chunks_and_resumed() -> None:
    target = MemoryRuntime()
    context = np.random.default_rng(0).integers(0, 12, 3 * CHUNK).tolist()

    def cancel(what: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prefill(target, context, cancel)
    assert target.tokens == context[:CHUNK]
    prefill(target, context)
    assert target.tokens == context[:-1]


@pytest.mark.parametrize("where", ["forward", "keep", "propose", "observe"])
@pytest.mark.parametrize("when", [0, 3])
def test_interrupted_anywhere_the_cache_is_a_prefix_of_the_context(where: str, when: int) -> None:
    target = MemoryRuntime(period=5, pass_sizes=())
    drafter = Hierarchy([Suffix()])
    calls = 0
    owner = target if where in ("forward", "keep") else drafter
    whole = getattr(owner, where)

    def interrupted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls > when:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    setattr(owner, where, interrupted)
    context = [0, 1, 2, 3, 4, 0, 1, 2]
    with pytest.raises(KeyboardInterrupt):
        for _ in decode(target, Scheduler([drafter], FlatCosts()), context, max_tokens=50):
            pass
    assert target.tokens == context[: target.length]
    assert target.length < len(context)
    setattr(owner, where, whole)
    before = len(context)
    for _ in decode(target, Scheduler([drafter]), context, max_tokens=5):
        pass
    fresh = MemoryRuntime(period=5, pass_sizes=())
    assert context[before:] == say(fresh, Hierarchy([]), context[:before], 5)[0]


def test_a_seed_gives_the_same_words_with_and_without_certain_drafts() -> None:
    def run(make: Make) -> list[int]:
        target = MemoryRuntime(period=5)
        sampling = Sampling(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=7)
        return say(target, make(target), [1, 2, 3] * 5, 80, sampling=sampling)[0]

    plain = run(lambda target: Hierarchy([]))
    for make in DRAFTERS.values():
        assert run(make) == plain


@pytest.mark.parametrize("seed", range(4))
def test_a_seed_gives_the_same_words_with_and_without_certain_trees(seed: int) -> None:
    def run(drafter: Drafter) -> tuple[list[int], list[Step]]:
        target = MemoryRuntime(period=5, pass_sizes=())
        sampling = Sampling(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=seed)
        return say(target, drafter, [1, 2, 3] * 5, 80, sampling=sampling)

    plain, _ = run(Hierarchy([]))
    drafted, steps = run(RandomTrees([1, 2, 3] * 5 + plain, range(12), seed))
    assert drafted == plain
    assert branches_taken(steps) > 2


def test_the_drafter_learns_before_the_context_grows() -> None:
    class Watching(Hierarchy):
        def propose(self, context: object, budget: Budget) -> Draft:
            self.context = context
            return Draft()

        def observe(self, outcome: Outcome) -> None:
            lengths.append(len(self.context))  # type: ignore[arg-type]

    lengths: list[int] = []
    say(MemoryRuntime(), Watching([]), [1, 2, 3], 4)
    assert lengths == [3, 4, 5, 6]
