from __future__ import annotations

import numpy as np
import pytest

from edgespec.core.sampling import Sampling, draw, penalise, probabilities
from edgespec.errors import UserError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (3, 1000)).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    out: np.ndarray = e / e.sum(-1, keepdims=True)
    return out


def by_the_book(logits: np.ndarray, s: Sampling, history: list[int]) -> np.ndarray:
    """Hugging Face's processors and warpers in their order, one token at a time."""
    out = []
    for row in logits.astype(np.float64):
        scores = row.copy()
        for token in set(history):
            scores[token] *= s.repetition_penalty if scores[token] < 0 else 1 / s.repetition_penalty
        scores /= s.temperature
        order = np.argsort(-scores)
        if s.top_k:
            scores[order[s.top_k :]] = -np.inf
        p, mass = softmax(scores), 0.0
        for token in order:
            if mass >= s.top_p:
                scores[token] = -np.inf
            mass += p[token]
        p = softmax(scores)
        scores[p < s.min_p * p.max()] = -np.inf
        out.append(softmax(scores))
    return np.array(out)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 400, 5000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.2, 0.001])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_equals_the_definition(
    temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    s = Sampling(temperature, top_k, top_p, min_p, penalty)
    history = [3, 5, 5, 900]
    before = LOGITS.copy()
    got = probabilities(LOGITS, s, history)
    assert got.dtype == np.float32
    assert got.shape == LOGITS.shape
    np.testing.assert_allclose(got, by_the_book(LOGITS, s, history), atol=2e-6)
    assert (before == LOGITS).all()


def test_greedy_is_one_hot_and_the_lowest_id_wins_a_tie() -> None:
    logits = np.array([[0, 5, 5, 1]], dtype=np.float32)
    assert probabilities(logits, Sampling()).tolist() == [[0, 1, 0, 0]]
    assert Sampling(temperature=1e-9).greedy
    assert not Sampling(temperature=0.01).greedy


def test_a_cold_temperature_neither_overflows_nor_differs_from_greedy() -> None:
    p = probabilities(LOGITS * 1000, Sampling(temperature=1e-5))
    assert np.isfinite(p).all()
    assert p.argmax(-1).tolist() == LOGITS.argmax(-1).tolist()


def test_ties_at_the_edge_of_top_k_and_top_p_are_all_kept() -> None:
    logits = np.zeros((1, 300), dtype=np.float32)
    assert (probabilities(logits, Sampling(1.0, top_k=5)) > 0).all()
    assert (probabilities(logits, Sampling(1.0, top_p=0.1)) > 0).all()


def test_penalty_lowers_what_was_said_once_however_often_it_was_said() -> None:
    logits = np.array([[2.0, -2.0, 1.0]], dtype=np.float32)
    assert penalise(logits, 2.0, [0, 1, 0, 0]).tolist() == [[1.0, -4.0, 1.0]]
    assert penalise(logits, 2.0, []).tolist() == logits.tolist()


def test_draw_follows_the_distribution_and_never_gives_the_impossible() -> None:
    p = np.zeros(1000, dtype=np.float32)
    p[[0, 63, 64, 700, 999]] = [0.1, 0.2, 0.3, 0.15, 0.25]
    rng = np.random.default_rng(1)
    counts = np.bincount([draw(p, rng) for _ in range(20000)], minlength=1000) / 20000
    assert counts[p == 0].sum() == 0
    assert np.abs(counts - p).sum() / 2 < 0.015


@pytest.mark.parametrize("u", [0.0, 0.5, np.nextafter(1.0, 0.0)])
def test_draw_at_the_edges_of_the_unit_interval(u: float) -> None:
    class Fixed:
        def random(self) -> float:
            return u

    for size in (1, 63, 64, 65, 1000):
        for support in ([0], [size - 1], [0, size - 1], [size // 2]):
            p = np.zeros(size, dtype=np.float32)
            p[support] = 1 / 3
            assert draw(p, Fixed()) in support  # type: ignore[arg-type]


def test_draw_uses_one_number_of_the_generator() -> None:
    a, b = np.random.default_rng(3), np.random.default_rng(3)
    draw(LOGITS[0] ** 2, a)
    b.random()
    assert a.random() == b.random()


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_a_users_error(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
