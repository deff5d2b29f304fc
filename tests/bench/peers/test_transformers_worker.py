"""transformers' worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.peers.asking import ask, needs

PEER = "transformers"


@needs(PEER)
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["plain", "prompt-lookup", "assisted"])
def test_it_answers(mode: str, smollm2: Path, tmp_path: Path) -> None:
    ask(PEER, f"{mode}?dtype=float32", "dequantized to float32", 1.005, smollm2, tmp_path)
