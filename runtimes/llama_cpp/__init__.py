"""llama.cpp, through llama-cpp-python. Extra ``[llama]``."""

from __future__ import annotations

import re
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
from edgespec.runtimes import llama_memory, llama_refusals
from edgespec.runtimes.packages import compiled_version, why_not_installed

_NARROW_HEAD = 128
"""Up to this width llama.cpp's flash attention, which takes the keys one by one for every row and head of
a short pass, is slower on processors than products of matrices: over 2000 to 3000 tokens a pass of one
took 2.7 (heads of 64), 0.98 (128) and 0.85 times (256) as long, a pass of 16 took 8.8, 1.26 and 0.89 times
(SmolLM2, Qwen2.5-Coder-1.5B, Gemma 3 270M; 0.3.36, Intel)."""
_PACKAGE = "llama-cpp-python"


def does_without_flash_attention(head_dim: int, cache_type: str) -> bool:
    """Whether llama.cpp is not to use it on a processor; keys and values in q8_0 need it."""
    return cache_type == "float16" and head_dim <= _NARROW_HEAD


class LlamaCppSpec(RuntimeSpec):
    """See ``RuntimeSpec``."""

    name = "llama-cpp"
    title = "llama.cpp"
    forms = ("gguf",)
    install = "pip install 'edgespec[llama]'"
    cache_types = ("float16", "q8_0")
    devices = ("cpu", "gpu")

    def why_not_here(self) -> str | None:
        return why_not_installed("llama_cpp", _PACKAGE, self.install)

    def version(self) -> str:
        return compiled_version("llama_cpp", _PACKAGE, self.install)

    def device(self, device: str, provider: str | None) -> str:
        if device == "cpu":  # every build has it: the library need not be imported to learn that
            return device
        from edgespec.runtimes.llama_cpp.runtime import choose_device

        return choose_device(device)

    def refuses(self, model: ModelHeader) -> str | None:
        if any(re.fullmatch(r"type \d{3}", tensor.type) for tensor in model.tensors.values()):
            return "has tensors in a format that only ik_llama.cpp has"
        return llama_refusals.why_not(model)

    def memory(self, model: ModelDimensions, run: RunConfiguration) -> RuntimeMemory:
        flash_attention = not does_without_flash_attention(model.head_dim, run.cache_type)
        return llama_memory.memory(model, run, model.llama_bytes, flash_attention=flash_attention)

    def cache_types_of(self, model: ModelDimensions) -> tuple[str, ...]:
        return llama_memory.cache_types_of(self.cache_types, model)

    def load(self, path: Path, form: Form, options: LoadOptions) -> Runtime:
        from edgespec.runtimes.llama_cpp.runtime import LlamaCppRuntime

        return LlamaCppRuntime(
            path,
            context=options.context,
            threads=options.threads,
            device=options.device,
            cache_type=options.cache_type or self.cache_types[0],
            rows=options.rows,
        )


SPEC = LlamaCppSpec()
