from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgespec.bench.experiments import perplexity
from edgespec.bench.workloads import own_text
from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from tests.bench.conftest import Run


def test_figures_of_known_distributions() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    sums = perplexity.Comparison()
    sums.add(np.log(p) + 7, np.log(p), [1])  # a constant in the logits does not matter
    sums.add(np.log(p), np.log(q), [0])
    figures = sums.figures()
    assert figures["tokens"] == 2
    assert figures["llama_cpp"] == pytest.approx(math.sqrt(4 * 2))
    assert figures["onnx"] == pytest.approx(math.sqrt(4 * 4))
    assert figures["ratio"] == pytest.approx(math.sqrt(2))
    assert figures["top1_agreement"] == 0.5
    assert figures["mean_kl"] == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 2)


def test_windows_are_whole_and_in_order(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile(smollm2))
    tokens = tokenizer.encode(own_text())
    assert len(tokens) > 8192
    windows = list(perplexity.windows(tokenizer, own_text(), 4000))
    assert [len(window) for window in windows] == [512] * 8
    assert [token for window in windows for token in window] == tokens[: 8 * 512]
    with pytest.raises(UserError, match="fewer than 100"):
        list(perplexity.windows(tokenizer, "short", 100))


def test_the_program(run: Run, smollm2: Path) -> None:
    pytest.importorskip("llama_cpp")
    result = run(perplexity.main, smollm2, "--tokens", 4088)  # of 512 AMX makes 1.011
    ratio = float(result.stdout.splitlines()[-1].split("|")[5])
    assert 0.99 < ratio < 1.01


def test_a_quantization_that_llama_cpp_lacks(run: Run, smollm2: Path) -> None:
    pytest.importorskip("llama_cpp")
    assert "no file type Q9" in run(perplexity.main, smollm2, "--requantize", "Q9", code=2).stderr
