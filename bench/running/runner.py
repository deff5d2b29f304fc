"""A run of the bench: every system answers every prompt, alternated; see ``process_of`` for which share a process."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import exp
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from edgespec.bench.energy import Meter, MeterLost
from edgespec.bench.peers import converts, process_of, takes, worker_of
from edgespec.bench.peers.client import Client, PeerFailure, checked_answer
from edgespec.bench.records.journal import Journal
from edgespec.bench.records.results import AS_IN_FILE, EXACT, PLAIN, SCHEMA, Answer, Results, System
from edgespec.bench.running.configuration import RunConfig
from edgespec.bench.running.memory_sampler import MemorySampler
from edgespec.bench.workloads import Prompt, own_text, windows
from edgespec.errors import UserError
from edgespec.models import store
from edgespec.progress import Progress, silent


@dataclass(frozen=True)
class Limits:
    """How long a run waits, when it gives up, and how much it measures once."""

    open_s: float = 3600.0
    """Opening may convert a model."""
    first_answer_s: float = 1800.0
    """For the first answer, and for what is measured once."""
    patience: float = 20.0
    """Later answers may take this many times as long as the longest so far."""
    failures: int = 2
    """After so many a system is left out."""
    warm_up_tokens: int = 8
    perplexity_tokens: int = 2048
    curve_repeats: int = 7
    free_bytes: int = 512 << 20
    """Of memory, to leave free."""


LIMITS = Limits()
_FACTS: dict[str, type] = {
    "version": str,
    "weights": str,
    "weight_bytes": int,
    "draft_weight_bytes": int,
    "parameters": int,
    "draft_parameters": int,
}
"""What a worker may report of itself when it has opened a model."""


@dataclass
class Worker:
    """A process that answers, for one system or several."""

    client: Client
    facts: dict[str, Any]
    """What it reported when it had opened the model."""
    open_s: float
    warm: set[str] = field(default_factory=set)
    """The systems that answered once."""


class Runner:
    """One run: its workers, its journal and what it found so far."""

    def __init__(
        self,
        bench: RunConfig,
        results: Results,
        folder: Path,
        *,
        resume: bool = False,
        meter: Meter | None = None,
        progress: Progress = silent,
    ) -> None:
        self.bench, self.results, self.folder = bench, results, folder
        self._meter, self._progress = meter, progress
        self._workers: OrderedDict[str, Worker] = OrderedDict()
        self._longest: float | None = None
        self._failed = Counter[str]()
        self._done: set[tuple[int, int, str]] = set()
        header = {
            "schema": SCHEMA,
            "model": results.model,
            "settings": {k: v for k, v in results.settings.items() if k != "command"},
            "systems": {name: [s.peer, s.settings] for name, s in results.systems.items()},
        }
        self._journal = Journal.begin(folder, header, resume)
        for line in self._journal.found:
            self._replay(line)
        ends = [s.memory[-1][0] for s in results.systems.values() if s.memory]
        self._memory = MemorySampler(max(ends, default=0.0))

    def _replay(self, line: dict[str, Any]) -> None:
        if "answers" in line:
            self._keep([Answer.from_json(answer) for answer in line["answers"]])
            system = self.results.systems[line["answers"][0]["system"]]
            system.memory += line["memory"]
            peaks = [int(resident) for _, resident in system.memory]
            system.peak_memory_bytes = max(peaks, default=None)
        elif "curve" in line:
            name, seconds = line["curve"]
            self.results.curves[name] = {int(rows): s for rows, s in seconds.items()}
        else:
            self.results.systems[line["system"]["name"]] = System(**line["system"])

    def _keep(self, answers: list[Answer]) -> None:
        self.results.answers += answers
        self._done.update((a.round, a.prompt, a.system) for a in answers)

    def run(self, notify: Callable[[str], None] = lambda line: None) -> None:
        """Measure what is not measured yet; ``notify`` gets a line per prompt. However it ends, no worker is left."""
        orders = self._orders()
        todo = [
            (r, p, s)
            for r, p, order in orders
            for s in order
            if (r, p.id, s.name) not in self._done
        ]
        began, total = perf_counter(), len(todo)
        self._memory.start()
        try:
            self._convert(list({s.name: s for _, _, s in todo}.values()))
            for number, (round_, prompt, system) in enumerate(todo):
                if number and round_ != todo[number - 1][0]:
                    self._close_all()  # no round learns from another
                self._measure(round_, prompt, system)
                if number + 1 == total or todo[number + 1][1] is not prompt:
                    left = (perf_counter() - began) / (number + 1) * (total - number - 1)
                    notify(self._line(round_, prompt, number + 1, total, left))
        finally:
            self._memory.end()
            self._close_all()
            for system in self.results.systems.values():
                self._journal.add(system=asdict(system))

    def _convert(self, systems: Sequence[System]) -> None:
        """Open what converts the model while nothing else is in memory."""
        for system in systems:
            if converts(system):
                try:
                    self._opened(system, process_of(system)).client.close()
                except (PeerFailure, UserError) as failure:
                    self._fail(system, "opening", failure)

    def _orders(self) -> list[tuple[int, Prompt, list[System]]]:
        """A B, B A, A B, …; the other way round in every second round."""
        systems = list(self.results.systems.values())
        return [
            (round_, prompt, systems[::-1] if (round_ + number) % 2 else systems)
            for round_ in range(self.bench.rounds)
            for number, prompt in enumerate(self.bench.prompts)
        ]

    def _line(self, round_: int, prompt: Prompt, done: int, total: int, left: float) -> str:
        rates = []
        for answer in self.results.answers:
            if (answer.round, answer.prompt, answer.turn) == (round_, prompt.id, 0) and answer.rate:
                rates.append(f"{answer.system.removeprefix('edgespec ')} {answer.rate:.1f}")
        what = f"{prompt.category} {prompt.id}: {', '.join(rates) or 'no rates'} tokens/s"
        return f"{done}/{total}, {left / 60:.0f} min left; {what}"

    def _measure(self, round_: int, prompt: Prompt, system: System) -> None:
        """One conversation with one system; what goes wrong is its own."""
        if self._failed[system.name] >= LIMITS.failures:
            return
        where, looked = "opening", len(system.memory)
        try:
            client = self._client(system)
            where = f"prompt {prompt.id}"
            answers = self._converse(client, round_, prompt, system)
        except (PeerFailure, UserError) as failure:  # one that is not installed, too
            self._fail(system, where, failure)
        else:
            self._keep(answers)
            memory = system.memory[looked:]
            self._journal.add(answers=[asdict(answer) for answer in answers], memory=memory)

    def _fail(self, system: System, where: str, failure: Exception) -> None:
        self._failed[system.name] += LIMITS.failures if where == "opening" else 1
        system.failures.append(f"{where}: {failure}")
        self._journal.add(system=asdict(system))
        self._close(process_of(system))

    def _converse(
        self, client: Client, round_: int, prompt: Prompt, system: System
    ) -> list[Answer]:
        messages: list[dict[str, str]] = []
        answers = []
        for turn, text in enumerate(self.bench.turns[prompt.id]):
            messages.append({"role": "user", "content": text})
            request = self._request(system, messages, self.bench.max_tokens, fresh=not turn)
            cpu_s, joules = client.cpu_seconds(), self._joules()
            with self._memory.watching(system, client):
                reply = client.request(request, self._limit())
            elapsed = float(reply["wall_s"])
            self._longest = max(self._longest or 0.0, elapsed)
            energy = self._drawn(joules, elapsed)
            found = checked_answer(reply, request, self.bench.tokenizer.vocab_size)
            answers.append(
                Answer(
                    system=system.name,
                    prompt=prompt.id,
                    category=prompt.category,
                    turn=turn,
                    round=round_,
                    prompt_tokens=len(request["ids"]),
                    cpu_s=client.cpu_seconds() - cpu_s,
                    energy_j=energy,
                    **found,
                )
            )
            answer = self.bench.tokenizer.decode(found["token_ids"])
            messages.append({"role": "assistant", "content": answer})
        return answers

    def _request(
        self,
        system: System,
        messages: Sequence[dict[str, str]],
        max_tokens: int,
        fresh: bool = True,
    ) -> dict[str, Any]:
        bench = self.bench
        return {
            "op": "answer",
            "settings": system.settings,
            "ids": bench.ids(messages),
            "text": messages[-1]["content"],
            "fresh": fresh,
            "max_tokens": max_tokens,
            "temperature": bench.temperature,
            "top_k": bench.top_k,
            "top_p": bench.top_p,
            "seed": bench.seed,
            "stop_ids": sorted(bench.tokenizer.stop_tokens) if bench.stop else [],
        }

    def _limit(self) -> float:
        return (
            LIMITS.first_answer_s if self._longest is None else 60 + LIMITS.patience * self._longest
        )

    def _joules(self) -> float | None:
        if self._meter is None:
            return None
        try:
            return self._meter.joules()
        except MeterLost as lost:
            self._meter = None
            self.results.energy["why_not"] = str(lost)
            return None

    def _drawn(self, before: float | None, seconds: float) -> float | None:
        """Joules since ``before``, without those of a machine at rest."""
        now = self._joules()
        if self._meter is None or now is None or before is None:
            return None
        if self._meter.error(seconds, now - before) >= 1:
            self.results.energy["why_not"] = f"{self._meter.name}: answers are too short for it"
            return None
        return now - before - float(self.results.energy["idle_w"]) * seconds

    def _client(self, system: System) -> Client:
        """Its worker's: the one that is open, or a new one; warmed up."""
        process = process_of(system)
        if process not in self._workers:
            self._workers[process] = self._opened(system, process)
        self._workers.move_to_end(process)
        worker = self._workers[process]
        if system.name not in worker.warm:
            for name in _FACTS:
                if name in worker.facts:
                    setattr(system, name, worker.facts[name])
            system.open_s = worker.open_s
            hello = self._request(
                system, [{"role": "user", "content": "Hello!"}], LIMITS.warm_up_tokens
            )
            worker.client.request(hello, LIMITS.first_answer_s)
            self._look_closer(system, worker.client)
            self._journal.add(system=asdict(system))
            worker.warm.add(system.name)
            self._progress("measuring", 0, 0)
        return worker.client

    def _opened(self, system: System, process: str) -> Worker:
        self._make_room(system)
        self._progress(f"opening {process}", 0, 0)
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        safe = "".join(c if c.isalnum() else "-" for c in process)
        command, env = worker_of(system)
        began = perf_counter()
        client = Client(command, logs / f"{safe}.log", env)
        try:
            opened = client.request(
                {
                    "op": "open",
                    "model": str(self.bench.model),
                    "draft": str(self.bench.draft) if self.bench.draft else None,
                    "context": self.bench.context,
                    "threads": self.bench.threads,
                    "settings": system.settings,
                    "folder": str(store.cache_dir() / "peers"),
                },
                LIMITS.open_s,
            )
            facts = {name: opened[name] for name in _FACTS if opened.get(name) is not None}
            for name, value in facts.items():
                if not isinstance(value, _FACTS[name]):
                    raise PeerFailure(f"answered garbage: its {name} is {value!r:.50}")
        except BaseException:
            client.close()
            raise
        return Worker(client, facts, perf_counter() - began)

    def _look_closer(self, system: System, client: Client) -> None:
        """Measure once: the latency of passes by size, and the perplexity of the weights."""
        plain = system.name.startswith(PLAIN) and not system.name.startswith(EXACT)
        name = system.version.split(", ")[-1]
        if plain and name not in self.results.curves:
            reply = client.request(
                {"op": "curve", "repeats": LIMITS.curve_repeats}, LIMITS.first_answer_s
            )
            self._journal.add(curve=[name, reply["seconds"]])
            self._replay({"curve": [name, reply["seconds"]]})
        systems = self.results.systems.values()
        alike = [
            s
            for s in systems
            if (s.peer, s.weights, s.version) == (system.peer, system.weights, system.version)
        ]
        known = [s.perplexity for s in alike if s.perplexity is not None]
        if known:
            system.perplexity = known[0]
        elif plain or system.weights != AS_IN_FILE:
            text = list(windows(self.bench.tokenizer, own_text(), LIMITS.perplexity_tokens))
            try:
                reply = client.request({"op": "perplexity", "windows": text}, LIMITS.first_answer_s)
                system.perplexity = exp(float(reply["loss"]) / int(reply["tokens"]))
            except (PeerFailure, LookupError, TypeError, ValueError, ArithmeticError) as failure:
                system.failures.append(f"perplexity: {failure}")

    def _make_room(self, system: System) -> None:
        """Close what answered longest ago until ``system`` fits in memory."""
        size = self.bench.model.stat().st_size
        size += self.bench.draft.stat().st_size if self.bench.draft else 0
        needed = takes(system) * size + LIMITS.free_bytes
        while self._workers and psutil.virtual_memory().available < needed:
            self._close(next(iter(self._workers)))

    def _close(self, process: str) -> None:
        if worker := self._workers.pop(process, None):
            worker.client.close()

    def _close_all(self) -> None:
        for process in list(self._workers):
            self._close(process)
