"""Recorded answers, decoded again by the real loop on the clock of a profile."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.assemble import DraftModel, assemble
from edgespec.core.decoding import decode
from edgespec.core.latency import LatencyCurve, LatencyModel
from edgespec.device.profile_files import dumps
from edgespec.drafting.model import ModelDrafter
from edgespec.drafting.ngram_cache import NgramCache
from edgespec.errors import UserError
from edgespec.simulation.simulate import predict, replay, simulate
from edgespec.simulation.trace import (
    Guesses,
    Recording,
    StepRecord,
    Trace,
    read_trace,
    record,
    write_trace,
)
from tests.device.test_profile import PROFILE
from tests.memory_runtime import MemoryRuntime

ROWS = tuple(range(1, 17))


def curve(slope: float, start: float = 0.01) -> LatencyCurve:
    seconds = tuple(start * (1 + slope * (n - 1)) for n in ROWS)
    return LatencyCurve(ROWS, (0,), (seconds,), ((0.0,) * len(ROWS),))


def song(count: int) -> list[int]:
    """0, 1, 2, 3, 4, 0, … and now and then something else."""
    rng = np.random.default_rng(0)
    return [n % 5 if rng.random() < 0.95 else int(rng.integers(5, 90)) for n in range(count)]


SONG = Trace("tiny", song(40), song(400)[40:])


def test_plain_decoding_takes_a_pass_a_token() -> None:
    found = predict([SONG, SONG], curve(0.1), "none")
    assert (found.target_passes, found.generated_tokens) == (720, 720)
    assert found.decode_s == pytest.approx(7.2)


def test_a_flat_curve_gains_and_a_steep_one_does_not_lose() -> None:
    plain = predict([SONG], curve(0.1), "none").decode_s
    assert predict([SONG], curve(0.1), "suffix").decode_s < plain / 1.5
    assert predict([SONG], curve(1.0), "suffix").decode_s == pytest.approx(plain, rel=0.01)
    padded = predict([SONG], curve(0.1), "none", pass_sizes=(4, 8, 16))
    assert padded.decode_s == pytest.approx(1.3 * plain)


def test_a_recorded_draft_model_is_predicted_as_it_was() -> None:
    """The replay accepts and rejects what the model itself did, on the same clock."""
    costs = [LatencyModel(curve(0.1)), LatencyModel(curve(0.3, 0.001))]
    target = MemoryRuntime(vocab_size=30, period=5, pass_sizes=(), seed=1)
    draft = MemoryRuntime(vocab_size=30, period=5, pass_sizes=(), seed=2)

    class Frozen(LatencyModel):
        """As the curve says, whatever this machine does."""

        def record(self, size: int, seconds: float, length: int = 0) -> None:
            pass

    frozen = [Frozen(cost._curve) for cost in costs]
    scheduler = assemble(
        "memory",
        30,
        curve(0.1),
        persistent=[NgramCache(None, "", 30)],
        model=DraftModel(draft, curve(0.3, 0.001)),
    )
    drafter = scheduler.drafters[-1]
    assert isinstance(drafter, ModelDrafter)
    scheduler.latency, drafter.follower.costs = frozen
    context = [0, 1, 2, 3, 4, 0, 1]
    steps = list(decode(target, scheduler, context, max_tokens=300))
    trace = record("tiny", context[:7], context[7:], [drafter])
    found = predict([trace], curve(0.1), "memory", draft_curve=curve(0.3, 0.001))
    assert found.generated_tokens == 300
    for name in (
        "drafted",
        "accepted",
        "draft_passes",
    ):  # but for passes that only look at plain ones
        real = sum(getattr(step, name) for step in steps)
        assert getattr(found, name) == pytest.approx(real, rel=0.03)
    assert found.accepted > 100
    again = [*decode(target, scheduler, context, max_tokens=20)]
    assert sum(len(step.tokens) for step in again) == 20, "recording leaves the drafter usable"


def test_a_trace_is_read_as_it_was_written_and_never_over_another_file(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    trace = replace(SONG, drafts={"d": Guesses(SONG.answer, [0.5] * len(SONG.answer))})
    write_trace(trace, path)
    assert read_trace(path) == trace
    with pytest.raises(UserError, match="exists"):
        write_trace(SONG, path)
    with pytest.raises(UserError, match="cannot write"):
        write_trace(SONG, tmp_path / "absent" / "t.json")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"prompt": []},
        {"answer": "abc"},
        {"answer": [1, -1]},
        {"answer": [1.5]},
        {"answer": [True]},
        {"drafts": []},
        {"drafts": {"d": {"tokens": [1], "probabilities": [0.5]}}},
        {"drafts": {"d": {"tokens": [1, 2], "probabilities": [0.5, 7]}}},
        {"drafts": {"d": {"tokens": [1, 2], "probabilities": [0.5, None]}}},
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "t.json"
    write_trace(Trace("m", [1], [2, 3]), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="not a trace") as error:
        read_trace(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_other_files_are_no_traces(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="not a trace"):
        read_trace(path)


def profiles(folder: Path, *names: str, **more: Any) -> list[Path]:
    paths = []
    for i, name in enumerate(names):
        own = curve(0.1, 0.01 if i == 0 else 0.001)
        model = {**PROFILE.model, "name": name}
        more = {"pass_sizes": (), "prefill_tokens_per_s": 5000.0, **more}
        profile = replace(PROFILE, model=model, curve=own, **more)
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(dumps(profile))
    return paths


def test_every_drafter_that_the_files_tell_of_is_simulated(tmp_path: Path) -> None:
    trace = replace(SONG, drafts={"d": Guesses(SONG.answer, [0.9] * len(SONG.answer))})
    write_trace(trace, tmp_path / "trace")
    found = simulate(profiles(tmp_path, "tiny", "d"), [tmp_path / "trace"])
    assert [one.drafter for one in found] == ["none", "suffix", "hierarchy", "d"]
    assert found[0].tokens_per_s == pytest.approx(100)
    assert found[3].speed_up > found[1].speed_up > found[0].speed_up == 1
    assert found[3].speed_up > found[2].speed_up
    assert found[3].acceptance_rate > found[2].acceptance_rate
    assert {one.joules_per_token for one in found} == {None}
    [energetic, *_] = simulate(profiles(tmp_path, "tiny", power_w=5.0), [tmp_path / "trace"])
    assert energetic.joules_per_token == pytest.approx(0.05)


def test_profiles_and_traces_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_trace(SONG, tmp_path / "a")
    write_trace(replace(SONG, model="other"), tmp_path / "b")
    with pytest.raises(UserError, match=r"of tiny and the profiles of else.*edgespec tune"):
        simulate(profiles(tmp_path, "else"), [tmp_path / "a"])
    with pytest.raises(UserError, match="several models"):
        simulate(profiles(tmp_path, "tiny"), [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UserError, match="the draft model d has no guesses or no curve"):
        predict([SONG], curve(0.1), "d")


@pytest.mark.parametrize("draft", ["none", "suffix", "hierarchy"])
@pytest.mark.parametrize("pass_sizes", [(2, 4, 6, 8, 16), ()])
def test_a_recorded_answer_is_replayed_with_the_same_choices(
    draft: str, pass_sizes: tuple[int, ...], tmp_path: Path
) -> None:
    """On the clock of its own passes, whatever they took here; chains and trees."""
    target = MemoryRuntime(vocab_size=30, period=7, pass_sizes=pass_sizes, seed=3)
    persistent = [NgramCache(None, "", 30)] if draft == "hierarchy" else []
    scheduler = assemble(draft, 30, curve(0.05), persistent=persistent)
    context = [0, 1, 2, 3, 4, 5, 6, 0, 1]
    prompt = list(context)
    steps = [StepRecord.of(s) for s in decode(target, scheduler, context, max_tokens=200)]
    if draft != "none":
        assert sum(len(step.tokens) for step in steps) > 50
    recording = Recording.of(draft, target.info, curve(0.05), steps, fresh=True)
    write_trace(
        Trace("tiny", prompt, context[len(prompt) :], {}, recording), tmp_path / "trace.json"
    )
    found = replay(read_trace(tmp_path / "trace.json"))
    assert found.same == len(found.steps) == len(steps)
    assert found.statistics.decode_s == pytest.approx(
        sum(s.draft_s + s.pass_s + s.overhead_s for s in steps)
    )
    slower = replace(recording, curve=curve(3.0))
    other = replay(Trace("tiny", prompt, context[len(prompt) :], {}, slower))
    assert draft == "none" or other.same < len(steps), "the curve decides"


def test_a_trace_without_pass_times_is_not_replayed() -> None:
    with pytest.raises(UserError, match="record it again"):
        replay(SONG)


def test_a_trace_of_version_1_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(
        '{"version": 1, "model": "tiny", "prompt": [1], "answer": [2, 3], "drafts": {}}'
    )
    assert read_trace(path) == Trace("tiny", [1], [2, 3])


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 2},
        {"vocab_size": 0},
        {"steps": []},
        {"steps": [{"drafter": "x"}]},
        {"pass_sizes": [4, 2]},
        {"pass_sizes": [0]},
        {"curve": {"rows": [1], "lengths": [0], "seconds": [[0.0]], "spread": [[0.0]]}},
        {"curve": {"rows": [2, 1], "lengths": [0], "seconds": [[1, 1]], "spread": [[0, 0]]}},
        {"curve": {"rows": [1], "lengths": [0], "seconds": [[1, 2]], "spread": [[0.0]]}},
        {"max_rows": 1 << 40},
    ],
)
def test_a_recording_that_cannot_be_replayed_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    info = MemoryRuntime(vocab_size=30).info
    step = StepRecord("none", [], None, 0.0, 0.01, 0.0)
    recording = Recording.of("none", info, curve(0.1), [step], fresh=True)
    path = tmp_path / "t.json"
    write_trace(Trace("m", [1], [2, 3], {}, recording), path)
    assert replay(read_trace(path)).same == 1
    found = json.loads(path.read_text())
    found["recording"].update(change)
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match="not a trace"):
        read_trace(path)
