"""edgespec itself, measured as the peers are: in a process of its own, through its public names."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

from edgespec.assemble import DRAFTERS
from edgespec.bench.experiments.passes import time_sizes
from edgespec.bench.experiments.switching import Mode, Switch
from edgespec.bench.peers.workers.common import windows_loss
from edgespec.bench.peers.workers.serving import serve, timed
from edgespec.core.runtime import FloatArray
from edgespec.core.sampling import Sampling
from edgespec.drafting.model_free import MODEL_FREE
from edgespec.engine import Engine
from edgespec.local_model import find_draft
from edgespec.models.gguf import GGUFFile
from edgespec.progress import silent
from edgespec.session import Session


class Own:
    """A model that edgespec opened, in the mode that a request's settings name. What earlier runs learnt is not
    known here, nothing is kept, and no mode learns of another."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.switch = Switch(engine)
        self.session: Session | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """A turn of a conversation, or a whole prompt where the model cannot chat."""
        self.state = self.switch.to(self._mode(request["settings"]))
        if request["fresh"] or self.session is None:
            self.session = self._fresh_session(request)
        session = self.session
        say = session.chat if self.engine.can_chat else session.complete

        def pieces() -> Iterator[list[int]]:
            sent = 0
            for _ in say(request["text"], max_tokens=request["max_tokens"]):
                yield session.token_ids[sent:]
                sent = len(session.token_ids)
            yield session.token_ids[sent:]

        reply = timed(pieces(), perf_counter())
        stats = session.statistics
        if stats.prompt_tokens != len(request["ids"]):
            raise RuntimeError(f"{stats.prompt_tokens} tokens of prompt, not {len(request['ids'])}")
        return {
            **reply,
            "passes": stats.target_passes,
            "draft_passes": stats.draft_passes,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "draft_s": stats.draft_s,
            "pass_s": stats.pass_s,
            "own_s": stats.overhead_s,
            "by_drafter": {
                name: [tally.drafted, tally.accepted]
                for name, tally in stats.by_drafter.items()
                if tally.drafted
            },
            "by_rows": {
                rows: [tally.steps, tally.tokens, tally.pass_s]
                for rows, tally in stats.by_size.items()
            },
        }

    def _mode(self, settings: dict[str, Any]) -> Mode:
        name = settings["draft"] if settings["draft"] in MODEL_FREE else "hierarchy"
        if name == "hierarchy" and self.engine.draft_model:
            name += "+model"
        return Mode(name, settings["exact"] is not False and self.switch.exact_passes)

    def _fresh_session(self, request: dict[str, Any]) -> Session:
        self.engine.target.truncate(0)
        self.state.context = []
        self.switch.forget()
        names = ("temperature", "top_k", "top_p", "seed")
        sampling = Sampling(**{name: request[name] for name in names})
        return Session(self.state, sampling=sampling, ignore_stop=not request["stop_ids"])

    def perplexity(self, windows: list[list[int]]) -> dict[str, Any]:
        """Of the target, as plain decoding runs it."""
        target = self.engine.target

        def read(chunk: list[int]) -> FloatArray:
            logits = target.forward(chunk)
            target.keep(range(len(chunk)))
            return logits

        return windows_loss(windows, lambda: target.truncate(0), read)

    def curve(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of passes over n tokens: ``{"seconds": {n: […]}}``."""
        return {"seconds": time_sizes(self.engine, repeats=request["repeats"])}


def opened(request: dict[str, Any]) -> tuple[Own, dict[str, Any]]:
    """``settings``: ``draft``, ``runtime`` and ``exact``, as ``Engine.open`` takes them, of one of the systems
    that the process is for: the drafter and exactness are those of each request."""
    settings = request["settings"]
    model_free = settings["draft"] in DRAFTERS
    engine = Engine.open(
        request["model"],
        runtime=settings["runtime"],
        draft="none" if model_free else settings["draft"],
        context=request["context"],
        threads=request["threads"],
        remember=False,
    )
    info, model = engine.info, engine.draft_model
    return Own(engine), {
        "version": f"{metadata.version('edgespec')}, {info.runtime} on {info.device}",
        "weights": "as in the file",
        "weight_bytes": info.weight_bytes,
        "draft_weight_bytes": model.info.weight_bytes if model else None,
        "parameters": parameters(Path(request["model"])),
        "draft_parameters": parameters(find_draft(settings["draft"], silent).path)
        if model
        else None,
    }


def parameters(path: Path) -> int | None:
    """How many numbers the tensors of a GGUF file hold; of other models it is not known."""
    if path.suffix != ".gguf":
        return None
    return sum(prod(tensor.shape) for tensor in GGUFFile(path).tensors.values())


if __name__ == "__main__":
    serve(opened)
