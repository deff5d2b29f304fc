"""How fast a model would decode on a device that is not here: a recorded answer is decoded again, by
the loop, the drafters and the scheduler that decode real ones, on the clock of a device profile. Or on the clock of the
recording itself: then the scheduler must choose again what it chose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgespec.assemble import DraftModel, assemble
from edgespec.core.decoding import Step, decode
from edgespec.core.latency import LARGEST, LatencyCurve
from edgespec.core.runtime import FloatArray, Logits, ModelInfo, logit_rows
from edgespec.core.statistics import Statistics
from edgespec.device.profile import Profile
from edgespec.device.profile_files import read_profile
from edgespec.drafting.model_free import MODEL_FREE
from edgespec.drafting.ngram_cache import NgramCache
from edgespec.drafting.sources import Source
from edgespec.errors import UserError
from edgespec.runtimes import get
from edgespec.simulation.trace import Guesses, StepRecord, Trace, read_trace

_SIMULATED = ("none", "suffix", "hierarchy")
"""Drafters that need no model; the n-gram cache of hierarchy starts empty."""


class Clock:
    """A clock that moves only when ``now`` is set. In seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Replay:
    """A runtime whose logits are the recorded tokens, one-hot; a pass takes the time in ``curve``.

    A row after a wrong draft has the token that followed the right one: nobody reads it.
    """

    features: FloatArray | None = None

    def __init__(
        self, tokens: Sequence[int], curve: LatencyCurve | None, clock: Clock, info: ModelInfo
    ) -> None:
        self.info, self.length = info, 0
        self.tokens, self.curve = tokens, curve
        self._clock = clock

    def forward(
        self,
        tokens: Sequence[int],
        parents: Sequence[int] | None = None,
        *,
        logits: Logits = "all",
        features: bool = False,
    ) -> FloatArray:
        count = len(tokens)
        size = self.info.padded(count) if logits == "all" else count
        if self.curve is not None:
            self._clock.now += float(self.curve.at(self.length)[size - 1])
        first = count - logit_rows(logits, count)
        rows = np.zeros((count - first, self.info.vocab_size), np.float32)
        depths: list[int] = []
        for parent in range(-1, count - 1) if parents is None else parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 1)
        for row, depth in zip(rows, depths[first:], strict=True):
            self._fill(row, self.length + depth)
        return rows

    def keep(self, rows: Sequence[int]) -> None:
        self.length += len(rows)

    def truncate(self, length: int) -> None:
        self.length = length

    def close(self) -> None:
        pass

    def _fill(self, row: FloatArray, position: int) -> None:
        """Put the logits of the token at ``position`` into ``row``."""
        row[self.tokens[min(position, len(self.tokens) - 1)]] = 100.0


class ReplayDraft(Replay):
    """A draft model with recorded guesses, and their probabilities, from position ``begin`` on."""

    guesses = Guesses((), ())
    begin = 0

    def _fill(self, row: FloatArray, position: int) -> None:
        place = min(max(position - self.begin, 0), len(self.guesses.tokens) - 1)
        top = min(max(self.guesses.probabilities[place], 1e-6), 1 - 1e-6)
        row[:] = np.log((1 - top) / (len(row) - 1))
        row[self.guesses.tokens[place]] = np.log(top)


@dataclass(frozen=True)
class Prediction:
    """The speed of decoding recorded answers with a drafter on a device."""

    device: str
    drafter: str
    tokens_per_s: float
    speed_up: float
    """Against plain decoding on the same device."""
    block_efficiency: float
    acceptance_rate: float
    joules_per_token: float | None
    """``None`` where the profile does not say what power decoding draws."""


def simulate(profile_paths: Sequence[Path], trace_paths: Sequence[Path]) -> list[Prediction]:
    """Predict every drafter that traces and profiles describe, plain decoding first.

    Raises ``UserError`` where a file is not what it should be, or no profile is of the traces' model.
    """
    profiles = {str(p.model["name"]): p for p in map(read_profile, profile_paths)}
    traces = [read_trace(path) for path in trace_paths]
    models = sorted({trace.model for trace in traces})
    if len(models) > 1:
        raise UserError(
            f"the traces are of several models ({', '.join(models)}); give those of one"
        )
    if models[0] not in profiles:
        raise UserError(
            f"the traces are of {models[0]} and the profiles of {', '.join(profiles)}; "
            "give one that `edgespec tune` made for it"
        )
    profile = profiles[models[0]]
    drafts = sorted(set.intersection(*(set(trace.drafts) for trace in traces)) & set(profiles))
    found = []
    plain = 0.0
    for drafter in (*_SIMULATED, *drafts):
        stats = predict(
            traces,
            profile.curve,
            drafter,
            pass_sizes=profile.pass_sizes,
            draft_curve=_draft_curve(profiles[drafter]) if drafter in drafts else None,
        )
        rate = stats.decode_tokens_per_s
        plain = plain or rate
        found.append(
            Prediction(
                f"{profile.machine['cpu']}, {profile.runtime} {profile.device}",
                drafter,
                rate,
                rate / plain,
                stats.block_efficiency,
                stats.acceptance_rate,
                None if profile.power_w is None else profile.power_w / rate,
            )
        )
    return found


def _draft_curve(profile: Profile) -> LatencyCurve:
    return profile.draft_curve(get(profile.runtime).prefill_chunk)


def predict(
    traces: Sequence[Trace],
    curve: LatencyCurve,
    drafter: str,
    *,
    pass_sizes: Sequence[int] = (),
    draft_curve: LatencyCurve | None = None,
) -> Statistics:
    """The cost of decoding the answers of ``traces`` again, where passes take the times in ``curve``.

    ``drafter`` is one of ``MODEL_FREE`` or the name of a draft model that the traces have, whose passes then
    take the times in ``draft_curve``. Raises ``UserError`` where a trace or a curve is missing.
    """
    words = {word: None for trace in traces for word in (*trace.prompt, *trace.answer)}
    for trace in traces if drafter not in MODEL_FREE else ():
        if draft_curve is None or drafter not in trace.drafts:
            raise UserError(
                f"the draft model {drafter} has no guesses or no curve: record the trace with --draft, "
                "and give a profile that has the draft's passes"
            )
        words.update(dict.fromkeys(trace.drafts[drafter].tokens))
    id_of = {word: id for id, word in enumerate(words)}
    longest = max(len(trace.prompt) + len(trace.answer) for trace in traces)
    info = ModelInfo("", "", len(id_of) + 1, 1, longest + LARGEST, 1, "", "", tuple(pass_sizes))
    clock = Clock()
    target = Replay((), curve, clock, info)
    draft = ReplayDraft((), draft_curve or curve, clock, info)
    scheduler = assemble(
        drafter,
        info.vocab_size,
        curve,
        persistent=_empty_sources(drafter, info),
        model=None if draft_curve is None else DraftModel(draft, draft_curve),
        clock=clock,
    )
    total = Statistics(drafter=drafter, exact=bool(pass_sizes))
    for trace in traces:
        target.tokens = [id_of[word] for word in (*trace.prompt, *trace.answer)]
        if guesses := trace.drafts.get(drafter):
            ids = [id_of[token] for token in guesses.tokens]
            draft.guesses, draft.begin = Guesses(ids, guesses.probabilities), len(trace.prompt)
        context = list(target.tokens[: len(trace.prompt)])
        target.truncate(len(context) - 1)
        for step in decode(target, scheduler, context, max_tokens=len(trace.answer), clock=clock):
            total.add(step)
        if context != target.tokens:
            raise RuntimeError("the replay departed from the recorded answer")
    return total


def _empty_sources(drafter: str, info: ModelInfo) -> list[Source]:
    """The persistent sources of ``drafter`` on a machine where it answers for the first time."""
    has_cache = drafter in ("hierarchy", "ngram-cache", "auto") or drafter not in MODEL_FREE
    return [NgramCache(None, "", info.vocab_size)] if has_cache else []


@dataclass(frozen=True)
class Replayed:
    """A recorded answer, decoded again on its own clock."""

    steps: list[StepRecord]
    same: int
    """Steps, from the first on, whose choice is the recorded one."""
    statistics: Statistics


def replay(trace: Trace) -> Replayed:
    """Decode ``trace`` again on the clock of its recording, with the drafters that it was recorded with.

    Where drafters knew earlier answers (``Recording.fresh`` is false) choices may differ. Raises
    ``UserError`` for a trace without a recording, and for one of a draft model, whose passes in a step
    it does not have.
    """
    recording = trace.recording
    if recording is None:
        raise UserError(
            f"the trace of {trace.model} has no pass times: record it again with `edgespec generate "
            "--trace`, or give --device-profile"
        )
    if recording.draft not in (*MODEL_FREE, "auto") or trace.drafts:
        raise UserError(
            "a trace of a draft model cannot be replayed on its own clock; give --device-profile"
        )
    info = ModelInfo(
        trace.model,
        "",
        recording.vocab_size,
        1,
        recording.context,
        1,
        "",
        "",
        tuple(recording.pass_sizes),
        max_rows=recording.max_rows,
        trees=recording.trees,
    )
    target = Replay([*trace.prompt, *trace.answer], None, Clock(), info)
    scheduler = assemble(
        recording.draft,
        info.vocab_size,
        recording.curve,
        persistent=_empty_sources(recording.draft, info),
    )
    context = list(trace.prompt)
    target.truncate(len(context) - 1)
    times = _recorded_times(recording.steps)
    found: list[Step] = []
    for step in decode(
        target, scheduler, context, max_tokens=len(trace.answer), clock=times.__next__
    ):
        found.append(step)
    steps, statistics = [StepRecord.of(step) for step in found], Statistics(drafter=scheduler.name)
    for step in found:
        statistics.add(step)
    same = 0
    for mine, recorded in zip(steps, recording.steps, strict=False):
        if mine.choice != recorded.choice:
            break
        same += 1
    return Replayed(steps, same, statistics)


def _recorded_times(steps: Sequence[StepRecord]) -> Iterator[float]:
    """What the decoding loop's clock shows: when a step begins, has a draft, has its pass, and ends.

    Steps beyond the recorded ones take no time.
    """
    now = 0.0
    for step in steps:
        yield now
        for seconds in (step.draft_s, step.pass_s, step.overhead_s):
            now += seconds
            yield now
    while True:
        yield now
