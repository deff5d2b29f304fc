"""What every worker of a peer that is a Python package has to do, asked of SmolLM2."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("psutil")

from edgespec.bench.peers import PEERS, parse_peer, python_of, workers
from edgespec.bench.peers.client import Client, checked_answer
from edgespec.bench.workloads import own_text
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer

PROMPT = "def add(a, b):\n    return a + b\n\n\n" * 12 + "def add(a,"
TOKENS = 12

# Found before any test sets EDGESPEC_HOME.
_PYTHONS = {name: python_of(peer) for name, peer in PEERS.items()}


def needs(peer: str) -> Any:
    """Skips a test where the peer is not installed."""
    return pytest.mark.skipif(not _PYTHONS[peer], reason=f"{peer} is not installed")


def ask(peer: str, mode: str, weights: str, worse: float, smollm2: Path, folder: Path) -> None:
    """Open SmolLM2 by a mode of a peer, with SmolLM2 for a draft, and ask it all.

    ``weights`` is part of what it says of them; by ``worse`` times its perplexity may be llama.cpp's.
    """
    tokenizer = Tokenizer.from_gguf(GGUFFile(smollm2))
    prompt, window = tokenizer.encode(PROMPT), tokenizer.encode(own_text())[:300]
    system = parse_peer(f"{peer}:{mode}")[-1]
    env = os.environ | {"PYTHONPATH": str(Path(workers.__file__).parents[1])}
    command = [str(_PYTHONS[peer]), "-m", f"workers.{PEERS[peer].worker}"]
    client = Client(command, folder / "log", env)
    try:
        request = {"op": "open", "model": str(smollm2), "draft": str(smollm2), "context": 1024}
        request |= {"threads": 1, "settings": system.settings, "folder": str(folder)}
        reply = client.request(request, 1800)
        assert reply["version"].split()[0] == peer
        assert weights in reply["weights"]
        assert reply["parameters"] == 134515008
        assert 80e6 < reply["weight_bytes"] <= 4 * 134515008

        def answer(ids: list[int], **more: Any) -> dict[str, Any]:
            asked = {"op": "answer", "ids": ids, "text": "", "fresh": True, "max_tokens": TOKENS}
            asked |= {"temperature": 0, "top_k": 0, "top_p": 1.0, "seed": 0, "stop_ids": [], **more}
            return checked_answer(client.request(asked, 600), asked, 49152)

        first = answer(prompt)
        said = first["token_ids"]
        assert tokenizer.decode(said).startswith(" b):\n    return a + b")
        assert len(said) == TOKENS
        if mode.startswith("plain"):
            assert first["passes"] == TOKENS - 1
        else:
            assert first["passes"] < TOKENS - 1
            assert first["accepted"] > 0
            assert TOKENS <= 1 + first["passes"] + first["accepted"] <= TOKENS + 16
        assert answer(prompt)["token_ids"] == said
        assert answer(prompt, max_tokens=1)["token_ids"] == said[:1]
        stop = said[4]
        until = said.index(stop) + 1
        assert answer(prompt, stop_ids=[stop])["token_ids"] == said[:until]
        hot = {"temperature": 2.0, "top_k": 50, "top_p": 0.95}
        drawn = [answer(prompt, seed=seed, **hot)["token_ids"] for seed in (1, 2, 1)]
        assert drawn[0] == drawn[2] != drawn[1]
        reply = client.request({"op": "perplexity", "windows": [window, window]}, 600)
        assert reply["tokens"] == 2 * (len(window) - 1)
        ratio = math.exp(reply["loss"] / reply["tokens"] - _loss(smollm2, window))
        assert 0.98 < ratio < worse
    finally:
        client.close()


def _loss(path: Path, window: list[int]) -> float:
    """A token's, by llama.cpp."""
    pytest.importorskip("llama_cpp")
    from edgespec.export.quality import log_softmax
    from edgespec.runtimes.llama_cpp.runtime import LlamaCppRuntime

    runtime = LlamaCppRuntime(path, context=512, threads=1, device="cpu")
    scores = log_softmax(runtime.forward(window)[:-1])
    runtime.close()
    return -float(scores[np.arange(len(window) - 1), window[1:]].mean())
