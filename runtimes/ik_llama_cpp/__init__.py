"""ik_llama.cpp, a fork of llama.cpp for processors, through ik-llama-cpp-python. Extra ``[ik]``."""

from __future__ import annotations

from pathlib import Path

from edgespec.core.runtime import Runtime
from edgespec.core.runtime_spec import (
    Form,
    LoadOptions,
    ModelDimensions,
    ModelHeader,
    RunConfiguration,
    RuntimeMemory,
    RuntimeSpec,
)
from edgespec.errors import UserError
from edgespec.models.trimmed import TOKEN_IDS
from edgespec.runtimes import llama_memory, llama_refusals
from edgespec.runtimes.packages import compiled_version, why_not_installed

ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3")
"""What ik_llama.cpp runs here. It loads others, and aborts the process on some passes over gemma3."""
_ROW = 128
"""Rows of weights that are no multiple of so many columns, it computes wrongly in passes of 32 tokens and
more (0.1.5, SmolLM2 in Q4_1: a perplexity of 127 in place of 14)."""
_PACKAGE = "ik-llama-cpp-python"


def why_not(file: ModelHeader) -> str | None:
    """Why ik_llama.cpp must not run a GGUF file; ``None`` where it can."""
    if file.architecture not in ARCHITECTURES:
        return f"is a {file.architecture} model, which ik-llama-cpp does not run here"
    if TOKEN_IDS in file.metadata:
        return "has a trimmed head, which ik-llama-cpp cannot run"
    if any(t.shape[-1] % _ROW for t in file.tensors.values() if len(t.shape) > 1):
        return f"has rows that are no multiple of {_ROW}, which ik-llama-cpp computes wrongly"
    new = {tensor.type for tensor in file.tensors.values()} & {"NVFP4", "Q1_0", "Q2_0"}
    if new:
        return f"has tensors in {new.pop()}, which ik-llama-cpp does not read"
    return llama_refusals.why_not(file)


class IkLlamaCppSpec(RuntimeSpec):
    """See ``RuntimeSpec``."""

    name = "ik-llama-cpp"
    title = "ik_llama.cpp"
    forms = ("gguf",)
    install = "pip install 'edgespec[ik]'"
    cache_types = ("float16", "q8_0")

    def why_not_here(self) -> str | None:
        return why_not_installed("ik_llama_cpp", _PACKAGE, self.install)

    def version(self) -> str:
        return compiled_version("ik_llama_cpp", _PACKAGE, self.install)

    def device(self, device: str, provider: str | None) -> str:
        if device not in ("auto", "cpu"):
            raise UserError(f"{self.name} runs on the CPU only, not on {device}; use --device cpu")
        return "cpu"

    def refuses(self, model: ModelHeader) -> str | None:
        return why_not(model)

    def memory(self, model: ModelDimensions, run: RunConfiguration) -> RuntimeMemory:
        return llama_memory.memory(model, run, model.stored_bytes, flash_attention=True)

    def cache_types_of(self, model: ModelDimensions) -> tuple[str, ...]:
        return llama_memory.cache_types_of(self.cache_types, model)

    def load(self, path: Path, form: Form, options: LoadOptions) -> Runtime:
        from edgespec.runtimes.ik_llama_cpp.runtime import IkLlamaCppRuntime

        return IkLlamaCppRuntime(
            path,
            context=options.context,
            threads=options.threads,
            cache_type=options.cache_type or self.cache_types[0],
            rows=options.rows,
        )


SPEC = IkLlamaCppSpec()
