"""What ``edgespec bench`` does: sets up a run, measures, and writes records and report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgespec.assemble import DRAFTERS
from edgespec.bench.energy import Meter, NoMeter, idle_watts, open_meter
from edgespec.bench.peers import mode_of, parse_peer
from edgespec.bench.records.files import RESULTS, write_results
from edgespec.bench.records.results import EXACT, OWN, PLAIN, Results, System
from edgespec.bench.report.report import write_report
from edgespec.bench.running.configuration import RunConfig
from edgespec.bench.running.machine import machine_facts
from edgespec.bench.running.profiling import profile_pass
from edgespec.bench.running.runner import Runner
from edgespec.bench.workloads import PROMPTS, Prompt, first_of_each, read_prompts, taking_turns
from edgespec.device.machine import physical_cores
from edgespec.errors import UserError
from edgespec.export.source import name_of
from edgespec.local_model import LocalModel, find, find_draft
from edgespec.models import store
from edgespec.models.chat_template import ChatTemplate
from edgespec.progress import Progress, silent
from edgespec.runtimes import get

WORKLOADS = PROMPTS / "workloads"
WRITTEN = ("report.html", "report.md", "rates.svg", RESULTS)
_IDLE_S = 10.0
_LEAST_CONTEXT = 1024
"""Enough for the texts that perplexity and pass latencies are measured on."""
_SPARE = 64
"""Tokens per turn that a template may add to the estimate."""


def own_systems(
    drafts: Sequence[str], runtimes: Sequence[str] = ("auto",)
) -> tuple[list[System], list[str]]:
    """On each runtime plain decoding, unpadded and, where the runtime can, exact, and edgespec with each of
    ``drafts``; and which of these are models. Only names of the first runtime's systems leave it out."""
    systems = []
    models = [draft for draft in dict.fromkeys(drafts) if draft not in DRAFTERS]
    for runtime in runtimes:
        on = "" if runtime == runtimes[0] else f" on {runtime}"
        none, plain, words = {"draft": "none", "runtime": runtime}, PLAIN + on, None
        systems.append(System(plain, OWN, none | {"exact": False}))
        exact = None if runtime == "auto" or get(runtime).exact else False
        if exact is None:
            words = EXACT + on
            systems.append(System(words, OWN, none | {"exact": None}, plain))
        for draft in dict.fromkeys(drafts):
            name = name_of(Path(draft)) if draft in models else draft
            if draft != "none":
                settings = {"draft": draft, "runtime": runtime, "exact": exact}
                systems.append(System(f"{OWN} {name}{on}", OWN, settings, plain, words))
    return systems, models


def peer_systems(peers: Sequence[str], draft: Path | None) -> list[System]:
    """The systems of each ``--peer``. A mode that needs a draft model is left out where there is none; if it
    was named, that is an error. Raises ``UserError``."""
    systems: dict[str, System] = {}
    for peer in peers:
        for system in parse_peer(peer):
            if mode_of(system).draft and draft is None:
                if ":" in peer:
                    raise UserError(
                        f"{system.name} needs a draft model in GGUF; give one with --draft MODEL"
                    )
                continue
            systems.setdefault(system.name, system)
    return list(systems.values())


def chosen_prompts(paths: Sequence[Path], limit: int | None) -> list[Prompt]:
    """The first ``limit`` of each category, categories taking turns; from the files, or edgespec's own."""
    paths = paths or sorted(WORKLOADS.glob("*.jsonl"))
    prompts = [prompt for path in paths for prompt in read_prompts(path)]
    ids = [prompt.id for prompt in prompts]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise UserError(f"question_id {twice[0]} is there twice; give every question another one")
    return taking_turns(first_of_each(prompts, limit) if limit else prompts)


def fitting(bench: RunConfig, context: int | None, most: int) -> tuple[int, list[Prompt]]:
    """The context to run with, ``context`` or what the longest conversation takes, at most ``most``; and
    the prompts that fit in it."""
    needed = {p.id: bench.needed(p) + _SPARE * len(bench.turns[p.id]) for p in bench.prompts}
    longest = max(needed.values(), default=0)
    context = context or min(most, max(_LEAST_CONTEXT, -(-longest // 256) * 256))
    return context, [p for p in bench.prompts if needed[p.id] <= context]


def _gguf(found: LocalModel) -> Path:
    if found.form != "gguf":
        raise UserError(f"{found.path} is no GGUF file; the bench runs those, as its peers do")
    return found.path


def _facts(path: Path, progress: Progress) -> dict[str, Any]:
    return {
        "name": path.stem,
        "bytes": path.stat().st_size,
        "sha256": store.sha256_of(path, progress),
    }


def _meter(
    prefer: str | None, notify: Callable[[str], None]
) -> tuple[Meter | None, dict[str, Any]]:
    try:
        meter = open_meter(prefer)
    except NoMeter as reason:
        if prefer:
            raise UserError(f"--meter {reason}") from reason
        return None, {"reader": None, "why_not": str(reason), "idle_w": None, "error": None}
    notify(f"measuring what the machine draws at rest, {_IDLE_S:.0f} s")
    watts, spread = idle_watts(meter, _IDLE_S)
    return meter, {
        "reader": meter.name,
        "what": meter.what,
        "why_not": None,
        "idle_w": watts,
        "idle_spread_w": spread,
        "error": None,
    }


def run_benchmark(
    model: str,
    folder: Path,
    *,
    paths: Sequence[Path] = (),
    limit: int | None = None,
    drafts: Sequence[str] = ("auto",),
    peers: Sequence[str] = (),
    runtimes: Sequence[str] = ("auto",),
    context: int | None = None,
    threads: int | None = None,
    max_tokens: int = 128,
    rounds: int = 2,
    stop: bool = True,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    profile: bool = False,
    meter: str | None = None,
    resume: bool = False,
    command: str = "",
    notify: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Results:
    """Measure, and write the files ``WRITTEN`` into ``folder``.

    Ctrl-C raises ``KeyboardInterrupt`` when what was measured is written. Raises ``UserError`` for what
    the caller can correct.
    """
    found = find(model, progress)
    path, tokenizer = _gguf(found), found.tokenizer
    own, models = own_systems(drafts, runtimes)
    drafting = [find_draft(name, progress) for name in models]
    draft = next((model.path for model in drafting if model.form == "gguf"), None)
    systems = [*own, *peer_systems(peers, draft)]
    source = tokenizer.chat_template
    template = ChatTemplate(source, tokenizer) if source else None
    settings: dict[str, Any] = {
        "max_tokens": max_tokens,
        "rounds": rounds,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "threads": threads or physical_cores(),
        "stop": stop,
    }
    asked = chosen_prompts(paths, limit)
    plan = RunConfig(path, draft, tokenizer, template, asked, **settings)
    settings["context"], fits = fitting(plan, context, found.context)
    if len(fits) < len(asked):
        notify(f"{len(asked) - len(fits)} prompts do not fit in a context of {settings['context']}")
    if not fits:
        raise UserError("no prompt is left to answer; give others, or a longer --context")
    plan = RunConfig(path, draft, tokenizer, template, fits, **settings)
    results = Results(
        model={**_facts(path, progress), "draft": _facts(draft, progress) if draft else None},
        settings={
            **settings,
            "prompts": len(fits),
            "prompts_sha256": plan.prompts_sha256,
            "command": command,
        },
        machine=machine_facts(settings["threads"]),
        energy={},
        systems={system.name: system for system in systems},
        answers=[],
    )
    reader, results.energy = _meter(meter, notify)
    try:
        running = Runner(plan, results, folder, resume=resume, meter=reader, progress=progress)
        try:
            running.run(notify)
            if profile and results.answers:
                notify("profiling a pass")
                bandwidth, threads = results.machine["bandwidth"], settings["threads"]
                results.profile = profile_pass(path, tokenizer, bandwidth, threads, progress)
                results.profile["own_share"] = own_share(results)
        finally:
            if results.answers:
                _finish(results, reader, folder)
    finally:
        if reader is not None:
            reader.close()
    if not results.answers:
        failures = [line for system in results.systems.values() for line in system.failures]
        raise UserError(f"no system answered; the first failed when {failures[0]}")
    return results


def own_share(results: Results) -> float:
    """The overhead's share of a step, of the last of edgespec's systems: neither drafting nor a pass."""
    last = [s.name for s in results.systems.values() if s.is_own][-1]
    own = drafts = passes = 0.0
    for answer in results.answers:
        if answer.system == last:
            own += answer.own_s or 0
            drafts += answer.draft_s or 0
            passes += answer.pass_s or 0
    return own / (own + drafts + passes or 1)


def without_paths(results: Results) -> Results:
    """The same without this machine's folders: absolute paths are cut to their last part."""

    def short(value: Any) -> Any:
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    systems = {
        name: replace(s, settings={key: short(value) for key, value in s.settings.items()})
        for name, s in results.systems.items()
    }
    words = [
        "=".join(map(short, word.split("="))) for word in shlex.split(results.settings["command"])
    ]
    settings = {**results.settings, "command": shlex.join(words)}
    return replace(results, systems=systems, settings=settings)


def _finish(results: Results, meter: Meter | None, folder: Path) -> None:
    if meter is not None:
        joules = [a.energy_j for a in results.answers if a.energy_j is not None]
        seconds = [a.ttft_s + a.decode_s for a in results.answers if a.energy_j is not None]
        if joules:
            middle = len(joules) // 2
            results.energy["error"] = meter.error(sorted(seconds)[middle], sorted(joules)[middle])
    shown = without_paths(results)
    write_results(shown, folder)
    write_report(shown, folder)
