"""The side of the protocol that workers share."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("psutil")

from edgespec.bench.peers.client import Client, PeerFailure
from edgespec.bench.peers.workers import serving

WORKER = """
import os
from workers.serving import serve, timed

class Worker:
    def answer(self, request):
        print("a library talks")
        os.system("echo a program talks")
        return {"said": request["ids"]}
    def perplexity(self, windows):
        raise NotImplementedError("no\\nlogits")

def opened(request):
    return Worker(), {"version": request["model"]}

serve(opened)
"""


def test_a_worker_answers_and_nothing_else_is_on_its_stdout(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(WORKER)
    peers = Path(serving.__file__).parents[1]
    env = os.environ | {"PYTHONPATH": str(peers)}
    client = Client([sys.executable, str(tmp_path / "own.py")], tmp_path / "log", env)
    try:
        with pytest.raises(PeerFailure, match="RuntimeError: no model is open"):
            client.request({"op": "answer"}, 30)
        assert client.request({"op": "open", "model": "é"}, 30)["version"] == "é"
        assert client.request({"op": "answer", "ids": [1, 2]}, 30)["said"] == [1, 2]
        with pytest.raises(PeerFailure, match="NotImplementedError: no logits"):
            client.request({"op": "perplexity", "windows": []}, 30)
        with pytest.raises(PeerFailure, match="KeyError: 'ids'"):
            client.request({"op": "answer"}, 30)
    finally:
        client.close()
    log = (tmp_path / "log").read_text()
    assert "a library talks" in log
    assert "a program talks" in log


def test_times_are_of_the_first_and_last_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(serving, "perf_counter", lambda: now)

    def stream() -> Iterator[list[int]]:
        nonlocal now
        for seconds, piece in ((2, []), (3, [1, 2]), (5, [3]), (7, []), (11, None)):
            now += seconds
            if piece is not None:
                yield piece

    assert serving.timed(stream(), 100.0) == {
        "token_ids": [1, 2, 3],
        "first_tokens": 2,
        "ttft_s": 5.0,
        "decode_s": 5.0,
    }


def test_no_tokens_take_no_time() -> None:
    reply = serving.timed([[]], time.perf_counter())
    assert reply == {"token_ids": [], "first_tokens": 0, "ttft_s": 0.0, "decode_s": 0.0}
