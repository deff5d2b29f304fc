"""The quality report: its arithmetic on distributions that are known, and its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edgespec.core.runtime import FloatArray, Logits, ModelInfo
from edgespec.errors import UserError
from edgespec.export import build_onnx
from edgespec.export.quality import (
    WINDOW,
    Quality,
    check,
    held_out,
    log_softmax,
    measure,
    shipped_text,
    windows,
)
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.tiny import tiny_gguf


@dataclass
class Known:
    """A runtime that says the same after every token; it refuses passes out of step."""

    probabilities: Sequence[float]
    read: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = len(self.probabilities)
        self.info = ModelInfo("known", "", size, 1, 4096, 1000, "cpu", "test")
        self.length = 0
        self.appended = 0

    def forward(
        self, tokens: Sequence[int], parents: Sequence[int] | None = None, *, logits: Logits = "all"
    ) -> FloatArray:
        assert self.length + len(tokens) <= WINDOW
        self.read += tokens
        self.appended = len(tokens)
        rows = np.log(np.array([self.probabilities] * len(tokens)))
        return (rows + 7).astype(np.float32)  # a constant in the logits does not matter

    def keep(self, rows: Sequence[int]) -> None:
        assert list(rows) == list(range(self.appended))
        self.length += len(rows)

    def truncate(self, length: int) -> None:
        assert length <= self.length
        self.length = length

    def close(self) -> None: ...


P, Q = (0.5, 0.25, 0.25), (0.25, 0.5, 0.25)


def test_the_figures_of_known_distributions() -> None:
    text = [[2, 0, 0, 1], [1, 2]]  # scored: 0, 0, 1 and 2
    found = measure(Known(P), Known(Q), text, bits_per_weight=4.5)
    assert found.tokens == 4
    assert found.reference_perplexity == pytest.approx((2 * 2 * 4 * 4) ** (1 / 4))
    assert found.perplexity == pytest.approx((4 * 4 * 2 * 4) ** (1 / 4))
    assert found.loss == pytest.approx(2 ** (1 / 4) - 1)
    assert found.kl_divergence == pytest.approx(0.25 * math.log(2))
    assert (found.bytes_per_token, found.bits_per_weight) == (1000, 4.5)
    assert found.to_json()["perplexity_lost"] == found.loss


def test_every_window_begins_anew_and_is_read_in_order() -> None:
    text = [[i % 3 for i in range(WINDOW)], [1, 0, 2]]
    one, other = Known(P), Known(Q)
    assert measure(one, other, text, 8.0).tokens == WINDOW - 1 + 2
    assert one.read == other.read
    assert one.read[: WINDOW - 1] == text[0][:-1]


def test_a_runtime_against_itself_loses_nothing() -> None:
    one = Known(P)
    found = measure(one, one, [[0, 1, 2]], 8.0)
    assert (found.loss, found.kl_divergence) == (0, 0)
    assert len(one.read) == 3


def test_extreme_logits_stay_finite() -> None:
    rows = np.array([[1e4, -1e4, 0]], np.float32)
    assert log_softmax(rows)[0, 0] == 0
    assert np.isfinite(log_softmax(rows)).all()


def quality(loss: float) -> Quality:
    return Quality(1000, 10 * (1 + loss), 10.0, 0.01, 1, 4.5)


def test_more_than_three_per_cent_is_an_error_unless_allowed() -> None:
    check(quality(0.029))
    check(quality(0.031), allow_loss=True)
    with pytest.raises(UserError, match=r"lose 3\.1% .*--allow-loss") as error:
        check(quality(0.031))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        check(quality(math.nan))


def test_the_shipped_texts_do_not_overlap(tmp_path: Path) -> None:
    calibration, rest = shipped_text("calibration"), shipped_text("held_out")
    lines = {line for line in calibration.splitlines() if len(line) > 40}
    assert not lines & set(rest.splitlines())
    tokenizer = Tokenizer.from_gguf(GGUFFile(tiny_gguf(tmp_path / "a.gguf")))
    found = held_out(tokenizer)
    assert [len(window) for window in found] == [WINDOW] * 2
    assert [*found[0], *found[1]] == tokenizer.encode(rest)[: 2 * WINDOW]


def test_windows_of_a_short_text_and_with_a_first_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile(tiny_gguf(tmp_path / "a.gguf")))
    assert windows(tokenizer, "hello") == [tokenizer.encode("hello")]
    tokenizer.add_bos = True
    assert windows(tokenizer, "hello") == [[tokenizer.bos, *tokenizer.encode("hello")]]
    assert {len(window) for window in windows(tokenizer, "hello world " * 900)} == {WINDOW}


def test_two_onnx_models(tmp_path: Path) -> None:
    folders = [
        build_onnx(tiny_gguf(tmp_path / f"{kind}.gguf", quant=kind), tmp_path / kind)
        for kind in ("F32", "Q4_0")
    ]
    one, other = (OnnxRuntime(folder, context=WINDOW, exact=False) for folder in folders)
    text = np.random.default_rng(0).integers(0, 256, (2, 100)).tolist()
    found = measure(one, other, text, 4.5)
    assert found.bytes_per_token == other.info.weight_bytes < one.info.weight_bytes
    assert found.kl_divergence > 0.01
    assert measure(one, one, text, 32.0).perplexity == found.reference_perplexity
