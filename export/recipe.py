"""The request to ``edgespec export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgespec.errors import UserError
from edgespec.export.vocabulary import Answer


@dataclass(frozen=True)
class Recipe:
    """The changes to a model: the options of ``edgespec export``."""

    format: str = "onnx"
    """``packed`` (for the kernels), ``onnx`` (for ONNX Runtime's own operators) or ``gguf``."""
    weights: str = "exact"
    keep_layers: int | Sequence[int] | None = None
    """The number of layers to keep, or their indices."""
    trim_vocab: int | str | None = None
    """The number of tokens to keep in the head, or "auto"."""
    corpus: Sequence[Path] = ()
    """Files whose most frequent tokens are kept."""
    drafts: Sequence[Path] = ()
    """Bundles: their drafts, or their target as a draft, are included."""
    allow_loss: bool = False

    @property
    def makes_a_draft(self) -> bool:
        """Whether what comes out is no longer fit to be a target."""
        return self.keep_layers is not None or self.trim_vocab is not None

    def check(self, answers: Sequence[Answer]) -> None:
        """Raise ``UserError`` for what does not go together."""
        texts = bool(self.corpus) or bool(answers)
        if self.trim_vocab is not None and not texts:
            raise UserError(
                "--trim-vocab needs to know which tokens are frequent: give --corpus FILE, "
                "--sampled-from TARGET with --prompts FILE, or both"
            )
        if self.trim_vocab is None and texts:
            raise UserError("--corpus and --sampled-from go with --trim-vocab")
        if self.trim_vocab == "auto" and not answers:
            raise UserError(
                "--trim-vocab auto weighs the draft's time against the target's; "
                "give --sampled-from TARGET with --prompts FILE"
            )
