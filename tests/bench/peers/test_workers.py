"""Workers of peers that are installed here say what edgespec says, with the same weights and kernels."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("psutil")

from edgespec.bench.peers import parse_peer, worker_of
from edgespec.bench.peers.client import Client, PeerFailure, checked_answer
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer

Open = Callable[..., Client]

TEXT = "def add(a, b):\n    return a + b\n\n\n" * 12 + "def add(a,"
TOKENS = 12


@pytest.fixture
def opened(smollm2: Path, tmp_path: Path) -> Iterator[Open]:
    """Opens SmolLM2 with the last of the systems that ``--peer`` asks for."""
    clients: list[Client] = []

    def opener(peer: str) -> Client:
        system = parse_peer(peer)[-1]
        command, env = worker_of(system)
        client = Client(command, tmp_path / "log", env)
        clients.append(client)
        request = {
            "op": "open",
            "model": str(smollm2),
            "draft": str(smollm2),
            "context": 1024,
            "threads": 1,
            "settings": system.settings,
            "folder": str(tmp_path),
        }
        reply = client.request(request, 600)
        assert reply["version"]
        assert reply["weights"].startswith("as in the file")
        return client

    yield opener
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def ids(smollm2: Path) -> list[int]:
    return Tokenizer.from_gguf(GGUFFile(smollm2)).encode(TEXT)


def asked(ids: list[int], **more: Any) -> dict[str, Any]:
    request = {"op": "answer", "ids": ids, "text": "", "fresh": True, "max_tokens": TOKENS}
    sampling = {"temperature": 0, "top_k": 0, "top_p": 1.0, "seed": 0, "stop_ids": []}
    return {**request, **sampling, **more}


def answer(client: Client, ids: list[int], **more: Any) -> dict[str, Any]:
    request = asked(ids, **more)
    return checked_answer(client.request(request, 600), request, 49152)


@pytest.fixture(scope="module")
def own(smollm2: Path, ids: list[int]) -> tuple[list[int], float]:
    """What edgespec's llama.cpp runtime says, and the loss of ``ids``."""
    pytest.importorskip("llama_cpp")
    from edgespec.export.quality import log_softmax
    from edgespec.runtimes.llama_cpp.runtime import LlamaCppRuntime

    runtime = LlamaCppRuntime(smollm2, context=1024, threads=1, device="cpu")
    logits = runtime.forward(ids)
    loss = -float(log_softmax(logits[:-1])[np.arange(len(ids) - 1), ids[1:]].sum())
    runtime.keep(range(len(ids)))
    said = [int(logits[-1].argmax())]
    while len(said) < TOKENS:
        said.append(int(runtime.forward(said[-1:])[-1].argmax()))
        runtime.keep([0])
    runtime.close()
    return said, loss


@pytest.mark.parametrize("mode", ["plain", "prompt-lookup"])
def test_llama_cpp_python(
    opened: Open, ids: list[int], own: tuple[list[int], float], mode: str
) -> None:
    client = opened(f"llama-cpp-python:{mode}")
    first = answer(client, ids)
    assert first["token_ids"] == own[0]
    if mode == "plain":
        assert first["passes"] == TOKENS - 1
    else:
        assert 0 < first["accepted"] <= first["drafted"]
        assert first["passes"] == TOKENS - 1 - first["accepted"]
    _goes_on(client, ids, first)
    _stops(client, ids, first)
    reply = client.request({"op": "perplexity", "windows": [ids, ids]}, 600)
    assert reply["tokens"] == 2 * (len(ids) - 1)
    assert math.isclose(reply["loss"], 2 * own[1], rel_tol=0.01)


def test_ik_llama_cpp(opened: Open, ids: list[int]) -> None:
    pytest.importorskip("ik_llama_cpp")
    client = opened("ik-llama-cpp:plain")
    first = answer(client, ids)
    assert first["passes"] == TOKENS - 1
    _goes_on(client, ids, first)
    _stops(client, ids, first)


@pytest.mark.parametrize("mode", ["plain", "ngram-simple", "draft"])
def test_llama_server(
    opened: Open, ids: list[int], own: tuple[list[int], float], mode: str
) -> None:
    program = os.environ.get("EDGESPEC_TEST_LLAMA_SERVER") or shutil.which("llama-server")
    if not program:
        pytest.skip("there is no llama-server in PATH, nor in EDGESPEC_TEST_LLAMA_SERVER")
    client = opened(f"llama-server:{mode}={program}")
    first = answer(client, ids)
    assert first["token_ids"] == own[0]
    assert (first["accepted"] > 0) == (mode != "plain")
    _goes_on(client, ids, first)
    assert len(client.pids) == 2
    with pytest.raises(PeerFailure, match="gives no logits"):
        client.request({"op": "perplexity", "windows": [ids]}, 60)
    with pytest.raises(PeerFailure, match="exceed"):
        answer(client, ids * 8)


def _goes_on(client: Client, ids: list[int], first: dict[str, Any]) -> None:
    """The next answers do not depend on this one, and sample by seed."""
    assert answer(client, ids)["token_ids"] == first["token_ids"]
    again = answer(client, ids + first["token_ids"], fresh=False, max_tokens=2)
    assert len(again["token_ids"]) == 2
    hot = {"temperature": 2.0, "top_k": 50, "top_p": 0.95}
    drawn = [answer(client, ids, seed=seed, **hot)["token_ids"] for seed in (1, 2, 1)]
    assert drawn[0] != drawn[1]
    assert drawn[0] == drawn[2]


def _stops(client: Client, ids: list[int], first: dict[str, Any]) -> None:
    """At any token; llama-server only knows the model's own."""
    stop = first["token_ids"][4]
    until = first["token_ids"].index(stop) + 1
    assert answer(client, ids, stop_ids=[stop])["token_ids"] == first["token_ids"][:until]
