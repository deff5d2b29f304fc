"""Measuring, on a clock that stands still but for what passes cost, and on a real model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgespec.core.runtime import FloatArray, Logits
from edgespec.device import measuring, profile, profile_files
from edgespec.device.measuring import (
    LENGTHS,
    ROWS,
    measure_curve,
    measure_profile,
    memory_bandwidth,
    robust,
)
from edgespec.device.profile import Setup
from edgespec.runtimes import get
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.memory_runtime import MemoryRuntime

Cost = Callable[[int, int], float]
SETUP = Setup("0" * 64, "onnx", "1", "cpu", True, 2, {"cpu": "A CPU", "power": "mains"})


class Timed(MemoryRuntime):
    """Passes take what ``cost`` says of their size, padding included, and of the tokens before."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, cost: Cost, pass_sizes: Sequence[int] = ()
    ) -> None:
        super().__init__(pass_sizes=pass_sizes)
        self.cost, self.now = cost, 1000.0
        self.timed: list[tuple[int, int]] = []
        monkeypatch.setattr(measuring, "perf_counter", lambda: self.now)

    def forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None = None, *, logits: Logits = "all"
    ) -> FloatArray:
        if logits == "all":
            size = self.info.padded(len(tokens))
            self.timed.append((self.length, size))
            self.now += self.cost(size, self.length)
        else:
            self.now += len(tokens) / 80  # a chunk of a prompt
        return super().forward(tokens, parents, logits=logits)


def bumpy(size: int, length: int) -> float:
    """Odd sizes cost more than even ones, as do longer caches."""
    return 0.03 + 0.006 * (size + size % 2) + 1e-6 * length * size


def test_the_curve_is_what_passes_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Timed(monkeypatch, bumpy)
    curve = measure_curve(runtime)
    assert curve.rows == ROWS
    assert curve.lengths[0] == LENGTHS[0]
    assert len(curve.lengths) == len(LENGTHS)
    for length, seconds in zip(curve.lengths, curve.seconds, strict=True):
        expected = [bumpy(size, length) for size in ROWS]
        assert seconds == pytest.approx(expected, rel=1e-3)
    assert np.allclose(curve.spread, 0)
    assert runtime.now - 1000 < 1.1 * measuring.FULL_S


def test_every_size_is_timed_several_times_at_the_first_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = Timed(monkeypatch, lambda size, length: bumpy(size, length) / 2)
    measure_curve(runtime)
    for size in ROWS:
        assert runtime.timed.count((LENGTHS[0], size)) >= 3
    assert {size for _, size in runtime.timed[: len(ROWS)]} == set(ROWS)
    following = [size for _, size in runtime.timed[len(ROWS) : 2 * len(ROWS)]]
    assert sorted(following) == sorted(ROWS) != following


def test_a_machine_that_slows_down_does_not_look_like_a_curve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flat = Timed(monkeypatch, lambda size, length: 0.03 * (1 + 0.02 * (flat.now - 1000)))
    curve = measure_curve(flat)
    seconds = np.array(curve.seconds)[:, [rows <= 16 for rows in curve.rows]]
    assert seconds.max() / seconds.min() < 1.12  # it became 1.36 times as slow meanwhile


def test_outliers_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)

    def hiccup(size: int, length: int) -> float:
        return 0.002 * size + (1.0 if rng.random() < 0.05 else 0.0)

    curve = measure_curve(Timed(monkeypatch, hiccup), rows=(1, 2, 4, 8), lengths=(64,))
    assert curve.seconds[0] == pytest.approx((0.002, 0.004, 0.008, 0.016))
    assert np.allclose(curve.spread, 0)


def test_noise_shows_in_the_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    runtime = Timed(monkeypatch, lambda size, length: 0.02 * rng.uniform(0.8, 1.2))
    assert np.median(measure_curve(runtime).spread) > 0.1


def test_padded_sizes_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Timed(monkeypatch, bumpy, pass_sizes=(2, 4, 8, 16))
    curve = measure_curve(runtime)
    assert curve.rows == (2, 4, 8, 16, 17, 20, 24, 32)
    assert curve.seconds[0][:2] == pytest.approx((bumpy(2, 64), bumpy(4, 64)))


def test_where_time_is_short_few_sizes_are_timed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Timed(monkeypatch, lambda size, length: 8 * bumpy(size, length))
    curve = measure_curve(runtime)
    assert 4 <= len(curve.rows) < len(ROWS)
    for size in curve.rows:
        assert runtime.timed.count((LENGTHS[0], size)) >= 4


def test_noise_shows_where_there_was_time_for_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    runtime = Timed(monkeypatch, lambda size, length: 2.5 * rng.uniform(0.8, 1.2))
    assert min(measure_curve(runtime).spread[0]) > 0


@pytest.mark.parametrize("slowness", [1, 10, 100])
def test_slow_machines_measure_less(monkeypatch: pytest.MonkeyPatch, slowness: float) -> None:
    def slow(size: int, length: int) -> float:
        return slowness * bumpy(size, length)

    for quick, at_most in ((True, 2.0), (False, 1.1 * measuring.FULL_S)):
        runtime = Timed(monkeypatch, slow)
        found = measure_profile(runtime, SETUP, quick=quick)
        two_each = 2 * sum(slow(size, 64) for size in found.curve.rows[:2])
        assert runtime.now - 1000 < max(at_most, two_each + 3)
        assert found.curve.rows[:2] in ((1, 2), (1, 4))
        for size, seconds in zip(found.curve.rows, found.curve.seconds[0], strict=True):
            assert seconds == pytest.approx(slow(size, found.curve.lengths[0]))
        assert 0 < found.prefill_tokens_per_s < 1000


def test_nothing_stays_in_the_cache() -> None:
    runtime = MemoryRuntime(context=200)
    runtime.forward([1, 2, 3, 4, 5])
    runtime.keep(range(5))
    for quick in (True, False):
        found = measure_profile(runtime, SETUP, quick=quick, budget_s=2.0)
        assert runtime.tokens == [1, 2, 3, 4, 5]
        assert found.curve.lengths[0] == (5 if quick else 64)
        assert all(length + 32 <= 200 for length in found.curve.lengths)


@pytest.mark.parametrize("context", [1, 2, 20, 40, 97])
def test_small_contexts(context: int) -> None:
    runtime = MemoryRuntime(context=context, pass_sizes=())
    curve = measure_curve(runtime, budget_s=2.0)
    assert curve.rows == tuple(size for size in ROWS if size <= context)
    assert curve.lengths == (min(64, context - max(curve.rows)),)
    assert runtime.length == 0
    measure_profile(runtime, SETUP, quick=True)
    assert runtime.length == 0


@pytest.mark.parametrize("after", [0, 1, 5, 30, 60])
def test_interrupted_it_leaves_the_cache_as_it_was(
    monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    runtime = Timed(monkeypatch, bumpy)
    runtime.forward([1, 2, 3])
    runtime.keep(range(3))

    def interrupt(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        nonlocal after
        after -= 1
        if after < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_curve(runtime, progress=interrupt)
    assert runtime.tokens == [1, 2, 3]
    runtime.forward([4])
    runtime.keep([0])
    assert runtime.tokens == [1, 2, 3, 4]


def test_a_real_model_says_the_same_after_it(smollm2: Path, smollm2_onnx: Path) -> None:
    runtime = OnnxRuntime(smollm2_onnx, context=256)
    try:
        before = runtime.forward([1, 2, 3]).copy()
        setup = profile.setup(smollm2, get("onnx"))
        found = measure_profile(runtime, setup, quick=True)
        assert runtime.length == 0
        assert np.array_equal(runtime.forward([1, 2, 3]), before)
    finally:
        runtime.close()
    assert found.quick
    assert found.curve.lengths == (0,)
    assert found.curve.rows[0] == runtime.info.padded(1)
    assert found.setup == setup
    assert found.pass_sizes == runtime.info.pass_sizes
    assert profile_files._parse(profile_files.dumps(found)) == found


def test_robust() -> None:
    assert robust([1.0]) == (1.0, 0.0)
    assert robust([1.0, 1.02, 0.98, 1.0, 9.0])[0] == pytest.approx(1.0)
    middle, spread = robust(np.linspace(1, 2, 11).tolist())
    assert (middle, spread) == pytest.approx((1.5, 0.8 / 1.5))


def test_the_fastest_sweep_over_memory_gives_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([0.0, 0.5, 1.0, 1.25, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5])  # the second is fastest
    monkeypatch.setattr(measuring, "perf_counter", lambda: next(readings))
    assert memory_bandwidth(2) == 2**28 / 0.25
