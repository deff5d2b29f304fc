from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgespec.bench.peers import process_of
from edgespec.bench.records.journal import Journal
from edgespec.bench.records.results import EXACT, PLAIN, Results, System
from edgespec.bench.running import benchmark, runner
from edgespec.bench.running.configuration import RunConfig
from edgespec.bench.running.runner import Runner
from edgespec.bench.workloads import Prompt
from edgespec.errors import UserError
from edgespec.models.chat_template import ChatTemplate
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from tests.tiny import tiny_gguf

# A worker that answers with the number of tokens it was asked, and then does what it is set to do.
WORKER = """
import json, os, sys, time
how, said = sys.argv[1], 0
for line in sys.stdin:
    request = json.loads(line)
    reply = {"loss": 20.0, "tokens": 10} if request["op"] == "perplexity" else {"seconds": {"1": [0.5]}}
    if request["op"] == "open":
        print("opening", file=sys.stderr)
        if how == "convert-and-die":
            os._exit(3)
        reply = {"version": "1", "weights": "as in the file", "weight_bytes": 8, "more": [1]}
        if how == "odd":
            reply["weights"] = 3
    elif request["op"] == "answer":
        said += 1
        count = request["max_tokens"]
        reply = {"token_ids": [len(request["ids"])] * count, "first_tokens": 1, "ttft_s": 0, "decode_s": 0}
        if said > 2 and how == "crash":
            print("out of luck", file=sys.stderr)
            os._exit(3)
        if said > 2 and how == "hang":
            time.sleep(60)
        if said > 2 and how == "lie":
            reply["token_ids"] = [-1]
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(smollm2))


@pytest.fixture
def bench(smollm2: Path, tokenizer: Tokenizer) -> RunConfig:
    assert tokenizer.chat_template
    prompts = [
        Prompt(1, "a", ("One.",)),
        Prompt(2, "b", ("One.", "Two?")),
        Prompt(3, "b", ("Three.",)),
    ]
    template = ChatTemplate(tokenizer.chat_template, tokenizer)
    return RunConfig(smollm2, None, tokenizer, template, prompts, max_tokens=3, stop=False)


@pytest.fixture(autouse=True)
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems of a peer "scripted" behave as their settings say."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    real = runner.worker_of

    def worker_of(system: System) -> tuple[list[str], dict[str, str]]:
        if system.peer != "scripted":
            return real(system)
        if system.settings["how"] == "absent":
            raise UserError("it is not installed")
        return [sys.executable, str(script), system.settings["how"]], dict(os.environ)

    monkeypatch.setattr(runner, "worker_of", worker_of)
    monkeypatch.setattr(runner, "converts", lambda s: s.settings.get("how", "").startswith("conv"))
    monkeypatch.setattr(
        runner, "takes", lambda s: 10.0 if s.settings.get("how") == "hungry" else 2.0
    )


Start = Callable[..., Runner]


@pytest.fixture
def start(bench: RunConfig, tmp_path: Path) -> Start:
    def starter(*how: str, resume: bool = False, **changed: object) -> Runner:
        systems = {
            PLAIN if h == "plain" else h: System(
                PLAIN if h == "plain" else h, "scripted", {"how": h}, PLAIN
            )
            for h in how
        }
        settings = {"max_tokens": 3, "command": f"bench {resume}", **changed}
        results = Results({"name": "m"}, settings, {}, {}, systems, [])
        return Runner(bench, results, tmp_path / "run", resume=resume)

    return starter


def order(run: Runner) -> list[tuple[int, int, str]]:
    return list(dict.fromkeys((a.round, a.prompt, a.system) for a in run.results.answers))


def test_systems_alternate_and_rounds_mirror_each_other(start: Start) -> None:
    run = start("plain", "good")
    run.run()
    a, b = PLAIN, "good"
    assert order(run) == [
        *[(0, 1, a), (0, 1, b), (0, 2, b), (0, 2, a), (0, 3, a), (0, 3, b)],
        *[(1, 1, b), (1, 1, a), (1, 2, a), (1, 2, b), (1, 3, b), (1, 3, a)],
    ]
    assert run.results.systems[a].perplexity == pytest.approx(7.389, abs=0.001)
    assert run.results.curves == {"1": {1: [0.5]}}
    assert run.results.systems[b].open_s is not None


class Fuel:
    """Three joules a reading, each with the same error."""

    name, what = "fuel", "all of it"

    def __init__(self, error: float) -> None:
        self.read, self._error = 0, error

    def joules(self) -> float:
        self.read += 1
        return 3.0 * self.read

    def error(self, seconds: float, joules: float) -> float:
        assert joules == 3.0
        return self._error

    def close(self) -> None: ...


@pytest.mark.parametrize(("error", "found"), [(0.1, True), (1.0, False)])
def test_an_answer_that_is_too_short_for_the_meter_has_no_energy(
    start: Start, error: float, found: bool
) -> None:
    run = start("plain")
    run._meter, run.results.energy = Fuel(error), {"idle_w": 0.0}
    run.run()
    assert {a.energy_j for a in run.results.answers} == {3.0 if found else None}
    assert ("too short" in run.results.energy.get("why_not", "")) is not found


def test_a_meter_that_was_asked_for_must_measure(tmp_path: Path) -> None:
    path, questions = tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"question_id": 1, "category": "a", "turns": ["One."]}))
    with pytest.raises(UserError, match="--meter guess: there is no such reader"):
        benchmark.run_benchmark(
            str(path), tmp_path / "run", paths=[questions], max_tokens=4, context=256, meter="guess"
        )


def test_a_second_turn_sees_the_first_answer(start: Start, bench: RunConfig) -> None:
    run = start("plain")
    run.run()
    first, second = [a for a in run.results.answers if (a.prompt, a.round) == (2, 0)]
    said = bench.tokenizer.decode(first.token_ids)
    messages = [("user", "One."), ("assistant", said), ("user", "Two?")]
    ids = bench.ids([{"role": role, "content": text} for role, text in messages])
    assert (first.turn, second.turn) == (0, 1)
    assert second.prompt_tokens == len(ids) == second.token_ids[0]


@pytest.mark.parametrize(
    ("how", "kept", "told"),
    [
        ("crash", 3, "crashed with exit code 3: out of luck"),
        ("lie", 3, "answered garbage"),
        ("hang", 3, "did not reply for"),
        ("odd", 0, "opening: answered garbage: its weights is 3"),
        ("absent", 0, "opening: it is not installed"),
    ],
)
def test_what_goes_wrong_with_a_peer_costs_nobody_else(
    start: Start, monkeypatch: pytest.MonkeyPatch, how: str, kept: int, told: str
) -> None:
    monkeypatch.setattr(Runner, "_limit", lambda self: 2.0)
    run = start("plain", how)
    run.run()
    assert len([a for a in run.results.answers if a.system == PLAIN]) == 8
    assert not run.results.systems[PLAIN].failures
    failures = run.results.systems[how].failures
    # warmed up, it answers one prompt before it fails; a round and a failure open it anew
    assert len({(a.round, a.prompt) for a in run.results.answers if a.system == how}) == kept
    assert len(failures) == (2 if kept else 1)
    assert all(told in line for line in failures), failures


def test_a_run_that_was_stopped_goes_on(start: Start, tmp_path: Path) -> None:
    whole = start("plain", "good")
    whole.run()
    journal = tmp_path / "run" / "journal.jsonl"
    journal.unlink()

    def stop(line: str) -> None:
        if line.startswith("6/"):
            raise KeyboardInterrupt

    stopped = start("plain", "good")
    with pytest.raises(KeyboardInterrupt):
        stopped.run(stop)
    assert len(order(stopped)) == 6
    with journal.open("a") as file:
        file.write('{"answers": [{"sys')  # killed in mid-write
    lines = []
    resumed = start("plain", "good", resume=True)
    resumed.run(lines.append)
    assert order(resumed) == order(whole)
    assert lines[0].startswith("2/6")
    assert resumed.results.curves == whole.results.curves
    again = start("plain", "good", resume=True)
    again.run(lines.append)
    assert again.results.answers == resumed.results.answers


def test_memory_outlives_a_run_that_was_killed(start: Start, tmp_path: Path) -> None:
    start("plain").run()
    journal = tmp_path / "run" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    while "system" in lines[-1]:  # which a run writes at its end
        lines.pop()
    lines[-2]["memory"], lines[-1]["memory"] = [[0.2, 9], [0.4, 7]], [[0.6, 8]]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    system = start("plain", resume=True).results.systems[PLAIN]
    assert system.memory[-3:] == [[0.2, 9], [0.4, 7], [0.6, 8]]
    assert system.peak_memory_bytes == max(resident for _, resident in system.memory)


def test_only_the_same_run_is_resumed(start: Start, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        start("plain", resume=True)
    start("plain")
    with pytest.raises(UserError, match="holds a run; go on with it by --resume"):
        start("plain")
    with pytest.raises(UserError, match="was of other settings"):
        start("plain", resume=True, max_tokens=4)
    with pytest.raises(UserError, match="was of other systems"):
        start("plain", "good", resume=True)
    journal = tmp_path / "run" / "journal.jsonl"
    journal.write_bytes(b"\x00\n" + journal.read_bytes())
    with pytest.raises(UserError, match="is damaged"):
        start("plain", resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot use"):
        Journal.begin(tmp_path / "file", {}, False)


@pytest.mark.parametrize(("times", "alone"), [(1, (6, 6)), (9, (3, 1)), (30, (1, 1))])
def test_no_more_is_open_than_memory_holds(
    start: Start, monkeypatch: pytest.MonkeyPatch, smollm2: Path, times: int, alone: tuple[int, int]
) -> None:
    """Of what takes ten times its file, less than of what takes it twice."""

    class Little:
        available = times * smollm2.stat().st_size

    monkeypatch.setattr("psutil.virtual_memory", lambda: Little)
    run, opened = start("plain", "hungry"), []
    open_ = run._client

    def client(system: System) -> object:
        found = open_(system)
        opened.append(list(run._workers))
        return found

    monkeypatch.setattr(run, "_client", client)
    run.run()
    assert opened[0] == [PLAIN]
    first, second = ([1] * count + [2] * (6 - count) for count in alone)
    assert [len(names) for names in opened] == first + second


def test_models_are_converted_while_nothing_else_is_in_memory(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, opened = start("plain", "convert", "convert-and-die"), []
    open_ = run._opened

    def opening(system: System, process: str) -> object:
        opened.append((system.name, len(run._workers)))
        return open_(system, process)

    monkeypatch.setattr(run, "_opened", opening)
    run.run()
    first = [("convert", 0), ("convert-and-die", 0), (PLAIN, 0), ("convert", 1)]
    assert opened[:4] == first
    assert "convert-and-die" not in [name for name, _ in opened[2:]], "once is enough"
    assert len(run.results.systems["convert-and-die"].failures) == 1
    assert {a.system for a in run.results.answers} == {PLAIN, "convert"}


def test_the_context_is_what_the_longest_conversation_takes(bench: RunConfig) -> None:
    long = Prompt(4, "long", ("word " * 1500, "And?"))
    wide = replace(bench, prompts=[*bench.prompts, long])
    context, fits = benchmark.fitting(wide, None, 8192)
    assert fits == wide.prompts
    assert 1500 < context < 2100
    assert context % 256 == 0
    assert benchmark.fitting(wide, 1024, 8192) == (1024, list(bench.prompts))
    assert benchmark.fitting(bench, None, 8192)[0] == 1024


def test_results_do_not_tell_where_things_lie_here(tmp_path: Path) -> None:
    server = str(tmp_path / "llama-server")
    command = f"edgespec bench {tmp_path / 'm.gguf'} --peer llama-server:plain={server} --limit 2"
    systems = {"s": System("s", "llama-server", {"program": server, "flags": "", "n": 3})}
    shown = benchmark.without_paths(Results({}, {"command": command}, {}, {}, systems, []))
    assert shown.systems["s"].settings == {"program": "llama-server", "flags": "", "n": 3}
    short = "edgespec bench m.gguf --peer llama-server:plain=llama-server --limit 2"
    assert shown.settings["command"] == short
    assert systems["s"].settings["program"] == server  # it is still needed here


def test_a_run_in_which_nobody_answers_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"question_id": 1, "category": "a", "turns": ["One."]}))

    def absent(system: System) -> tuple[list[str], dict[str, str]]:
        raise UserError("it is not installed")

    monkeypatch.setattr(runner, "worker_of", absent)
    with pytest.raises(UserError, match="no system answered; the first failed when opening: it is"):
        benchmark.run_benchmark(
            str(path), tmp_path / "run", paths=[questions], max_tokens=4, context=256
        )


def test_what_is_compared_shares_a_process_but_for_draft_models() -> None:
    systems, _ = benchmark.own_systems(
        ["auto", "suffix", "models/tiny.gguf"], ["onnx", "llama-cpp"]
    )
    processes = [process_of(system) for system in systems]
    both = (["edgespec on onnx"] * 4, ["edgespec on llama-cpp"] * 3)
    assert processes == [
        *[*both[0], "edgespec on onnx with tiny.gguf"],
        *[*both[1], "edgespec on llama-cpp with tiny.gguf"],
    ]
    peers = benchmark.peer_systems(["llama-cpp-python"], None)
    assert [process_of(peer) for peer in peers] == [peer.name for peer in peers]


def test_a_draft_model_is_called_by_its_whole_name() -> None:
    drafts = ["qwen2.5-coder-0.5b-instruct", "models/tiny-0.1.gguf"]
    systems, models = benchmark.own_systems(drafts, ["llama-cpp"])
    assert models == drafts
    assert [s.name for s in systems[1:]] == [
        "edgespec qwen2.5-coder-0.5b-instruct",
        "edgespec tiny-0.1",
    ]


def test_every_runtime_has_its_own_plain_decoding() -> None:
    systems, _ = benchmark.own_systems(["auto"], ["onnx", "llama-cpp"])
    assert {s.name: (s.baseline, s.words, s.settings["runtime"]) for s in systems} == {
        PLAIN: (None, None, "onnx"),
        EXACT: (PLAIN, None, "onnx"),
        "edgespec auto": (PLAIN, EXACT, "onnx"),
        f"{PLAIN} on llama-cpp": (None, None, "llama-cpp"),
        "edgespec auto on llama-cpp": (f"{PLAIN} on llama-cpp", None, "llama-cpp"),
    }
    assert [s.settings["exact"] for s in systems] == [False, None, None, False, False]


def test_smollm2_says_the_same_with_and_without_drafts(
    bench: RunConfig, bench_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESPEC_HOME", str(bench_home))
    systems, draft = benchmark.own_systems(["suffix", "none"], ["onnx"])
    assert (draft, [s.name for s in systems]) == ([], [PLAIN, EXACT, "edgespec suffix"])
    assert [s.words for s in systems] == [None, None, EXACT]
    bench = replace(
        bench, prompts=bench.prompts[:2], max_tokens=24, rounds=1, context=1024, stop=True
    )
    named = {system.name: system for system in systems}
    run = Runner(bench, Results({}, {}, {}, {}, named, []), tmp_path / "real")
    run.run()
    assert [log.name for log in (tmp_path / "real" / "logs").iterdir()] == ["edgespec-on-onnx.log"]
    plain, exact, drafted = (
        {(a.prompt, a.turn): a for a in run.results.answers if a.system == name} for name in named
    )
    assert len(plain) == len(exact) == len(drafted) == 3
    for turn, answer in exact.items():
        assert plain[turn].passes == plain[turn].tokens
        assert answer.token_ids == drafted[turn].token_ids
        assert answer.prompt_tokens == drafted[turn].prompt_tokens
    assert sum(a.drafted or 0 for a in drafted.values())
    system = run.results.systems[PLAIN]
    assert 5 < (system.perplexity or 0) < 50
    assert 100e6 < (system.peak_memory_bytes or 0) < 1e9
    assert system.parameters == 134_515_008
    again = Results.from_json(json.loads(json.dumps(run.results.to_json())))
    assert again == run.results
