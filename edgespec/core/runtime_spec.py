"""What a runtime says of itself before it loads anything: the one thing to write to add a runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from edgespec.core.runtime import MAX_ROWS, Runtime
from edgespec.progress import Progress, silent

Form = Literal["gguf", "checkpoint", "built", "plain"]
"""A ``.gguf`` file, a safetensors folder, a folder that ``edgespec.export`` built, or a graph that
Optimum wrote."""

CACHE_BYTES = {"float32": 4.0, "float16": 2.0, "q8_0": 34 / 32}
"""Bytes of a number in the key-value cache; q8_0 has blocks of 32 with a float16 scale."""


class ModelHeader(Protocol):
    """The metadata of a model file, without its weights."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """By GGUF's keys."""
        ...

    @property
    def tensors(self) -> Mapping[str, Any]:
        """By GGUF's names; each has a ``shape``, its columns last."""
        ...

    @property
    def architecture(self) -> str:
        """The family of the model, such as ``llama``."""
        ...


@dataclass(frozen=True)
class ModelDimensions:
    """The sizes of a model that its memory follows from."""

    vocab_size: int
    """Tokens of its tokenizer."""
    columns: int
    """Columns of its logits: fewer where its head was trimmed."""
    context: int
    cache_numbers: int
    """Keys and values of one token, in all layers."""
    heads: int
    head_dim: int
    hidden: int
    feed_forward: int
    matrices: int
    """Matrix products of a pass."""
    stored_bytes: int
    """The weights as they are stored."""
    llama_bytes: int
    """The weights as llama.cpp keeps them on this processor."""
    packed_bytes: int
    """The weights as ONNX Runtime packs them: codes, scales and block sums, without the embedding."""
    largest_bytes: int
    """The largest of its packed matrices."""


@dataclass(frozen=True)
class RunConfiguration:
    """How a model runs: what its memory depends on besides its dimensions."""

    runtime: RuntimeSpec
    context: int
    cache_type: str
    rows: int = MAX_ROWS
    """Rows of logits in the largest pass."""
    built: bool = True
    """``False``: the model is built for the runtime first."""


@dataclass(frozen=True)
class RuntimeMemory:
    """Bytes that one model takes on one runtime."""

    libraries: int
    """The interpreter and the packages that answering imports."""
    runtime: int
    """The runtime's own structures."""
    weights: int
    cache: int
    logits: int
    activations: int
    loading: int
    """Taken for a while during loading, beside ``runtime`` and ``weights``."""


@dataclass(frozen=True)
class LoadOptions:
    """How a runtime loads a model; each runtime reads what it has a use for."""

    context: int | None = None
    """Tokens of cache; ``None``: the model's, at most 4096."""
    threads: int | None = None
    """``None``: one for each physical core."""
    device: str = "auto"
    provider: str | None = None
    """An execution provider of ONNX Runtime."""
    exact: bool = False
    """Prove sizes of pass to agree bit for bit, and pad passes to them, where the runtime can."""
    rows: int = MAX_ROWS
    """Rows of logits in the largest pass."""
    cache_type: str | None = None
    """One of ``RuntimeSpec.cache_types``; ``None``: the first."""
    progress: Progress = silent


class RuntimeSpec(ABC):
    """What the engine, the planner and the command line know of a runtime.

    Subclass it in a file of its own and register an instance under the entry point group
    ``edgespec.runtimes``. Importing that file must be cheap: import the runtime's library in the
    methods that need it. Specs travel to other processes, so keep no state in them.
    """

    name: str
    """As ``--runtime`` takes it."""
    title: str
    """The library's own name, for messages."""
    forms: tuple[Form, ...]
    """What ``load`` takes. Models in other forms are built for a runtime that takes ``built``."""
    install: str
    """The command that installs what the runtime needs."""
    exact: bool = False
    """Whether it can prove sizes of pass to agree bit for bit."""
    prefill_chunk: int = 64
    """Prompt tokens in one pass."""
    cache_types: tuple[str, ...] = ("float16",)
    """Types of keys and values that it keeps, the default first."""
    devices: tuple[str, ...] = ("cpu",)
    """Kinds of device that it drives: cpu, gpu, npu."""
    providers: bool = False
    """Whether it takes an execution provider of ONNX Runtime."""

    @abstractmethod
    def why_not_here(self) -> str | None:
        """Why the runtime cannot be used on this machine; ``None`` where it can. Imports nothing."""

    @abstractmethod
    def version(self) -> str:
        """What a latency profile depends on: the library's version and build. Raises ``UserError``."""

    @abstractmethod
    def device(self, device: str, provider: str | None) -> str:
        """The device that ``--device`` and ``--provider`` mean here. Raises ``UserError``."""

    @abstractmethod
    def memory(self, model: ModelDimensions, run: RunConfiguration) -> RuntimeMemory:
        """The bytes that ``model`` takes as ``run`` has it, with its cache full."""

    @abstractmethod
    def load(self, path: Path, form: Form, options: LoadOptions) -> Runtime:
        """Load a model in one of ``forms``. Raises ``UserError``."""

    def refuses(self, model: ModelHeader) -> str | None:
        """Why the runtime must not run this GGUF file; ``None`` where it can."""
        return None

    def cache_types_of(self, model: ModelDimensions) -> tuple[str, ...]:
        """Those of ``cache_types`` that fit the model's heads, the default first."""
        return self.cache_types

    def pool_threads(self) -> int | None:
        """The threads that models of this process share already; ``None``: not decided yet."""
        return None
