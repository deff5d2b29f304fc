"""ONNX Runtime: graphs that ``edgespec.export`` built, and plain ones that Optimum wrote."""

from __future__ import annotations

from pathlib import Path

from edgespec.core.runtime import MAX_ROWS, Runtime
from edgespec.core.runtime_spec import (
    Form,
    LoadOptions,
    ModelDimensions,
    RunConfiguration,
    RuntimeMemory,
    RuntimeSpec,
)
from edgespec.models.onnx_folder import BUILDER_VERSION
from edgespec.runtimes.packages import why_not_installed

_KIB, _MIB = 1 << 10, 1 << 20
_LIBRARIES = 57 * _MIB
_SESSION, _MATRIX = 15 * _MIB, 12 * _KIB
"""A session, and what each matrix adds."""
_TABLES = 4 * _MIB
"""Rows of the embedding in memory, and the pages of rotary tables in use."""
_LOADING = 60 * _MIB
"""Pages of the weights' file that were read and not yet given back during loading, at most."""


class OnnxSpec(RuntimeSpec):
    """See ``RuntimeSpec``. Memory was measured with onnxruntime 1.31 (see ``edgespec.device.memory``).

    Keys and values are float32. ONNX Runtime's CPU kernel of ``GroupQueryAttention`` also takes float16
    with float16 queries, and int8 and int4 with scales fixed beforehand; the graphs built here do not.
    """

    name = "onnx"
    title = "ONNX Runtime"
    forms = ("built", "plain")
    install = "pip install onnxruntime"
    exact = True
    prefill_chunk = 32
    cache_types = ("float32",)
    devices = ("cpu", "gpu", "npu")
    providers = True

    def why_not_here(self) -> str | None:
        return why_not_installed("onnxruntime", "onnxruntime", self.install)

    def version(self) -> str:
        import onnxruntime

        return f"{onnxruntime.__version__}, built by {BUILDER_VERSION}"

    def device(self, device: str, provider: str | None) -> str:
        import onnxruntime

        from edgespec.runtimes.onnx.providers import choose_provider

        chosen = choose_provider(device, provider, onnxruntime.get_available_providers())
        number = device.partition(":")[2] if chosen != "CPUExecutionProvider" else ""
        return chosen.removesuffix("ExecutionProvider").lower() + (number and f":{number}")

    def memory(self, model: ModelDimensions, run: RunConfiguration) -> RuntimeMemory:
        layer = 4 * self.prefill_chunk * (3 * model.feed_forward + 6 * model.hidden)
        attention = 2 * 4 * self.prefill_chunk * model.heads * run.context
        return RuntimeMemory(
            libraries=_LIBRARIES,
            runtime=_SESSION + _MATRIX * model.matrices + _TABLES,
            weights=model.packed_bytes,
            cache=4 * model.cache_numbers * (run.context + MAX_ROWS),
            logits=4 * run.rows * model.columns,
            activations=layer + attention,
            loading=min(_LOADING, model.largest_bytes),
        )

    def load(self, path: Path, form: Form, options: LoadOptions) -> Runtime:
        if form == "plain":
            from edgespec.runtimes.onnx.optimum import OptimumRuntime

            return OptimumRuntime(
                path,
                context=options.context,
                threads=options.threads,
                device=options.device,
                provider=options.provider,
                progress=options.progress,
            )
        from edgespec.runtimes.onnx.runtime import OnnxRuntime

        return OnnxRuntime(
            path,
            context=options.context,
            threads=options.threads,
            device=options.device,
            provider=options.provider,
            exact=options.exact,
            rows=options.rows,
            progress=options.progress,
        )

    def pool_threads(self) -> int | None:
        from edgespec.runtimes.onnx import runtime

        return runtime.pool_threads()


SPEC = OnnxSpec()
