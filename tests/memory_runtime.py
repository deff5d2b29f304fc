"""A runtime whose target is a known Markov chain, and stand-ins for a tokenizer and a template.

Its logits are a seeded function of the last few tokens *and of how their rows were evaluated*: a
row of a pass larger than the sizes that agree differs by its pass's size, as on real kernels.
So a loop that splits the prompt differently with and without drafting is caught.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt

from edgespec.core.draft import Draft
from edgespec.core.drafter import Budget, Outcome
from edgespec.core.runtime import ContextOverflow, FloatArray, Logits, ModelInfo
from edgespec.core.sampling import gumbel_top_k

Row = tuple[int, int]  # the token and how it was evaluated


class MemoryRuntime:
    """Logits ``[V]`` after a context are a seeded function of its last ``order`` rows."""

    def __init__(
        self,
        vocab_size: int = 12,
        order: int = 2,
        context: int = 4096,
        pass_sizes: Sequence[int] = (2, 4, 6, 8, 16, 32),
        scale: float = 2.0,
        seed: int = 0,
        period: int = 0,
        mute: Sequence[int] = (),
    ) -> None:
        self.info = ModelInfo(
            "memory",
            "markov",
            vocab_size,
            1,
            context,
            1,
            "cpu",
            "memory",
            tuple(pass_sizes),
            trees=not pass_sizes,
            prefill_chunk=32,
        )
        self.order, self.scale, self.seed, self.period = order, scale, seed, period
        self.mute = list(mute)
        self.cache: list[Row] = []
        self.length = 0
        self.pending: list[list[Row]] = []
        self.parents: list[int] = []
        self.passes: list[int] = []
        self.rows_evaluated = 0
        self.features: FloatArray | None = None
        self._memo: dict[tuple[Row, ...], FloatArray] = {}

    @property
    def tokens(self) -> list[int]:
        return [token for token, _ in self.cache]

    def logits_after(self, rows: Sequence[Row]) -> FloatArray:
        key = tuple(rows[-self.order :])
        if key not in self._memo:
            words = [self.seed, *(v + 1 for row in key for v in row)]
            rng = np.random.default_rng(words)
            logits = rng.normal(0, self.scale, self.info.vocab_size)
            if self.period:  # mostly a counting song, so that copies are often right
                logits[(key[-1][0] + 1) % self.period] += 6
            logits[self.mute] -= 50
            self._memo[key] = logits.astype(np.float32)
        return self._memo[key]

    def forward(
        self,
        tokens: Sequence[int],
        parents: Sequence[int] | None = None,
        *,
        logits: Logits = "all",
        features: bool = False,
    ) -> FloatArray:
        assert tokens, "an empty pass"
        assert not features, "it has none"
        assert all(0 <= t < self.info.vocab_size for t in tokens)
        if self.length + len(tokens) > self.info.context:
            raise ContextOverflow(f"{self.length} + {len(tokens)} > {self.info.context}")
        size = self.info.padded(len(tokens))
        how = 0 if size in self.info.pass_sizes or not self.info.pass_sizes else size
        self.passes.append(len(tokens))
        self.rows_evaluated += len(tokens)
        chain = list(range(-1, len(tokens) - 1))
        self.parents = chain if parents is None else list(parents)
        assert self.info.trees or self.parents == chain, "only chains are exact"
        assert all(-1 <= parent < row for row, parent in enumerate(self.parents))
        self.pending = []
        for token, parent in zip(tokens, self.parents, strict=True):
            before = self.pending[parent] if parent >= 0 else self.cache[-self.order :]
            self.pending.append([*before, (token, how)])
        asked = {"all": self.pending, "last": self.pending[-1:], "none": []}[logits]
        out = [self.logits_after(path) for path in asked]
        return np.array(out, dtype=np.float32).reshape(len(out), self.info.vocab_size)

    def keep(self, rows: Sequence[int]) -> None:
        before = [-1, *rows][: len(rows)]
        assert [self.parents[row] for row in rows] == before, "not a path from the cache's end"
        self.cache += [self.pending[row][-1] for row in rows]
        self.length = len(self.cache)
        self.pending = []

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        del self.cache[length:]
        self.length = length
        self.pending = []

    def close(self) -> None:
        self.truncate(0)

    def joint(self, context: Sequence[int], steps: int) -> npt.NDArray[np.float64]:
        """The exact distribution of the next ``steps`` tokens at temperature 1, ``[V] * steps``."""
        vocabulary = self.info.vocab_size
        out = np.ones((vocabulary,) * steps)
        for said in product(range(vocabulary), repeat=steps):
            rows = [(t, 0) for t in context]
            for token in said:
                e = np.exp(self.logits_after(rows).astype(np.float64))
                out[said] *= e[token] / e.sum()
                rows.append((token, 0))
        return out


class RandomDrafter:
    """Offers whatever it likes: nothing, too much, repeats, the truth now and then."""

    name = "random"

    def __init__(self, target: MemoryRuntime, seed: int = 0) -> None:
        self.target, self.rng = target, np.random.default_rng(seed)
        self.outcomes: list[Outcome] = []

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        count = int(self.rng.integers(0, budget.nodes + 4))
        rows: list[Row] = [*self.target.cache, (context[-1], 0)]
        tokens: list[int] = []
        for _ in range(count):
            truth = int(self.target.logits_after(rows).argmax())
            wrong = int(self.rng.integers(self.target.info.vocab_size))
            tokens.append(truth if self.rng.random() < 0.8 else wrong)
            rows.append((tokens[-1], 0))
        confidence = list(self.rng.random(count)) if self.rng.random() < 0.5 else None
        return Draft(tokens, confidence=confidence)

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


class RandomTrees:
    """Offers any tree: right and wrong tokens, other branches first, the same token twice, much more
    than is allowed. ``context``, prompt and answer, is where it knows the right ones from."""

    name = "trees"

    def __init__(self, context: Sequence[int], wrong: Sequence[int], seed: int = 0) -> None:
        self.context, self.wrong = context, wrong
        self.rng = np.random.default_rng(seed)

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        count = int(self.rng.integers(0, budget.nodes + 4))
        tokens: list[int] = []
        parents: list[int] = []
        places: list[int] = []  # in the context
        for i in range(count):
            parents.append(int(self.rng.integers(max(-1, i - 4), i)))
            places.append(places[parents[-1]] + 1 if parents[-1] >= 0 else len(context))
            right = self.context[places[-1] : places[-1] + 1]
            wrong = [int(self.rng.choice(self.wrong))]
            tokens += right if right and self.rng.random() < 0.6 else wrong
        return Draft(tokens, parents)

    def observe(self, outcome: Outcome) -> None:
        pass


class ModelDrafter:
    """Draws from q, a known distribution that is not the target's: ``widths`` candidates for a
    place, by their depth."""

    name = "q"

    def __init__(
        self,
        target: MemoryRuntime,
        widths: Sequence[int] = (1, 1, 1),
        with_replacement: bool = False,
        seed: int = 0,
    ) -> None:
        self.widths, self.with_replacement = widths, with_replacement
        self.vocab_size = target.info.vocab_size
        self.rng = np.random.default_rng(seed)
        self.q = self.rng.dirichlet(np.ones(self.vocab_size), self.vocab_size).astype(np.float32)

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        tokens: list[int] = []
        parents: list[int] = []
        rows: list[FloatArray] = []
        places = [(-1, context[-1])]
        for width in self.widths:
            deeper = []
            for parent, last in places:
                q = self.q[last]
                for token in self.draw(q, width):
                    deeper.append((len(tokens), token))
                    tokens.append(token)
                    parents.append(parent)
                    rows.append(q)
            places = deeper
        draft = Draft(
            tokens,
            parents,
            probabilities=np.array(rows),
            with_replacement=self.with_replacement,
        )
        return draft.first(budget.nodes)

    def draw(self, q: FloatArray, count: int) -> list[int]:
        if not self.with_replacement:
            return gumbel_top_k(q, count, self.rng)
        whole = q.sum(dtype=np.float64)
        found: list[int] = self.rng.choice(self.vocab_size, count, p=q / whole).tolist()
        return found

    def observe(self, outcome: Outcome) -> None:
        pass


class CertainDrafter:
    """Always offers the same tokens, as certain."""

    name = "certain"

    def __init__(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> None:
        self.draft = Draft(tokens, parents)

    def propose(self, context: Sequence[int], budget: Budget) -> Draft:
        return self.draft.first(budget.nodes)

    def observe(self, outcome: Outcome) -> None:
        pass


class LetterTokenizer:
    """One token a character: id 0 ends a message, 1 to 4 are control tokens, letters follow."""

    letters = "abcdefghijklmnopqrstuvwxyz .\n"
    add_bos = False
    chat_template = None
    reasoning = None

    def __init__(self, bos: int | None = 1, stop: Iterable[int] = (0,)) -> None:
        self.bos, self.eos = bos, 0
        self.stop_tokens = frozenset(stop)
        self.vocab_size = 5 + len(self.letters)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return [5 + self.letters.index(c) for c in text]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return "".join(self.letters[i - 5] for i in ids if i >= 5)

    def stream(self, *, continues: bool = False) -> LetterTokenizer:
        return self

    def push(self, ids: Sequence[int]) -> str:
        return self.decode(ids)

    def flush(self) -> str:
        return ""


class LetterTemplate:
    """A control token for the role, the text, and the end-of-message token."""

    roles = ("system", "user", "assistant")
    takes_system = True

    def __init__(self, tokenizer: LetterTokenizer) -> None:
        self.tokenizer = tokenizer

    def render(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        out: list[int] = []
        for message in messages:
            out.append(2 + self.roles.index(message["role"]))
            out += [*self.tokenizer.encode(message["content"]), 0]
        return [*out, 4] if add_generation_prompt else out
