"""The draft model's cache follows the context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgespec.core.latency import LatencyModel
from edgespec.core.runtime import FloatArray
from edgespec.drafting.cascade import Cascade
from edgespec.drafting.follower import CacheFollower
from tests.memory_runtime import MemoryRuntime

CHUNK = 32


class PerPass(LatencyModel):
    """Every pass takes 2 seconds."""

    def seconds(self, size: int, length: int = 0) -> float:
        return 2.0


def following(cascade: bool = False, readable: int = 12) -> tuple[CacheFollower, MemoryRuntime]:
    runtime = MemoryRuntime(pass_sizes=())
    prompt_lookup = Cascade() if cascade else None
    return CacheFollower(runtime, PerPass(), readable, lambda: 0.0, prompt_lookup), runtime


def catch_up(follower: CacheFollower, context: Sequence[int]) -> FloatArray:
    follower.start_step(context, len(context), 1.0)
    follower.missing(context)
    return follower.catch_up(context, len(context), 2)


def expected(runtime: MemoryRuntime, context: Sequence[int]) -> FloatArray:
    return runtime.logits_after([(token, 0) for token in context])


def test_only_what_the_cache_lacks_is_evaluated() -> None:
    follower, runtime = following()
    context = [1, 2, 3, 4]
    np.testing.assert_array_equal(catch_up(follower, context), expected(runtime, context))
    follower.extend(context, [5], 0)
    follower.extend(context, [5, 6], 0)
    follower.end_draft()
    context += [5, 7]  # 6 was rejected
    follower.start_step(context, len(context), 1.0)
    assert follower.missing(context) == 1
    row = follower.catch_up(context, len(context), 2)
    np.testing.assert_array_equal(row, expected(runtime, context))
    assert runtime.passes == [4, 1, 1, 1]
    assert runtime.tokens == context


def test_a_changed_context_is_read_from_where_it_differs() -> None:
    follower, runtime = following()
    catch_up(follower, [1, 2, 3, 4])
    follower.begin(new_context=True)
    follower.start_step(other := [1, 2, 9, 4], 0, 1.0)
    assert follower.missing(other) == 2
    catch_up(follower, other)
    assert runtime.tokens == other


def test_an_unstable_context_is_compared_again() -> None:
    """A context in another tokenizer's tokens changes at its end without a new prompt."""
    follower, _ = following()
    catch_up(follower, [1, 2, 3, 4])
    follower.start_step(changed := [1, 8, 3, 4, 5], 1, 1.0)
    assert follower.missing(changed) == 4


def test_ids_beyond_the_readable_ones_are_replaced() -> None:
    follower, runtime = following(readable=6)
    catch_up(follower, [1, 11, 6])
    assert runtime.tokens == [1, 5, 5]


def test_a_prompt_counts_no_passes_and_no_step_time() -> None:
    follower, runtime = following()
    catch_up(follower, [1] * (CHUNK + 2))
    assert runtime.passes == [CHUNK, 1, 1]
    assert follower.passes == 1
    assert follower.step_s == 2.0


def test_guesses_of_prompt_lookup_save_passes() -> None:
    follower, runtime = following(cascade=True)
    context = [1, 2, 3, 4, 5, 6, 1, 2]
    catch_up(follower, context)
    row = follower.extend(context, [3], 6)
    np.testing.assert_array_equal(row, expected(runtime, [*context, 3]))
    assert follower.is_evaluated(4)
    passes = len(runtime.passes)
    row = follower.extend(context, [3, 4], 6)
    np.testing.assert_array_equal(row, expected(runtime, [*context, 3, 4]))
    assert len(runtime.passes) == passes


def test_draft_times_follow_the_targets_while_the_draft_does_not_run() -> None:
    follower, _ = following()
    catch_up(follower, [1, 2])
    assert follower.pass_seconds(1) == 2.0
    follower.start_step([1, 2, 3], 3, 0.25)
    assert follower.pass_seconds(1) == pytest.approx(0.5)
