"""Measures a model on every runtime that can run it, each in a separate process.

A separate process has its own memory and threads (ONNX Runtime has one thread pool per process), and
a crash of a runtime ends only that process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgespec.assemble import DRAFTERS
from edgespec.config import EngineConfig, configure
from edgespec.core.runtime import Runtime
from edgespec.core.runtime_spec import LoadOptions
from edgespec.device import profile_files
from edgespec.device.machine import check_threads, physical_cores, usable_cpus
from edgespec.device.measuring import (
    FULL_S,
    LENGTHS,
    ROWS,
    measure_curve,
    measure_profile,
    memory_bandwidth,
)
from edgespec.device.placement import Placement
from edgespec.device.profile import Profile
from edgespec.errors import UserError
from edgespec.loading import allowed_places, draft_runtime, load
from edgespec.local_model import LocalModel, find, find_draft
from edgespec.progress import Progress, silent

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgespec.config import Options

T = TypeVar("T")

_DRAFT_S, _THREADS_S = 5.0, 2.5
"""Seconds for a draft's passes, and for another number of threads."""
_GRACE_S = 10.0
"""Seconds that an interrupted process has for its cleanup."""


@dataclass(frozen=True)
class Tuned:
    """What was measured: for each runtime a profile, or two of different threads, and its draft's."""

    profiles: list[Profile]
    drafts: list[Profile]
    paths: list[Path | None]
    """Where ``profiles`` and then ``drafts`` are kept; ``None`` where the disk took none."""
    best: Profile
    """The fastest of ``profiles``."""


def tune(
    model: str | Path | EngineConfig,
    *,
    progress: Progress = silent,
    notice: Callable[[str], None] = lambda line: None,
    **options: Unpack[Options],
) -> Tuned:
    """Measure ``model`` and keep its profiles; on auto, on every runtime that can run it.

    Options are those of ``EngineConfig`` that speed depends on; ``draft`` names a model that is measured, too.
    Without ``threads`` other counts are tried, and where one is faster it is measured too. Takes
    half a minute a runtime, and as long as the model takes to build where it was not yet. ``notice``
    receives what keeps one of several runtimes from being measured. Raises ``UserError``.
    """
    config = configure(model, **options)
    check_threads(config.threads)
    found = find(config.model, progress)
    drafting = None if config.draft in DRAFTERS else find_draft(config.draft, progress)
    places = allowed_places(config, found)
    progress("timing the memory", 0, 1)
    speed = memory_bandwidth(config.threads or physical_cores())
    measured: list[Profile] = []
    drafts: list[Profile] = []
    for place in places:
        try:
            measured += _measured(found, place, progress)
            if drafting is not None:
                own = draft_runtime(place.runtime, drafting)
                beside = replace(place, runtime=own, exact=False)
                drafts.append(in_child(_profile, drafting, beside, _DRAFT_S, progress=progress))
        except UserError as error:
            if len(places) == 1 or (place == places[-1] and not measured):
                raise
            notice(f"not measured on {place.runtime.name}: {error}")

    def complete(profile: Profile) -> Profile:
        return replace(profile, machine={**profile.machine, "memory_bytes_per_s": speed})

    measured, drafts = [complete(p) for p in measured], [complete(p) for p in drafts]
    paths = [profile_files.save(profile, notice) for profile in (*measured, *drafts)]
    return Tuned(measured, drafts, paths, max(measured, key=lambda p: p.tokens_per_s()))


def in_child(function: Callable[..., T], *arguments: Any, progress: Progress = silent) -> T:
    """``function(*arguments, progress)`` in a fresh process.

    Raises its ``UserError``, and one where the process dies. Interrupted, it lets the process tidy
    up, then ends it.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_serve, args=(sender, function, arguments), daemon=True)
    with _uninterrupted():  # an interrupt during the start would print a traceback
        child.start()
    sender.close()
    ended = False
    try:
        while not ended:
            kind, *values = receiver.recv()
            ended = kind != "progress"
            if not ended:
                progress(*values)
        if kind == "error":
            raise UserError(values[0])
        result: T = values[0]
        return result
    except EOFError:
        child.join()
        raise UserError(
            f"the measuring process crashed (exit code {child.exitcode}); "
            "is there enough memory? try a smaller model or another --runtime"
        ) from None
    finally:
        receiver.close()  # its next send fails
        if not ended and child.is_alive() and sys.platform != "win32" and child.pid:
            os.kill(child.pid, signal.SIGINT)
        child.join(_GRACE_S)
        child.kill()
        child.join()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A process started inside begins with Ctrl-C ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(sender: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """The child's part of ``in_child``."""

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once: tidying up is not to be interrupted
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)

    def progress(what: str, done: int, total: int, /) -> None:
        sender.send(("progress", what, done, total))

    try:
        sender.send(("result", function(*arguments, progress)))
    except UserError as error:
        sender.send(("error", str(error)))
    except MemoryError:
        sender.send(("error", "out of memory; close other programs, or try a smaller model"))
    except (KeyboardInterrupt, BrokenPipeError):  # the parent has closed the pipe
        pass


def _measured(model: LocalModel, place: Placement, progress: Progress) -> list[Profile]:
    """The profile of ``place``; where another number of threads is faster, that one's too."""
    profile = in_child(_profile, model, place, FULL_S, progress=progress)
    if place.threads is not None:
        return [profile]
    counts = dict(profile.thread_counts)
    for count in _other_counts(profile.threads, usable_cpus()):
        other = replace(place, threads=count)
        counts[count] = in_child(_smallest_pass, model, other, _THREADS_S, progress=progress)
    found = [replace(profile, thread_counts=dict(sorted(counts.items())))]
    if (best := found[0].best_threads) != profile.threads:
        other = replace(place, threads=best)
        faster = in_child(_profile, model, other, FULL_S, progress=progress)
        found.append(replace(faster, thread_counts=found[0].thread_counts))
    return found


def _other_counts(cores: int, logical: int) -> list[int]:
    """Other numbers of threads that may be faster than ``cores``: fewer where memory is the limit, all
    ``logical`` ones where hyper-threads or efficiency cores help."""
    tried = {cores // 2, cores * 3 // 4, logical} - {0, cores}
    return sorted(tried)


def _profile(model: LocalModel, place: Placement, budget_s: float, progress: Progress) -> Profile:
    setup = place.setup(model.path)
    runtime = _loaded(model, place, progress)
    try:
        return measure_profile(runtime, setup, budget_s=budget_s, progress=progress)
    finally:
        runtime.close()


def _smallest_pass(
    model: LocalModel, place: Placement, budget_s: float, progress: Progress
) -> float:
    """Seconds of a pass over a token."""
    runtime = _loaded(model, place, progress)
    try:
        return measure_curve(runtime, (1,), LENGTHS[:1], budget_s, progress).seconds[0][0]
    finally:
        runtime.close()


def _loaded(model: LocalModel, place: Placement, progress: Progress) -> Runtime:
    options = LoadOptions(
        context=min(model.context, LENGTHS[-1] + ROWS[-1]),
        threads=place.threads,
        device=place.device,
        provider=place.provider,
        exact=place.padded,
        progress=progress,
    )
    return load(model, place.runtime, options)
