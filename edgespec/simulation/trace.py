"""Traces: recorded answers, to be decoded again with other drafters or on another device's clock."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgespec.core.decoding import Step
from edgespec.core.drafter import Drafter
from edgespec.core.latency import LARGEST, LatencyCurve
from edgespec.core.runtime import ModelInfo, Runtime
from edgespec.drafting.model import ModelDrafter
from edgespec.errors import UserError

_LARGEST_FILE = 64 << 20
_MAX_TOKENS = 1 << 20
_MAX_ROWS = 1 << 12
_MAX_SECONDS = 1e5
_VERSIONS = (1, 2)
"""Version 1 has no recording."""


@dataclass(frozen=True)
class Guesses:
    """The likeliest tokens of a draft model at each place of an answer, given all before it."""

    tokens: Sequence[int]
    probabilities: Sequence[float]
    """The draft model's own, of each of them."""


@dataclass(frozen=True)
class StepRecord:
    """What the scheduler chose for one pass, and the seconds that the step took."""

    drafter: str
    tokens: Sequence[int]
    """The draft."""
    parents: Sequence[int] | None
    draft_s: float
    pass_s: float
    overhead_s: float

    @classmethod
    def of(cls, step: Step) -> StepRecord:
        """The record of a step of the decoding loop."""
        draft = step.choice.draft
        tokens = [int(token) for token in draft.tokens]
        parents = None if draft.is_chain or draft.parents is None else list(map(int, draft.parents))
        return cls(step.choice.drafter, tokens, parents, step.draft_s, step.pass_s, step.overhead_s)

    @property
    def choice(self) -> tuple[str, list[int], list[int] | None]:
        """What was chosen: drafter, tokens and, of a tree, parents."""
        parents = None if self.parents is None else list(self.parents)
        return self.drafter, list(self.tokens), parents


@dataclass(frozen=True)
class Recording:
    """How an answer was decoded: all that the scheduler's choices depended on."""

    draft: str
    """As ``EngineConfig.draft`` has it."""
    fresh: bool
    """Whether no drafter knew anything of earlier answers."""
    vocab_size: int
    context: int
    max_rows: int
    trees: bool
    pass_sizes: Sequence[int]
    curve: LatencyCurve | None
    """What the latency model began with."""
    steps: Sequence[StepRecord]

    @classmethod
    def of(
        cls,
        draft: str,
        info: ModelInfo,
        curve: LatencyCurve | None,
        steps: Sequence[StepRecord],
        *,
        fresh: bool,
    ) -> Recording:
        """The recording of ``steps`` of a target with ``info``."""
        return cls(
            draft,
            fresh,
            info.vocab_size,
            info.context,
            info.max_rows,
            info.trees,
            info.pass_sizes,
            curve,
            steps,
        )


@dataclass(frozen=True)
class Trace:
    """A recorded answer. It holds the token ids of prompt and answer, and so their text."""

    model: str
    prompt: Sequence[int]
    answer: Sequence[int]
    drafts: Mapping[str, Guesses] = field(default_factory=dict)
    """By the draft model's name."""
    recording: Recording | None = None
    """``None`` in traces of version 1."""


def record(
    model: str,
    prompt: Sequence[int],
    answer: Sequence[int],
    drafters: Sequence[Drafter],
    recording: Recording | None = None,
) -> Trace:
    """The trace of an answer. The draft models among ``drafters`` read it once."""
    guesses = {}
    for drafter in drafters:
        if isinstance(drafter, ModelDrafter) and drafter.vocabulary.same:
            drafter.forget()
            guesses[drafter.name] = _guesses(drafter.runtime, prompt, answer)
    return Trace(model, list(prompt), list(answer), guesses, recording)


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
    text = json.dumps({"version": _VERSIONS[-1], **asdict(trace)}) + "\n"
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UserError(f"{path} exists; name another file for the trace") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file") from error


def read_trace(path: Path) -> Trace:
    """Read what ``write_trace`` wrote, now or in version 1. ``UserError`` where it is not that."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"it is larger than {_LARGEST_FILE >> 20} MiB")
        found = json.loads(path.read_text("utf-8"))
        if found["version"] not in _VERSIONS:
            raise ValueError(f"its version is {found['version']!r}, not {_VERSIONS[-1]}")
        prompt, answer = _ids(found["prompt"]), _ids(found["answer"])
        drafts = {
            str(name): Guesses(_ids(guesses["tokens"]), _probabilities(guesses["probabilities"]))
            for name, guesses in found["drafts"].items()
        }
        if not prompt or not answer:
            raise ValueError("it has no prompt or no answer")
        for name, guesses in drafts.items():
            if not len(guesses.tokens) == len(guesses.probabilities) == len(answer):
                raise ValueError(f"{name} has not as many guesses as the answer has tokens")
        recording = found.get("recording")
        if recording is not None:
            recording = _recording(recording, max(*prompt, *answer))
        return Trace(str(found["model"]), prompt, answer, drafts, recording)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a trace of `edgespec generate --trace`: {error}") from error


# -- the file may come from anywhere ---------------------------------------------------------------


def _recording(found: dict[str, Any], largest: int) -> Recording:
    recording = Recording(
        draft=str(found["draft"])[:400],
        fresh=found["fresh"] is True,
        vocab_size=_count(found["vocab_size"], 1 << 24),
        context=_count(found["context"], 1 << 30),
        max_rows=_count(found["max_rows"], _MAX_ROWS),
        trees=found["trees"] is True,
        pass_sizes=tuple(_count(size, _MAX_ROWS) for size in found["pass_sizes"][:_MAX_ROWS]),
        curve=None if found["curve"] is None else _curve(found["curve"]),
        steps=[_step(step) for step in found["steps"][:_MAX_TOKENS]],
    )
    drafted = (token for step in recording.steps for token in step.tokens)
    if max(largest, *drafted, 0) >= recording.vocab_size or not recording.steps:
        raise ValueError("its recording has no steps, or tokens beyond its vocabulary")
    if list(recording.pass_sizes) != sorted(recording.pass_sizes):
        raise ValueError("its pass sizes do not ascend")
    return recording


def _step(found: dict[str, Any]) -> StepRecord:
    tokens, parents = _ids(found["tokens"]), found["parents"]
    if parents is not None and (
        len(parents) != len(tokens)
        or not all(type(p) is int and -1 <= p < i for i, p in enumerate(parents))
    ):
        raise ValueError("the parents of a draft are no tree")
    times = (_seconds(found[name]) for name in ("draft_s", "pass_s", "overhead_s"))
    return StepRecord(str(found["drafter"])[:400], tokens, parents, *times)


def _curve(found: dict[str, Any]) -> LatencyCurve:
    rows = tuple(_count(n, LARGEST) for n in found["rows"])
    lengths = tuple(_count(n, 1 << 30, 0) for n in found["lengths"])
    tables = [
        tuple(tuple(_seconds(x) for x in line) for line in found[name])
        for name in ("seconds", "spread")
    ]
    for table in tables:
        if len(table) != len(lengths) or any(len(line) != len(rows) for line in table):
            raise ValueError("its curve is no table")
    if (
        not rows
        or not lengths
        or sorted(set(rows)) != [*rows]
        or sorted(set(lengths)) != [*lengths]
    ):
        raise ValueError("the sizes or lengths of its curve do not ascend")
    if min(min(line) for line in tables[0]) <= 0:
        raise ValueError("a pass of its curve takes no time")
    return LatencyCurve(rows, lengths, *tables)


def _ids(values: Any) -> list[int]:
    if not isinstance(values, list) or len(values) > _MAX_TOKENS:
        raise ValueError("its tokens are no list, or too many")
    if not all(type(value) is int and 0 <= value < 1 << 31 for value in values):
        raise ValueError("a token is no id")
    return values


def _probabilities(values: Any) -> list[float]:
    found = [float(value) for value in values]
    if not all(0 <= probability <= 1 for probability in found):
        raise ValueError("a probability is not between 0 and 1")
    return found


def _seconds(value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < _MAX_SECONDS
    ):
        raise ValueError(f"{repr(value)[:40]} is no number of seconds")
    return float(value)


def _count(value: Any, most: int, least: int = 1) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{repr(value)[:40]} is no count of {least} to {most}")
    return int(value)
