"""The configuration of a run: the model, the prompts, and how every system is to answer them."""

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
    """The run configuration that all systems share."""

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
        """User messages by prompt id; only the first where the model has no chat template."""
        return {p.id: p.turns if self.template else p.turns[:1] for p in self.prompts}

    def ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of the whole prompt; every system gets the same."""
        if self.template:
            return self.template.render(messages)
        bos = self.tokenizer.bos
        begin = [bos] if self.tokenizer.add_bos and bos is not None else []
        return begin + self.tokenizer.encode(messages[-1]["content"])

    @property
    def prompts_sha256(self) -> str:
        """A hash of all prompts."""
        asked = [[p.id, p.category, *self.turns[p.id]] for p in self.prompts]
        return sha256(json.dumps(asked).encode()).hexdigest()

    def needed(self, prompt: Prompt) -> int:
        """An estimate of the context that the whole conversation takes, in tokens."""
        messages = [{"role": "user", "content": text} for text in self.turns[prompt.id]]
        if self.template:  # one by one: a template may require that roles alternate
            lengths = [len(self.template.render([message])) for message in messages]
        else:
            lengths = [len(self.ids(messages))]
        return sum(lengths) + len(lengths) * self.max_tokens
