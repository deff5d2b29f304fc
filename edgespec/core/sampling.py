"""From logits to the distribution that tokens are sampled from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgespec.core.runtime import FloatArray
from edgespec.errors import UserError

_GREEDY_BELOW = 1e-5
"""A lower temperature is greedy: dividing by it would overflow (vLLM's limit)."""

_BLOCK = 64
"""Tokens per block of a first reduction to maxima or sums."""

Tokens = Sequence[int] | npt.NDArray[np.intp]


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters, with the literature's names. The default is greedy.

    Applied in the order of Hugging Face's ``generate``: repetition penalty (Keskar et al. 2019,
    over the whole context), temperature, top-k, top-p (over the tokens that top-k keeps), min-p. ``top_k=0``,
    ``top_p=1``, ``min_p=0`` and ``repetition_penalty=1`` turn a stage off. ``seed=None`` draws
    a fresh seed. Raises ``UserError`` for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "more than 0"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        )
        for name, valid, allowed in checks:
            if not valid:
                raise UserError(f"{name} is {getattr(self, name)}; it must be {allowed}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken without sampling."""
        return self.temperature < _GREEDY_BELOW


def penalise(logits: FloatArray, penalty: float, history: Tokens) -> FloatArray:
    """Logits ``[n, V]`` with every token of ``history`` made less likely (a copy).

    A positive logit is divided by ``penalty``, a negative one multiplied (Keskar et al. 2019).
    """
    scores = np.array(logits, dtype=np.float32)
    seen = np.asarray(history, dtype=np.intp)
    was = scores[:, seen]
    scores[:, seen] = np.where(was < 0, was * penalty, was / penalty)
    return scores


def probabilities(logits: FloatArray, sampling: Sampling, history: Tokens = ()) -> FloatArray:
    """The distributions for logits ``[n, V]``: float32 ``[n, V]``.

    ``history`` is the token ids for the repetition penalty, the same for every row. Top-k and top-p
    also keep ties with the last kept token. Greedy is one-hot at the largest logit.
    """
    if sampling.repetition_penalty != 1:
        logits = penalise(logits, sampling.repetition_penalty, history)
    if sampling.greedy:
        best = logits.argmax(-1)[:, None]
        one_hot: FloatArray = (np.arange(logits.shape[1]) == best).astype(np.float32)
        return one_hot
    return np.stack([_distribution(row, sampling) for row in logits])


def draw(p: FloatArray, rng: np.random.Generator) -> int:
    """Draw one token from ``p [V]``, which need not sum to 1. Uses exactly one number of ``rng``."""
    # the inverse of the cumulative distribution, first over blocks: a tenth of the additions
    blocks = np.add.reduceat(p, np.arange(0, p.size, _BLOCK), dtype=np.float64).cumsum()
    mark = rng.random() * blocks[-1]
    block = int(blocks.searchsorted(mark, side="right"))
    within = p[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    mark -= blocks[block - 1] if block else 0
    # "right" skips tokens of probability 0; the second bound is for a mark rounded past the end
    token = min(within.searchsorted(mark, side="right"), within.searchsorted(within[-1]))
    return block * _BLOCK + int(token)


def gumbel_top_k(p: FloatArray, k: int, rng: np.random.Generator) -> list[int]:
    """Draw at most ``k`` tokens from ``p [V]`` without replacement; the result is in drawing order.

    Gumbel top-k: the tokens with the largest log p + Gumbel noise (Kool et al. 2019). This is the
    same as the smallest Exponential / p, which is computed here. Fewer where p has fewer tokens.
    """
    tokens = np.flatnonzero(p)
    arrivals = rng.exponential(size=tokens.size) / p[tokens]
    if k < tokens.size:
        first = np.argpartition(arrivals, k)[:k]
        tokens, arrivals = tokens[first], arrivals[first]
    found: list[int] = tokens[arrivals.argsort()].tolist()
    return found


def _distribution(logits: FloatArray, sampling: Sampling) -> FloatArray:
    """One row of ``probabilities``, ``[V]``. Sorts only the few candidates of the nucleus."""
    candidates = slice(None) if not sampling.top_k else top(logits, sampling.top_k)
    scores = logits[candidates] - logits.max()  # before dividing: no temperature can overflow
    p = np.exp(scores / np.float32(sampling.temperature))
    p /= p.sum()
    if sampling.top_p < 1:
        # all tokens below (1 - top_p) / V together have less than 1 - top_p: the nucleus is above
        nucleus = np.sort(p[p >= (1 - sampling.top_p) / p.size])[::-1]
        last = int(nucleus.cumsum(dtype=np.float64).searchsorted(sampling.top_p))
        p[p < nucleus[min(last, nucleus.size - 1)]] = 0
    p[p < sampling.min_p * p.max()] = 0
    distribution = np.zeros(logits.shape, dtype=np.float32)
    distribution[candidates] = p / p.sum()
    return distribution


def likeliest(logits: FloatArray, count: int) -> npt.NDArray[np.intp]:
    """Indices of the ``count`` largest of ``logits [V]``, the largest first; ties in any order."""
    found = top(logits, count)
    if found.size > count:
        found = found[np.argpartition(-logits[found], count - 1)[:count]]
    return found[np.argsort(-logits[found], kind="stable")]


def top(logits: FloatArray, count: int) -> npt.NDArray[np.intp]:
    """Indices of the ``count`` largest of ``logits [V]`` and of ties with the last, unordered."""
    if count >= logits.size:
        return np.arange(logits.size)
    # the count-th largest of the blocks' maxima is a lower bound, and leaves few to partition
    blocks = logits[: logits.size // _BLOCK * _BLOCK].reshape(-1, _BLOCK).max(-1)
    bound = np.partition(blocks, -count)[-count] if count <= blocks.size else -np.inf
    candidates = np.flatnonzero(logits >= bound)
    values = logits[candidates]
    largest: npt.NDArray[np.intp] = candidates[values >= np.partition(values, -count)[-count]]
    return largest
