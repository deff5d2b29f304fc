"""The statistics of an answer, with the literature's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgespec.core.decoding import Step


@dataclass
class Tally:
    """Expected and measured sums over steps of one kind. Times are in seconds."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    expected_tokens: float = 0.0
    draft_s: float = 0.0
    pass_s: float = 0.0
    expected_pass_s: float = 0.0
    plain_s: float = 0.0
    """Expected seconds of as many passes of plain decoding."""

    def add(self, step: Step) -> None:
        """Count one step."""
        self.steps += 1
        self.drafted += step.drafted
        self.accepted += step.accepted
        self.tokens += len(step.tokens)
        self.expected_tokens += step.choice.tokens
        self.draft_s += step.draft_s
        self.pass_s += step.pass_s
        self.expected_pass_s += step.choice.pass_s
        self.plain_s += step.choice.plain_s


@dataclass
class Statistics:
    """Statistics of one answer. Times are in seconds.

    Every output token comes from a decoding pass: prefill stops one token before the end and computes
    no logits. ``target_passes`` counts the decoding passes. ``decode_s`` is the time of their steps,
    without the caller's time between steps. ``ttft_s`` is the time of the prefill and the first step.
    ``generated_tokens`` includes the stop token. A rate with a denominator of 0 is 0.
    """

    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    """Prompt tokens evaluated before decoding: not the cached tokens, and not the last token."""
    generated_tokens: int = 0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    draft_s: float = 0.0
    pass_s: float = 0.0
    overhead_s: float = 0.0
    target_passes: int = 0
    draft_passes: int = 0
    draft_pass_cost: float = 0.0
    """c: bytes read by one draft pass / by one target pass; 0 for model-free drafters."""
    drafted: int = 0
    accepted: int = 0
    peak_memory_bytes: int = 0
    """The peak resident memory of the process so far."""
    energy_j: float | None = None
    runtime: str = ""
    device: str = ""
    drafter: str = ""
    acceptance: str = "lossless"
    """The acceptance rule. Only ``lossless`` keeps the target's distribution."""
    exact: bool = False
    by_drafter: dict[str, Tally] = field(default_factory=dict)
    """Steps by drafter; "none" is plain decoding."""
    by_size: dict[int, Tally] = field(default_factory=dict)
    """Steps by the number of tokens in the target's pass."""

    def add(self, step: Step) -> None:
        """Count one step of the loop."""
        seconds = step.draft_s + step.pass_s + step.overhead_s
        if not self.target_passes:
            self.ttft_s = self.prefill_s + seconds
        self.target_passes += 1
        self.generated_tokens += len(step.tokens)
        self.draft_passes += step.draft_passes
        self.drafted += step.drafted
        self.accepted += step.accepted
        self.decode_s += seconds
        self.draft_s += step.draft_s
        self.pass_s += step.pass_s
        self.overhead_s += step.overhead_s
        self.by_drafter.setdefault(step.choice.drafter, Tally()).add(step)
        self.by_size.setdefault(1 + step.drafted, Tally()).add(step)

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens generated per second of decoding."""
        return _ratio(self.generated_tokens, self.decode_s)

    @property
    def block_efficiency(self) -> float:
        """τ: tokens generated per target pass."""
        return _ratio(self.generated_tokens, self.target_passes)

    @property
    def acceptance_rate(self) -> float:
        """α: accepted tokens / drafted tokens."""
        return _ratio(self.accepted, self.drafted)

    @property
    def mbsu(self) -> float:
        """Memory-bound speedup: τ / (1 + draft passes per target pass · c)."""
        passes = _ratio(self.draft_passes, self.target_passes)
        return self.block_efficiency / (1 + passes * self.draft_pass_cost)

    def as_dict(self) -> Mapping[str, int | float | str | bool | None]:
        """The ``stats`` object of ``generate --json``."""
        return {name: getattr(self, name) for name in _REPORTED}


_REPORTED = (
    "prompt_tokens",
    "generated_tokens",
    "ttft_s",
    "decode_s",
    "decode_tokens_per_s",
    "target_passes",
    "drafted",
    "accepted",
    "block_efficiency",
    "acceptance_rate",
    "mbsu",
    "peak_memory_bytes",
    "energy_j",
    "runtime",
    "device",
    "drafter",
    "acceptance",
    "exact",
)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
