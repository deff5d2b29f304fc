"""The quality of changed weights: perplexity, and divergence from the weights before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.core.runtime import FloatArray, Runtime
from edgespec.errors import UserError
from edgespec.models.tokenizer import Tokenizer
from edgespec.progress import Progress, silent

MAX_LOSS = 0.03
"""More perplexity lost than this is an error, unless the user allows it."""
WINDOW = 512
"""Tokens that are read from an empty cache, one window after the other."""
_PASS = 64
"""Tokens in a pass: their logits, in double precision, are what this needs memory for."""

Windows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Quality:
    """The quality of a runtime on a text, and of its reference: the weights before the export.

    ``kl_divergence`` is the mean of Σ p log(p / q) over the tokens, in nats, p the reference's
    distribution. ``bytes_per_token`` is what one pass reads, ``bits_per_weight`` the mean over all
    stored matrices with their scales.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float
    kl_divergence: float
    bytes_per_token: int
    bits_per_weight: float

    @property
    def loss(self) -> float:
        """The part of perplexity lost: 0.03 is 3 % more than the reference's."""
        return self.perplexity / self.reference_perplexity - 1

    def to_json(self) -> dict[str, Any]:
        """As bundles keep it."""
        return {**asdict(self), "perplexity_lost": self.loss}


def held_out(tokenizer: Tokenizer, tokens: int = 1024) -> list[list[int]]:
    """Windows of the text that nothing is calibrated on; at least ``tokens``, or all of it."""
    return windows(tokenizer, shipped_text("held_out"), tokens)


def shipped_text(name: str) -> str:
    """One of the texts in ``edgespec/export/texts``."""
    path = resources.files("edgespec.export").joinpath("texts").joinpath(f"{name}.txt")
    return path.read_text(encoding="utf-8")


def windows(tokenizer: Tokenizer, text: str, tokens: int | None = None) -> list[list[int]]:
    """``text`` in whole windows of ``WINDOW`` tokens, as many as hold ``tokens`` (all: ``None``).

    Each begins as the model's texts do. A text shorter than a window is one of its own length.
    """
    begin = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    step, ids = WINDOW - len(begin), tokenizer.encode(text)
    wanted = len(ids) if tokens is None else min(len(ids), -(-tokens // WINDOW) * step)
    starts = range(0, max(wanted - step, 0) + 1, step)
    return [begin + ids[start : start + step] for start in starts]


def measure(
    reference: Runtime,
    runtime: Runtime,
    windows: Windows,
    bits_per_weight: float,
    progress: Progress = silent,
) -> Quality:
    """Read ``windows`` with both, each from an empty cache; a window's first token is not scored.

    Where both are the same runtime, its perplexity is all there is to measure.
    """
    total = sum(len(window) - 1 for window in windows)
    loss = reference_loss = divergence = 0.0
    done = 0
    for window in windows:
        for each in (reference, runtime):
            each.truncate(0)
        for start in range(0, len(window) - 1, _PASS):
            chunk, following = window[start : start + _PASS], window[start + 1 : start + 1 + _PASS]
            p = log_softmax(reference.forward(chunk)[: len(following)])
            reference.keep(range(len(chunk)))
            q = p
            if runtime is not reference:
                q = log_softmax(runtime.forward(chunk)[: len(following)])
                runtime.keep(range(len(chunk)))
            rows = np.arange(len(following))
            reference_loss -= float(p[rows, following].sum())
            loss -= float(q[rows, following].sum())
            divergence += float((np.exp(p) * (p - q)).sum())
            done += len(following)
            progress("measuring the quality", done, total)
    return Quality(
        tokens=total,
        perplexity=math.exp(loss / total),
        reference_perplexity=math.exp(reference_loss / total),
        kl_divergence=divergence / total,
        bytes_per_token=runtime.info.weight_bytes,
        bits_per_weight=bits_per_weight,
    )


def log_softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    """Of every row, in double precision."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def check(quality: Quality, allow_loss: bool = False) -> None:
    """Raise ``UserError`` where more than ``MAX_LOSS`` of perplexity was lost, unless that is allowed."""
    if not quality.loss <= MAX_LOSS and not allow_loss:  # NaN is no small loss
        raise UserError(
            f"these weights lose {quality.loss:.1%} of perplexity "
            f"({quality.reference_perplexity:.2f} → {quality.perplexity:.2f}; {MAX_LOSS:.0%} is the "
            "limit); take --weights int8 or exact, or keep them with --allow-loss"
        )
