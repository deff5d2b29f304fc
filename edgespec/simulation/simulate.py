"""How fast a model would decode on a device that is not here: a recorded answer is decoded again, by
the loop and the scheduler that decode real ones, against the clock of a device profile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.core.decoding import decode
from edgespec.core.drafter import Drafter
from edgespec.core.latency import LatencyModel
from edgespec.core.runtime import FloatArray, Logits, ModelInfo, Runtime
from edgespec.core.scheduler import Scheduler
from edgespec.core.statistics import Statistics
from edgespec.device.profile import LARGEST, LatencyCurve
from edgespec.device.profile_files import read_profile
from edgespec.drafting.model import ModelDrafter
from edgespec.drafting.model_free import MODEL_FREE, model_free
from edgespec.errors import UserError

_LARGEST_FILE = 64 << 20
_MAX_TOKENS = 1 << 20
_VERSION = 1
_FORETOLD = ("none", "suffix")
"""Drafters that need no model, and nothing but the words."""


@dataclass(frozen=True)
class Guesses:
    """What a draft model would have said at each place of an answer, given all before it."""

    tokens: Sequence[int]
    probabilities: Sequence[float]
    """Its own, of each of them."""


@dataclass(frozen=True)
class Trace:
    """A recorded answer: enough to decode it again with other drafts, on another device's clock.

    It holds the token ids of the prompt and of the answer, and so what was said.
    """

    model: str
    prompt: Sequence[int]
    answer: Sequence[int]
    drafts: Mapping[str, Guesses] = field(default_factory=dict)
    """By the draft model's name."""


class Clock:
    """A clock that stands still unless it is told how long something took. In seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Replay:
    """A runtime that says what was recorded, each pass in the time that ``curve`` gives it.

    Rows are one-hot. A row after a wrong draft says what followed the right one: nobody reads it.
    """

    def __init__(
        self, tokens: Sequence[int], curve: LatencyCurve, clock: Clock, info: ModelInfo
    ) -> None:
        self.info, self.length = info, 0
        self.tokens, self.curve = tokens, curve
        self._clock = clock

    def forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None = None, *, logits: Logits = "all"
    ) -> FloatArray:
        count = len(tokens)
        size = self.info.padded(count) if logits == "all" else count
        self._clock.now += float(self.curve.at(self.length)[size - 1])
        first = {"all": 0, "last": count - 1, "none": count}[logits]
        rows = np.zeros((count - first, self.info.vocab_size), np.float32)
        for i, row in enumerate(rows, self.length + 1 + first):
            self._fill(row, i)
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
    """A draft model that guesses as recorded from position ``begin`` on, as sure of it as it was."""

    guesses = Guesses((), ())
    begin = 0

    def _fill(self, row: FloatArray, position: int) -> None:
        place = min(max(position - self.begin, 0), len(self.guesses.tokens) - 1)
        top = min(max(self.guesses.probabilities[place], 1e-6), 1 - 1e-6)
        row[:] = np.log((1 - top) / (len(row) - 1))
        row[self.guesses.tokens[place]] = np.log(top)


def record(
    model: str, prompt: Sequence[int], answer: Sequence[int], drafters: Sequence[Drafter]
) -> Trace:
    """The trace of an answer, which the draft models among ``drafters`` read once."""
    guesses = {}
    for drafter in drafters:
        if isinstance(drafter, ModelDrafter) and drafter.vocabulary.same:
            drafter.forget()
            guesses[drafter.name] = _guesses(drafter.runtime, prompt, answer)
    return Trace(model, list(prompt), list(answer), guesses)


def _guesses(draft: Runtime, prompt: Sequence[int], answer: Sequence[int]) -> Guesses:
    ids = draft.info.token_ids or range(draft.info.vocab_size)
    tokens, probabilities = [], []
    whole, first = [*prompt, *answer][: draft.info.context], len(prompt) - 1
    count = draft.info.max_rows
    draft.truncate(0)
    for start in range(0, len(whole) - 1, count):
        chunk = whole[start : min(start + count, len(whole) - 1)]
        rows = draft.forward(chunk, logits="all")
        draft.keep(range(len(chunk)))
        for row in rows[max(first - start, 0) :]:
            best = int(row.argmax())
            tokens.append(int(ids[best]))
            probabilities.append(1 / float(np.exp(row - row[best]).sum()))
    draft.truncate(0)
    beyond = len(answer) - len(tokens)  # its context is shorter: there it drafts nothing right
    return Guesses(tokens + [0] * beyond, probabilities + [0.0] * beyond)


def write_trace(trace: Trace, path: Path) -> None:
    """Write ``trace`` as JSON; ``UserError`` where that fails or ``path`` exists."""
    text = json.dumps({"version": _VERSION, **asdict(trace)}) + "\n"
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{path} exists; name another file for the trace") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file") from error


def read_trace(path: Path) -> Trace:
    """Read what ``write_trace`` wrote. ``UserError`` where it is not that."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"it is larger than {_LARGEST_FILE >> 20} MiB")
        found = json.loads(path.read_text("utf-8"))
        if found["version"] != _VERSION:
            raise ValueError(f"its version is {found['version']!r}, not {_VERSION}")
        prompt, answer = _ids(found["prompt"]), _ids(found["answer"])
        drafts = {
            str(name): Guesses(_ids(guesses["tokens"]), _chances(guesses["probabilities"]))
            for name, guesses in found["drafts"].items()
        }
        if not prompt or not answer:
            raise ValueError("it has no prompt or no answer")
        for name, guesses in drafts.items():
            if not len(guesses.tokens) == len(guesses.probabilities) == len(answer):
                raise ValueError(f"{name} has not as many guesses as the answer has tokens")
        return Trace(str(found["model"]), prompt, answer, drafts)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a trace of `edgespec generate --trace`: {error}") from error


def _ids(values: Any) -> list[int]:
    if not isinstance(values, list) or len(values) > _MAX_TOKENS:
        raise ValueError("its tokens are no list, or too many")
    if not all(type(value) is int and 0 <= value < 1 << 31 for value in values):
        raise ValueError("a token is no id")
    return values


def _chances(values: Any) -> list[float]:
    chances = [float(value) for value in values]
    if not all(0 <= chance <= 1 for chance in chances):
        raise ValueError("a probability is not between 0 and 1")
    return chances


@dataclass(frozen=True)
class Prediction:
    """What decoding recorded answers with a drafter would be like on a device."""

    device: str
    drafter: str
    tokens_per_s: float
    speed_up: float
    """Of plain decoding, on the same device."""
    block_efficiency: float
    acceptance_rate: float
    joules_per_token: float | None
    """``None`` where the profile does not say what power decoding draws."""


def simulate(profile_paths: Sequence[Path], trace_paths: Sequence[Path]) -> list[Prediction]:
    """Predict every drafter that the traces and the profiles tell of, plain decoding first.

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
    for drafter in (*_FORETOLD, *drafts):
        stats = predict(
            traces,
            profile.curve,
            drafter,
            pass_sizes=profile.pass_sizes,
            draft_curve=profiles[drafter].draft_curve() if drafter in drafts else None,
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


def predict(
    traces: Sequence[Trace],
    curve: LatencyCurve,
    drafter: str,
    *,
    pass_sizes: Sequence[int] = (),
    draft_curve: LatencyCurve | None = None,
) -> Statistics:
    """What decoding the answers of ``traces`` again would cost where passes take what ``curve`` says.

    ``drafter`` is none, suffix or the name of a draft model that the traces have, whose passes then
    take what ``draft_curve`` says. Raises ``UserError`` where a trace or a curve is missing.
    """
    words = {word: None for trace in traces for word in (*trace.prompt, *trace.answer)}
    for trace in traces if drafter not in MODEL_FREE else ():
        if draft_curve is None or drafter not in trace.drafts:
            raise UserError(
                f"nothing tells how {drafter} would draft: record the trace with --draft, "
                "and give a profile that has the draft's passes"
            )
        words.update(dict.fromkeys(trace.drafts[drafter].tokens))
    id_of = {word: id for id, word in enumerate(words)}
    longest = max(len(trace.prompt) + len(trace.answer) for trace in traces)
    info = ModelInfo("", "", len(id_of) + 1, 1, longest + LARGEST, 1, "", "", tuple(pass_sizes))
    clock = Clock()
    target = Replay((), curve, clock, info)
    draft = ReplayDraft((), draft_curve or curve, clock, info)
    drafters = model_free(drafter, info.vocab_size)
    if drafter not in MODEL_FREE:
        drafters = [ModelDrafter(draft, info.vocab_size, LatencyModel(draft_curve), clock=clock)]
    scheduler = Scheduler(drafters, LatencyModel(curve))
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
            raise RuntimeError("the replay said something else than the recording")
    return total
