"""What every system of a run is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from edgespec.bench.workloads import Prompt
from edgespec.models.chat_template import ChatTemplate
from edgespec.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class RunConfig:
    """What is measured, and how."""

    model: Path
    draft: Path | None
    tokenizer: Tokenizer
    template: ChatTemplate | None
    prompts: Sequence[Prompt]
    max_tokens: int
    rounds: int = 2
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    context: int = 4096
    threads: int = 1
    stop: bool = True

    @property
    def turns(self) -> dict[int, tuple[str, ...]]:
        """By prompt; only the first where the model cannot chat."""
        return {p.id: p.turns if self.template else p.turns[:1] for p in self.prompts}

    def ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The whole prompt, as every system gets it."""
        if self.template:
            return self.template.render(messages)
        bos = self.tokenizer.bos
        begin = [bos] if self.tokenizer.add_bos and bos is not None else []
        return begin + self.tokenizer.encode(messages[-1]["content"])

    @property
    def prompts_sha256(self) -> str:
        """Of all that is asked."""
        asked = [[p.id, p.category, *self.turns[p.id]] for p in self.prompts]
        return sha256(json.dumps(asked).encode()).hexdigest()

    def needed(self, prompt: Prompt) -> int:
        """Tokens of context that the whole conversation takes, about."""
        messages = [{"role": "user", "content": text} for text in self.turns[prompt.id]]
        if self.template:  # which may insist that roles alternate
            lengths = [len(self.template.render([message])) for message in messages]
        else:
            lengths = [len(self.ids(messages))]
        return sum(lengths) + len(lengths) * self.max_tokens
