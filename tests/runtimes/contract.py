"""What any ``Runtime`` must do, as tests. Subclass ``RuntimeContract`` and give it a ``loaded``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgespec.core.runtime import ContextOverflow, FloatArray, Runtime

TOKENS = [72, 101, 257, 31, 5, 144, 260, 9, 77, 12, 201, 33, 8, 250, 64, 18, 99, 7, 121, 45]
OTHERS = [3, 88, 17, 140]
#   0 ─ 1 ─ 3 ─ 5      Branches interleaved, so that no branch lies in one piece.
#   │   └─ 4
#   └─ 2 ─ 6
TREE, PARENTS = TOKENS[8:15], [-1, 0, 0, 1, 1, 3, 2]


class RuntimeContract:
    """Tests of a runtime, ``loaded`` (a fixture of the subclass), with room for at least 40 tokens.

    ``tolerance`` is how far a logit may be off where the same row is computed in a pass of another
    size. What the tests look for moves logits by several units. ``trees``: whether it verifies them,
    of which ``rounds`` are made at random.
    """

    tolerance: float
    trees = True
    rounds = 10

    @pytest.fixture
    def runtime(self, loaded: Runtime) -> Runtime:
        loaded.truncate(0)
        return loaded

    def assert_same(self, found: FloatArray, expected: FloatArray) -> None:
        np.testing.assert_allclose(found, expected, rtol=0, atol=self.tolerance)

    def test_shapes(self, runtime: Runtime) -> None:
        vocab_size = runtime.info.vocab_size
        everything = runtime.forward(TOKENS).copy()
        assert everything.shape == (len(TOKENS), vocab_size)
        assert everything.dtype == np.float32
        assert np.isfinite(everything).all()
        assert everything.std(axis=1).min() > 0.5
        last = runtime.forward(TOKENS, logits="last").copy()
        assert last.shape == (1, vocab_size)
        self.assert_same(last, everything[-1:])
        assert runtime.forward(TOKENS, logits="none").shape == (0, vocab_size)
        assert runtime.length == 0

    def test_chain_equals_one_by_one(self, runtime: Runtime) -> None:
        together = runtime.forward(TOKENS).copy()
        for row, token in enumerate(TOKENS):
            self.assert_same(runtime.forward([token])[0], together[row])
            runtime.keep([0])
        assert runtime.length == len(TOKENS)

    def test_prompt_without_logits(self, runtime: Runtime) -> None:
        expected = runtime.forward(TOKENS)[-3:].copy()
        runtime.forward(TOKENS[:-3], logits="none")
        runtime.keep(range(len(TOKENS) - 3))
        self.assert_same(runtime.forward(TOKENS[-3:]), expected)

    @pytest.mark.parametrize("kept", [0, 1, 3, 5])
    def test_keep_forgets_the_rest(self, runtime: Runtime, kept: int) -> None:
        expected = runtime.forward(TOKENS[: 8 + kept] + OTHERS)[-len(OTHERS) :].copy()
        runtime.forward(TOKENS[:8])
        runtime.keep(range(8))
        runtime.forward(TOKENS[8:13])
        runtime.keep(range(kept))
        assert runtime.length == 8 + kept
        self.assert_same(runtime.forward(OTHERS), expected)

    def test_truncate(self, runtime: Runtime) -> None:
        expected = runtime.forward(TOKENS[:6] + OTHERS)[-len(OTHERS) :].copy()
        runtime.forward(TOKENS)
        runtime.keep(range(len(TOKENS)))
        runtime.truncate(6)
        assert runtime.length == 6
        self.assert_same(runtime.forward(OTHERS), expected)
        runtime.truncate(0)
        assert runtime.length == 0
        self.assert_same(runtime.forward(TOKENS[:6] + OTHERS)[-len(OTHERS) :], expected)

    def test_truncate_forgets_uncommitted_rows(self, runtime: Runtime) -> None:
        expected = runtime.forward(TOKENS[:6] + OTHERS)[-len(OTHERS) :].copy()
        runtime.forward(TOKENS[:9])
        runtime.keep(range(9))
        runtime.forward(OTHERS)
        runtime.truncate(6)
        self.assert_same(runtime.forward(OTHERS), expected)

    def test_uncommitted_rows_are_forgotten(self, runtime: Runtime) -> None:
        expected = runtime.forward(TOKENS[:5] + OTHERS)[-len(OTHERS) :].copy()
        runtime.forward(TOKENS[:5])
        runtime.keep(range(5))
        runtime.forward(TOKENS[5:12])
        self.assert_same(runtime.forward(OTHERS), expected)
        assert runtime.length == 5

    def test_rows_that_are_no_path_are_refused(self, runtime: Runtime) -> None:
        runtime.forward(TOKENS[:4])
        for rows in ([1], [0, 2], [0, 1, 2, 3, 4], [-1]):
            with pytest.raises(ValueError, match="not a path"):
                runtime.keep(rows)
        runtime.keep([0, 1])
        assert runtime.length == 2
        with pytest.raises(ValueError, match="not a path"):
            runtime.keep([0])  # of a pass whose rows are forgotten
        for length in (-1, 3):
            with pytest.raises(ValueError, match="cannot truncate"):
                runtime.truncate(length)
        for parents in ([-1], [0, 0, 1], [-1, 2, 0], [-2, 0, 1]):
            with pytest.raises(ValueError, match=r"parents|no trees"):
                runtime.forward(TOKENS[:3], parents)
        with pytest.raises(ValueError, match="needs a token"):
            runtime.forward([])
        assert runtime.length == 2

    def test_features_are_declared(self, runtime: Runtime) -> None:
        runtime.forward(TOKENS[:4])
        assert runtime.features is None
        width = runtime.info.hidden_size
        if not width:
            with pytest.raises(ValueError, match="features"):
                runtime.forward(TOKENS[:4], features=True)
            return
        runtime.forward(TOKENS[:4], features=True)
        assert runtime.features is not None
        together = runtime.features.copy()
        assert (together.shape, together.dtype) == ((4, width), np.float32)
        logits = runtime.forward(TOKENS[:4], features=True).copy()
        last = runtime.forward(TOKENS[:4], logits="last", features=True)
        assert runtime.features is not None
        self.assert_same(runtime.features, together[-1:])
        self.assert_same(last, logits[-1:])
        self.assert_same(runtime.forward(TOKENS[:4]), logits)
        assert runtime.features is None

    def test_overflow(self, runtime: Runtime) -> None:
        context = runtime.info.context
        tokens = (TOKENS * context)[:context]
        with pytest.raises(ContextOverflow):
            runtime.forward([*tokens, 1], logits="none")
        runtime.forward(tokens, logits="none")  # exactly full
        runtime.keep(range(context))
        with pytest.raises(ContextOverflow):
            runtime.forward([1])
        runtime.truncate(6)
        found = runtime.forward(OTHERS).copy()
        runtime.truncate(0)
        self.assert_same(found, runtime.forward(tokens[:6] + OTHERS)[-len(OTHERS) :])

    def test_tree_equals_its_chains(self, runtime: Runtime) -> None:
        assert runtime.info.trees == self.trees
        chain = runtime.forward(TOKENS[:4]).copy()
        self.assert_same(runtime.forward(TOKENS[:4], [-1, 0, 1, 2]), chain)
        if not self.trees:
            with pytest.raises(ValueError, match="no trees"):
                runtime.forward([1, 2], [-1, -1])
            return
        paths = [[0, 1, 3, 5], [0, 1, 4], [0, 2, 6]]
        runtime.forward(TOKENS[:8])
        runtime.keep(range(8))
        chains = [runtime.forward([TREE[row] for row in path]).copy() for path in paths]
        for path, chain in zip(paths, chains, strict=True):
            self.assert_same(runtime.forward(TREE, PARENTS)[path], chain)
        for path in [*paths, [0, 1], [0], []]:
            chain = runtime.forward([*(TREE[row] for row in path), *OTHERS]).copy()
            runtime.forward(TREE, PARENTS)
            runtime.keep(path)
            assert runtime.length == 8 + len(path)
            self.assert_same(runtime.forward(OTHERS), chain[len(path) :])
            runtime.truncate(8)

    def test_tree_at_the_end_of_the_context(self, runtime: Runtime) -> None:
        if not self.trees:
            return
        count = runtime.info.context - len(TREE)
        before, path = (TOKENS * count)[:count], [0, 2, 6]
        expected = runtime.forward([*before, *(TREE[row] for row in path), *OTHERS])
        expected = expected[count:].copy()
        with pytest.raises(ContextOverflow):
            runtime.forward([*before, 1, *TREE], [*range(-1, count), *np.add(PARENTS, count + 1)])
        runtime.forward(before, logits="none")
        runtime.keep(range(count))
        self.assert_same(runtime.forward(TREE, PARENTS)[path], expected[: len(path)])
        runtime.keep(path)
        self.assert_same(runtime.forward(OTHERS), expected[len(path) :])

    @pytest.mark.parametrize("seed", range(2))
    def test_random_trees(self, runtime: Runtime, seed: int) -> None:
        """Kept, cut and followed by others at random, also where nothing came before."""
        if self.trees:
            assert_trees_equal_their_chains(runtime, seed, self.rounds, self.tolerance)


def assert_trees_equal_their_chains(
    runtime: Runtime, seed: int, rounds: int, tolerance: float
) -> None:
    random = np.random.default_rng(seed)
    runtime.truncate(0)
    committed: list[int] = []
    found: list[tuple[list[int], FloatArray]] = []
    for _ in range(rounds):
        rows = int(random.integers(1, 1 + min(12, runtime.info.context - len(committed))))
        trunk = int(random.integers(1, rows + 1))
        parents = [
            *range(-1, trunk - 1),
            *(int(random.integers(-1, r)) for r in range(trunk, rows)),
        ]
        tokens = random.integers(0, 250, rows).tolist()
        logits = runtime.forward(tokens, parents).copy()
        for leaf in set(range(rows)) - set(parents):
            path = path_to(leaf, parents)
            found.append(([*committed, *(tokens[row] for row in path)], logits[path]))
        kept = path_to(int(random.integers(-1, rows)), parents)
        runtime.keep(kept)
        committed += [tokens[row] for row in kept]
        if random.random() < 0.2 or len(committed) == runtime.info.context:
            del committed[int(random.integers(0, len(committed) + 1)) :]
            runtime.truncate(len(committed))
        assert runtime.length == len(committed)
    for chain, logits in found:
        runtime.truncate(0)
        expected = runtime.forward(chain)[-len(logits) :]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)


def path_to(row: int, parents: Sequence[int]) -> list[int]:
    return [] if row < 0 else [*path_to(parents[row], parents), row]
