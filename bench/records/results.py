"""The record of a run: one JSON file, ``results.json``. Times are in seconds, sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1
"""Changes with the meaning of a field."""
OWN = "edgespec"
"""The peer name of edgespec itself."""
PLAIN = "edgespec none"
"""Plain decoding, which every system is compared with."""
EXACT = "edgespec none --exact"
"""Plain decoding in the passes that verify drafts: drafted answers must have its tokens, bit for bit."""
AS_IN_FILE = "as in the file"
"""Weights that were not converted."""


@dataclass(frozen=True)
class Answer:
    """One answer of one system. What a system does not report is ``None``."""

    system: str
    prompt: int
    category: str
    turn: int
    round: int
    prompt_tokens: int
    token_ids: list[int]
    """Output tokens, the stop token included."""
    ttft_s: float
    """From the request to the first tokens."""
    decode_s: float
    """From the first tokens to the last."""
    first_tokens: int = 1
    """How many tokens came first: a step of speculation may output several."""
    cpu_s: float | None = None
    """Processor time of the system's processes, of all cores."""
    energy_j: float | None = None
    """Above idle, from the request to the last token."""
    passes: int | None = None
    """Decoding passes of the target; the prompt's are not counted."""
    draft_passes: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    draft_s: float | None = None
    pass_s: float | None = None
    own_s: float | None = None
    """Of the decoding steps: drafting, the target's passes, and all else."""
    by_drafter: dict[str, list[int]] = field(default_factory=dict)
    """Tokens drafted and accepted, by drafter."""
    by_rows: dict[int, list[float]] = field(default_factory=dict)
    """By tokens in a pass: steps, output tokens, seconds of the passes."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Answer:
        """The inverse of ``asdict``."""
        return cls(**{**data, "by_rows": {int(n): row for n, row in data["by_rows"].items()}})

    @property
    def tokens(self) -> int:
        """How many tokens were output."""
        return len(self.token_ids)

    @property
    def rate(self) -> float | None:
        """Tokens a second of decoding, the first not counted; ``None`` if all came at once."""
        later = self.tokens - self.first_tokens
        return later / self.decode_s if later > 0 and self.decode_s > 0 else None


@dataclass
class System:
    """A way to answer that is measured: edgespec with a drafter, or a peer in one of its modes."""

    name: str
    """For people; unique in a run. "edgespec none" is plain decoding."""
    peer: str
    """``OWN``, or a name in ``peers.PEERS``."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What its worker receives when it opens the model."""
    baseline: str | None = None
    """The system that is its plain decoding; ``None`` for those themselves."""
    words: str | None = None
    """The system that its greedy answers must equal, token for token; ``None``: no system."""
    version: str = ""
    weights: str = ""
    """The weights that run: ``AS_IN_FILE``, or how they were converted."""
    weight_bytes: int | None = None
    """Read by one pass."""
    draft_weight_bytes: int | None = None
    parameters: int | None = None
    draft_parameters: int | None = None
    perplexity: float | None = None
    """Of the weights that run, over the bench's text; where they were converted, and for the reference."""
    open_s: float | None = None
    peak_memory_bytes: int | None = None
    """The largest resident memory of its processes, together."""
    memory: list[list[float]] = field(default_factory=list)
    """Seconds since the run began, and resident bytes then."""
    failures: list[str] = field(default_factory=list)
    """What went wrong, a line each. Its other answers count."""

    @property
    def is_own(self) -> bool:
        return self.peer == OWN


@dataclass
class Results:
    """A whole run."""

    model: dict[str, Any]
    """``name``, ``bytes``, ``sha256``; ``draft`` with the same of the draft model, or ``None``."""
    settings: dict[str, Any]
    """``command``, ``max_tokens``, ``temperature``, ``top_k``, ``top_p``, ``seed``, ``context``, ``threads``, ``rounds``, ``stop``, ``prompts``."""
    machine: dict[str, Any]
    """``cpu``, ``cores``, ``frequency_hz``, ``memory_bytes``, ``bandwidth`` (bytes/s), ``power``, ``system``, ``python``, ``versions``."""
    energy: dict[str, Any]
    """``reader`` (``None`` where nothing measures), ``why_not``, ``idle_w``, ``error`` (relative, of one answer's joules)."""
    systems: dict[str, System]
    answers: list[Answer]
    curves: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    """By runtime: seconds of passes over n tokens."""
    profile: dict[str, Any] | None = None
    """``--profile``: ``operators`` (``name``, ``count``, ``seconds`` of one pass), ``own_share`` of a step, ``pass_s``, ``bytes``, ``bandwidth``, ``floor_s``."""
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Results:
        """The inverse of ``to_json``. Raises ``TypeError``, ``LookupError`` or ``ValueError`` for other data."""
        if data["schema"] != SCHEMA:
            raise ValueError(f"its schema is {data['schema']}; this edgespec reads {SCHEMA}")
        return cls(
            **{
                **data,
                "systems": {name: System(**s) for name, s in data["systems"].items()},
                "answers": [Answer.from_json(answer) for answer in data["answers"]],
                "curves": {
                    name: {int(n): s for n, s in curve.items()}
                    for name, curve in data["curves"].items()
                },
            }
        )
