"""The description of a runtime before it loads a model. To add a runtime, write a ``RuntimeSpec``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from edgespec.core.runtime import MAX_ROWS, Runtime
from edgespec.progress import Progress, silent

Form = Literal["gguf", "checkpoint", "built", "plain"]
"""A ``.gguf`` file, a safetensors folder, a folder from ``edgespec.export``, or a graph from Optimum."""

CACHE_BYTES = {"float32": 4.0, "float16": 2.0, "q8_0": 34 / 32}
"""Bytes of a number in the key-value cache; q8_0 has blocks of 32 with a float16 scale."""


class ModelHeader(Protocol):
    """The metadata of a model file, without its weights."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Values by GGUF key."""
        ...

    @property
    def tensors(self) -> Mapping[str, Any]:
        """Tensors by GGUF name; each has a ``shape``, columns last, and a ``type``."""
        ...

    @property
    def architecture(self) -> str:
        """The model's architecture, such as ``llama``."""
        ...


@dataclass(frozen=True)
class ModelDimensions:
    """The dimensions of a model that determine its memory."""

    vocab_size: int
    """Tokens of the tokenizer."""
    columns: int
    """Columns of the logits: fewer if the head is trimmed."""
    context: int
    cache_numbers: int
    """Key and value numbers of one token, in all layers."""
    heads: int
    head_dim: int
    hidden: int
    feed_forward: int
    matrices: int
    """Matrix multiplications of a pass."""
    stored_bytes: int
    """Bytes of the stored weights."""
    llama_bytes: int
    """Bytes of the weights in llama.cpp's layout for this CPU."""
    packed_bytes: int
    """Bytes of the weights that ONNX Runtime packs: codes, scales and block sums, without the embedding."""
    largest_bytes: int
    """Bytes of the largest packed matrix."""
    kernel_bytes: int = 0
    """Bytes of the weights that the project's kernels pack, embedding included; 0 if they are not here."""


@dataclass(frozen=True)
class RunConfiguration:
    """The settings that determine a model's memory, besides its dimensions."""

    runtime: RuntimeSpec
    context: int
    cache_type: str
    rows: int = MAX_ROWS
    """Rows of logits in the largest pass."""
    built: bool = True
    """``False``: the model must be built for the runtime first."""


@dataclass(frozen=True)
class RuntimeMemory:
    """The memory of one model on one runtime, in bytes."""

    libraries: int
    """The interpreter and the imported packages."""
    runtime: int
    """The runtime's structures."""
    weights: int
    cache: int
    logits: int
    activations: int
    loading: int
    """Temporary memory during loading, besides ``runtime`` and ``weights``."""


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading a model. Each runtime reads the options that it supports."""

    context: int | None = None
    """Cache capacity in tokens; ``None``: the model's context, at most 4096."""
    threads: int | None = None
    """``None``: one per physical core."""
    device: str = "auto"
    provider: str | None = None
    """An execution provider of ONNX Runtime."""
    exact: bool = False
    """Prove which pass sizes agree bit for bit, and pad passes to them, if the runtime can."""
    rows: int = MAX_ROWS
    """Rows of logits in the largest pass."""
    cache_type: str | None = None
    """One of ``RuntimeSpec.cache_types``; ``None``: the first."""
    profile: Path | None = None
    """The start of the name of a file for each operator's time, if the runtime can measure it."""
    progress: Progress = silent


class RuntimeSpec(ABC):
    """A runtime for the engine, the planner and the command line.

    Subclass it in a file of its own and register an instance under the entry point group
    ``edgespec.runtimes``. Importing that file must be cheap: import the runtime's library in the
    methods that need it. Specs travel to other processes, so keep no state in them.
    """

    name: str
    """The value of ``--runtime``."""
    title: str
    """The library's name, for messages."""
    forms: tuple[Form, ...]
    """The forms that ``load`` accepts. Other forms are built for a runtime that accepts ``built``."""
    install: str
    """The command that installs the runtime's packages."""
    exact: bool = False
    """Whether it can prove that pass sizes agree bit for bit."""
    prefill_chunk: int = 64
    """Prompt tokens per pass."""
    cache_types: tuple[str, ...] = ("float16",)
    """Types of cached keys and values, the default first."""
    devices: tuple[str, ...] = ("cpu",)
    """Supported kinds of device: cpu, gpu, npu."""
    providers: bool = False
    """Whether it has execution providers of ONNX Runtime."""

    @abstractmethod
    def why_not_here(self) -> str | None:
        """The reason if the runtime cannot be used on this machine, else ``None``. Imports nothing."""

    @abstractmethod
    def version(self) -> str:
        """The library's version and build, for latency profiles. Raises ``UserError``."""

    @abstractmethod
    def device(self, device: str, provider: str | None) -> str:
        """The device for ``--device`` and ``--provider`` on this machine. Raises ``UserError``."""

    @abstractmethod
    def memory(self, model: ModelDimensions, run: RunConfiguration) -> RuntimeMemory:
        """The memory of ``model`` with the run configuration ``run`` and a full cache."""

    @abstractmethod
    def load(self, path: Path, form: Form, options: LoadOptions) -> Runtime:
        """Load a model in one of ``forms``. Raises ``UserError``."""

    def refuses(self, model: ModelHeader) -> str | None:
        """The reason if the runtime must not run this GGUF file, else ``None``."""
        return None

    def packs(self, device: str, provider: str | None) -> bool:
        """Whether models are built for the project's kernels there, if they are not built yet."""
        return False

    def cache_types_of(self, model: ModelDimensions) -> tuple[str, ...]:
        """The ``cache_types`` that fit the model's heads, the default first."""
        return self.cache_types

    def pool_threads(self) -> int | None:
        """The thread count of this process's shared pool; ``None``: not created yet."""
        return None
