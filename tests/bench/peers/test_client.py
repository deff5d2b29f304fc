"""The client against workers that do what workers should not."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

psutil = pytest.importorskip("psutil")

from edgespec.bench.peers import client as module  # noqa: E402
from edgespec.bench.peers.client import Client, PeerFailure, checked_answer  # noqa: E402

START = "import json, os, sys, time\nfor line in sys.stdin:\n    request = json.loads(line)\n"
ECHO = START + "    print(json.dumps({'got': request}), flush=True)\n"

Start = Callable[[str], Client]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a worker of the given source; afterwards none of its processes may be left."""
    clients: list[Client] = []

    def starter(source: str) -> Client:
        script = tmp_path / f"worker{len(clients)}.py"
        script.write_text(textwrap.dedent(source), encoding="utf-8")
        clients.append(Client([sys.executable, str(script)], tmp_path / "log"))
        return clients[-1]

    yield starter
    for client in clients:
        seen = list(client._seen)
        client.close()
        client.close()
        assert seen
        assert not [process for process in seen if module._runs(process)]


def test_replies_come_back_with_how_long_they_took(start: Start) -> None:
    client = start(ECHO.replace("    print", "    time.sleep(0.2)\n    print"))
    for number in range(3):
        reply = client.request({"op": "x", "number": number, "text": "é\n"}, 20)
        assert reply["got"] == {"op": "x", "number": number, "text": "é\n"}
        assert 0.2 <= reply["wall_s"] < 20
    client.close()
    assert client._process.returncode == 0  # it ended by itself when stdin did: it was not killed


def fails(client: Client, timeout_s: float = 30, **message: Any) -> str:
    with pytest.raises(PeerFailure) as failure:
        client.request(message, timeout_s)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_a_crash_is_told_with_its_code_and_last_words(start: Start) -> None:
    client = start(START + "    print('so\\nsad\\n', file=sys.stderr, flush=True); os._exit(7)\n")
    assert fails(client) == "crashed with exit code 7: sad"
    assert fails(client) == "has been closed"


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_a_crash_by_a_signal_is_told_by_its_name(start: Start) -> None:
    source = START + "    os.kill(os.getpid(), 11)\n"
    assert fails(start(source)) == "crashed with signal SIGSEGV"


def test_last_words_are_of_this_worker_and_obey_no_terminal(start: Start) -> None:
    source = (
        START + "    sys.stderr.write('\\x1b[2J' + 'a' * 9000); sys.stderr.flush(); os._exit(1)\n"
    )
    said = fails(start(source))
    assert said.startswith("crashed with exit code 1: aaaa")
    assert len(said) < 400
    assert "\x1b" not in said
    assert fails(start(START + "    os._exit(1)\n")) == "crashed with exit code 1"


def test_a_worker_that_hangs_is_killed(start: Start) -> None:
    client = start(START + "    time.sleep(600)\n")
    assert fails(client, 0.5) == "did not reply for 0.5 s"
    assert not client.pids


def test_a_worker_that_reads_nothing_hangs_nobody(start: Start) -> None:
    client = start("import time\ntime.sleep(600)\n")
    assert fails(client, 0.5, text="a" * 5_000_000) == "did not reply for 0.5 s"


def test_a_worker_that_does_not_end_is_killed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GRACE_S", 0.5)
    client = start(ECHO + "time.sleep(600)\n")
    client.request({}, 20)
    client.close()
    assert not client.pids


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("Hello!", "no JSON: Hello!"),
        ("[1]", "a list, not an object"),
        ('{"token_ids": NaN}', "no JSON"),
        ('{"token_ids": Infinity}', "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("9" * 10_000, ""),
        ("", "no JSON"),
        ("\\xff\\xfe", "no JSON"),
    ],
)
def test_garbage_is_told(start: Start, reply: str, why: str) -> None:
    client = start(START + f"    print({reply!r}, flush=True)\n")
    said = fails(client)
    assert said.startswith("answered garbage: ")
    assert why in said
    assert fails(client) == "has been closed"


def test_half_a_line_is_no_reply(start: Start) -> None:
    client = start(START + "    sys.stdout.write('{\"a\": 1}'); sys.stdout.flush(); os._exit(0)\n")
    assert fails(client) == "crashed with exit code 0"


def test_lines_are_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 1000)
    assert "more than 1000 bytes" in fails(start(START + "    print('a' * 5000, flush=True)\n"))


def test_who_speaks_unasked_is_not_believed(start: Start) -> None:
    client = start("print('{}', flush=True)\nprint('{}', flush=True)\n" + ECHO)
    while client._replies.qsize() < 2:
        time.sleep(0.01)
    assert fails(client) == "answered garbage: replied without a request"


def test_an_error_reply_leaves_the_worker(start: Start) -> None:
    source = START + "    print(json.dumps({'error': 'no\\nway'} if request else {}), flush=True)\n"
    client = start(source)
    assert fails(client, op="x") == "no way"
    assert client.request({}, 20)["wall_s"]


def test_a_missing_program_is_told(tmp_path: Path) -> None:
    with pytest.raises(PeerFailure, match=r"cannot be started: .*nothing"):
        Client([str(tmp_path / "nothing")], tmp_path / "log")


FAMILY = """
import json, subprocess, sys, time
code = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep({})"
child = subprocess.Popen([sys.executable, "-c", code.format(600)])
"""


@pytest.mark.parametrize("ending", ["    os._exit(3)\n", "    print('{}', flush=True)\n"])
def test_no_grandchild_is_left(start: Start, ending: str) -> None:
    client = start(FAMILY + START + "    time.sleep(1)\n" + ending)
    family: set[int] = set()
    while len(family) < 3:
        family.update(client.pids)
    if "exit" in ending:
        assert fails(client) == "crashed with exit code 3"
    else:
        client.request({}, 30)
        assert client.resident_bytes() > 3 * 4_000_000
        client.close()
    until = time.monotonic() + 5
    while any(alive(pid) for pid in family) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in family if alive(pid)]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_processor_time_of_children_that_ended_counts(start: Start) -> None:
    burn = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.5: pass"
    source = (
        f"import subprocess\n{START}    p = subprocess.Popen([sys.executable, '-c', {burn!r}])\n"
    )
    source += "    time.sleep(request['look'])\n    p.wait()\n    print('{}', flush=True)\n"
    client = start(source)
    before = client.cpu_seconds()
    looks: list[float] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(0.02):
            looks.append(client.cpu_seconds())

    thread = threading.Thread(target=look)
    thread.start()
    client.request({"look": 1}, 60)
    stop.set()
    thread.join()
    assert client.cpu_seconds() - before >= 0.4  # processor time, whatever else the machine does
    assert looks == sorted(looks)
    total = client.cpu_seconds()
    client.close()
    assert client.cpu_seconds() >= total


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to groups")
def test_ctrl_c_ends_no_worker_by_itself(start: Start) -> None:
    client = start(ECHO)
    client.request({}, 20)
    assert os.getpgid(client.pids[0]) == client.pids[0] != os.getpgid(0)


def test_an_interrupted_request_ends_the_worker(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        pytest.skip("signals go to the main thread")
    client = start(START + "    time.sleep(600)\n")
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):  # after the timeout it would be a PeerFailure
        client.request({}, 300)
    assert not client.pids


ASKED = {"max_tokens": 4, "stop_ids": [2]}
REPLY = {"token_ids": [5, 6, 2], "first_tokens": 1, "ttft_s": 0.5, "decode_s": 1.0, "wall_s": 1.6}


def test_a_good_answer_is_believed() -> None:
    more = {"drafted": 3, "accepted": 1, "passes": 2, "pass_s": 0.9, "draft_passes": None}
    tables = {"by_drafter": {"ngram": [3, 1]}, "by_rows": {"4": [2, 3, 0.9]}}
    found = checked_answer(json.loads(json.dumps({**REPLY, **more, **tables})), ASKED, 10)
    assert found == {
        **{name: value for name, value in REPLY.items() if name != "wall_s"},
        **more,
        "by_drafter": {"ngram": [3, 1]},
        "by_rows": {4: [2, 3, 0.9]},
    }


@pytest.mark.parametrize(
    "lie",
    [
        {"token_ids": []},
        {"token_ids": [1, 1, 1, 1, 1]},
        {"token_ids": [10]},
        {"token_ids": [-1]},
        {"token_ids": [1.0]},
        {"token_ids": [True]},
        {"token_ids": ["1"]},
        {"token_ids": "1"},
        {"token_ids": None},
        {"token_ids": [5, 2, 6]},
        {"first_tokens": 0},
        {"first_tokens": 4},
        {"first_tokens": None},
        {"first_tokens": 1.0},
        {"ttft_s": -0.1},
        {"ttft_s": None},
        {"ttft_s": "1"},
        {"ttft_s": True},
        {"decode_s": float("nan")},
        {"decode_s": float("inf")},
        {"decode_s": 1.2},
        {"pass_s": float("nan")},
        {"passes": -1},
        {"passes": 1 << 40},
        {"drafted": 1, "accepted": 2},
        {"by_drafter": [1]},
        {"by_drafter": {"a": [1]}},
        {"by_drafter": {"a": [1, 1.5]}},
        {"by_rows": {"a": [1, 1, 1]}},
        {"by_rows": {"1": [1, 1, None]}},
        {"by_rows": {"²": [1, 1, 1]}},
        {"prompt": 3},
    ],
)
def test_an_answer_that_cannot_be_is_garbage(lie: dict[str, Any]) -> None:
    with pytest.raises(PeerFailure, match=r"^answered garbage: [^\n]+$"):
        checked_answer({**REPLY, **lie}, ASKED, 10)


@pytest.mark.parametrize("name", ["token_ids", "first_tokens", "ttft_s", "decode_s"])
def test_an_answer_lacks_nothing(name: str) -> None:
    with pytest.raises(PeerFailure, match=f"lacks {name}"):
        checked_answer({n: v for n, v in REPLY.items() if n != name}, ASKED, 10)
