"""An engine: one model, opened on this device, with what drafts for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, overload

from edgespec.drafting import Drafter
from edgespec.drafting.model import ModelDrafter
from edgespec.drafting.ngram import NgramDrafter
from edgespec.drafting.none import NoDrafter
from edgespec.errors import UserError
from edgespec.export import build_onnx, onnx_folder
from edgespec.export.architectures import ARCHITECTURES
from edgespec.models import store
from edgespec.models.chat_template import ChatTemplate
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from edgespec.progress import Progress, silent
from edgespec.runtimes import DEFAULT_CONTEXT, ModelInfo, Runtime
from edgespec.sampling import Sampling
from edgespec.scheduling.costs import measure
from edgespec.session import Loaded, Notice, Session, unheard
from edgespec.statistics import Statistics

DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "auto": NgramDrafter,
    "none": NoDrafter,
    "ngram": NgramDrafter,
}
_DRAFT_SIZES = (1, 2)
"""Passes that a draft runs: after a rejection, and after a draft accepted whole."""
_ALIKE = 0.99
"""The share of tokens that two vocabularies must spell alike: names of unused ones do differ."""


@dataclass(frozen=True)
class Completion:
    """An answer and what it cost. ``token_ids`` includes the stop token."""

    text: str
    token_ids: list[int]
    finish_reason: str
    statistics: Statistics


class Engine:
    """A model ready to answer; open it with ``Engine.open``, close it or use it in ``with``."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        """What the engine's sessions share: its runtime, drafter, tokenizer and template."""

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        runtime: str = "auto",
        device: str = "auto",
        provider: str | None = None,
        draft: str = "auto",
        exact: bool = True,
        context: int | None = None,
        threads: int | None = None,
        progress: Progress = silent,
    ) -> Engine:
        """Open a model by its name in the catalogue (pulled if absent) or the path of a GGUF file.

        ``runtime`` is auto, onnx or llama-cpp; ``device`` auto, cpu, gpu[:N] or npu; ``provider`` an
        execution provider of ONNX Runtime. ``draft`` is auto, none, ngram, or a model with the same
        tokenizer: a name in the catalogue, a GGUF file or a folder built for ONNX Runtime; it runs
        where the target does, on llama-cpp where onnx does not have its architecture. ``exact``
        makes greedy tokens independent, bit for bit, of what was drafted, where the runtime can.
        ``context`` is the most tokens of prompt and answer (default: the model's, at most 4096);
        ``threads`` defaults to one a core. Raises ``UserError`` for what the caller can put right.
        """
        if threads is not None and not 1 <= threads <= (os.cpu_count() or 1):
            raise UserError(
                f"cannot use {threads} threads; this machine runs 1 to {os.cpu_count()}"
            )
        draft_path = None if draft in DRAFTERS else _find_draft(draft, progress)
        path = store.resolve(str(model), progress)
        tokenizer, architecture = _read(path)
        source = tokenizer.chat_template
        template = ChatTemplate(source, tokenizer) if source else None
        kind = _choose_runtime(runtime, architecture)
        if provider is not None and kind != "onnx":
            raise UserError("--provider chooses among ONNX Runtime's; it needs --runtime onnx")

        def load(path: Path, kind: str, *, context: int | None, exact: bool) -> Runtime:
            options: dict[str, Any] = {"context": context, "threads": threads, "device": device}
            if kind == "llama-cpp":
                from edgespec.runtimes.llama_cpp import LlamaCppRuntime

                return LlamaCppRuntime(path, **options)
            from edgespec.runtimes.onnx import OnnxRuntime

            if not path.is_dir():
                path = build_onnx(path, _built_folder(path, progress), progress)
            return OnnxRuntime(path, provider=provider, exact=exact, progress=progress, **options)

        with ExitStack() as opened:  # closed again if what follows fails
            draft_model: Runtime | None = None
            readable = 0
            if draft_path is not None:
                draft_kind, limit, readable = _check_draft(draft_path, tokenizer, kind)
                # built first, and loaded without exactness: what it says is only a guess
                fits = min(limit, context or DEFAULT_CONTEXT)
                draft_model = load(draft_path, draft_kind, context=fits, exact=False)
                opened.callback(draft_model.close)
            target = load(path, kind, context=context, exact=exact)
            opened.callback(target.close)
            if tokenizer.vocab_size > target.info.vocab_size:
                raise UserError(
                    f"{path} has {tokenizer.vocab_size} tokens in its tokenizer and "
                    f"{target.info.vocab_size} in its head; they do not belong together"
                )
            drafter: Drafter
            if draft_model is None:
                drafter = DRAFTERS[draft]()
            else:
                drafter = ModelDrafter(draft_model, target.info.vocab_size, readable=readable)
                measure(draft_model, drafter.costs, _DRAFT_SIZES)
            loaded = Loaded(target, drafter, tokenizer, template, draft=draft_model)
            if draft != "none":
                progress("timing passes", 0, 1)
                measure(target, loaded.costs)
                progress("timing passes", 1, 1)
            opened.pop_all()
        return cls(loaded)

    @property
    def info(self) -> ModelInfo:
        """What is loaded, and where."""
        return self.loaded.target.info

    @property
    def can_chat(self) -> bool:
        """Whether the model has a chat template."""
        return self.loaded.template is not None

    def session(
        self,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        notice: Notice = unheard,
        progress: Progress = silent,
    ) -> Session:
        """A new conversation. Sessions of one engine answer one at a time."""
        return Session(
            self.loaded, system=system, sampling=sampling, notice=notice, progress=progress
        )

    @overload
    def generate(
        self,
        prompt: str,
        *,
        stream: Literal[False] = False,
        max_tokens: int | None = ...,
        chat: bool | None = ...,
        system: str | None = ...,
        **sampling: Any,
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: str,
        *,
        stream: Literal[True],
        max_tokens: int | None = ...,
        chat: bool | None = ...,
        system: str | None = ...,
        **sampling: Any,
    ) -> Iterator[str]: ...

    def generate(
        self,
        prompt: str,
        *,
        stream: bool = False,
        max_tokens: int | None = 256,
        chat: bool | None = None,
        system: str | None = None,
        **sampling: Any,
    ) -> Completion | Iterator[str]:
        """Answer ``prompt``, whole or (``stream``) as pieces of text while they come.

        ``chat`` puts the prompt into the model's chat template (default: where it has one);
        ``sampling`` are the fields of ``Sampling``: ``temperature`` (0, greedy, by default),
        ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``, ``seed``.
        """
        session = self.session(system=system, sampling=Sampling(**sampling))
        answer = session.chat if (self.can_chat if chat is None else chat) else session.complete
        pieces = answer(prompt, max_tokens=max_tokens)
        if stream:
            return pieces
        text = "".join(pieces)
        reason = session.finish_reason or "length"
        return Completion(text, session.token_ids, reason, session.statistics)

    def close(self) -> None:
        """Free the model, and its draft."""
        self.loaded.target.close()
        if self.loaded.draft is not None:
            self.loaded.draft.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(path: Path) -> tuple[Tokenizer, str]:
    """The tokenizer and the architecture; the rest of the metadata is gone before the model loads."""
    file = GGUFFile(path)
    return Tokenizer.from_gguf(file), file.architecture


def _find_draft(draft: str, progress: Progress) -> Path:
    """The file or the built folder of a draft model, pulled if absent."""
    folder = Path(os.path.expanduser(draft))
    if (folder / "edgespec.json").is_file():
        return folder
    try:
        return store.resolve(draft, progress)
    except UserError as error:
        choice = ", ".join(DRAFTERS)
        raise UserError(
            f"there is no drafter {draft!r}; take {choice} or a model ({error})"
        ) from error


def _check_draft(path: Path, target: Tokenizer, kind: str) -> tuple[str, int, int]:
    """What runs a draft beside a target on ``kind``, the most context it takes, its vocabulary's size.

    Raises ``UserError`` where its tokens are not the target's.
    """
    if path.is_dir():
        from edgespec.runtimes.onnx import read_manifest

        manifest = read_manifest(path)
        limit, kind, trimmed = manifest["context"], "onnx", manifest["token_ids"] is not None
        if (path / "tokenizer.json").is_file():
            own = Tokenizer.from_file(path)
            tokens = [own.token_text(id) for id in range(own.vocab_size)]
        else:  # then only their number is known, and of a trimmed one not even that
            count = target.vocab_size if trimmed else int(manifest["vocab_size"])
            tokens = [target.token_text(id) for id in range(min(count, target.vocab_size))]
            tokens += [""] * (count - len(tokens))
    else:
        file = GGUFFile(path)
        limit = file.metadata.get(f"{file.architecture}.context_length", DEFAULT_CONTEXT)
        kind = _choose_runtime("auto" if kind == "onnx" else kind, file.architecture)
        # a trimmed draft for llama.cpp keeps its tokenizer aside
        keys = ("edgespec.tokenizer.ggml.tokens", "tokenizer.ggml.tokens")
        tokens = next((file.metadata[key] for key in keys if key in file.metadata), [])
    pairs = zip(tokens, range(target.vocab_size), strict=False)
    alike = sum(token == target.token_text(id) for token, id in pairs)
    if alike < _ALIKE * max(len(tokens), target.vocab_size):
        raise UserError(
            f"{path} has another tokenizer than the target; draft with a smaller model of its family"
        )
    return kind, limit if isinstance(limit, int) else DEFAULT_CONTEXT, len(tokens)


def _choose_runtime(runtime: str, architecture: str) -> str:
    """``auto`` is onnx wherever it has the architecture, else llama-cpp."""
    if runtime not in ("auto", "onnx", "llama-cpp"):
        raise UserError(f"there is no runtime {runtime!r}; take auto, onnx or llama-cpp")
    if runtime != "auto":
        return runtime
    if architecture not in ARCHITECTURES and find_spec("llama_cpp") is not None:
        return "llama-cpp"
    return "onnx"


def _built_folder(path: Path, progress: Progress) -> Path:
    """Beside what the store downloaded; for the user's own files, in the cache."""
    own = path.resolve().is_relative_to(store.models_dir().resolve())
    parent = path.parent if own else store.cache_dir() / "onnx"
    return onnx_folder(path, store.sha256_of(path, progress), parent)
