"""ONNX Runtime: graphs that ``edgespec.export`` built, for the kernels or without, and plain ones that Optimum wrote."""

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
from edgespec.errors import UserError
from edgespec.models.onnx_folder import BUILDER_VERSION, KERNELS_VERSION, read_manifest
from edgespec.runtimes.packages import why_not_installed

PREFILL_CHUNK = 64
"""Prompt tokens in one pass: more are hardly faster and take more memory."""
_KIB, _MIB = 1 << 10, 1 << 20
_LIBRARIES = 57 * _MIB
_SESSION, _MATRIX = 15 * _MIB, 12 * _KIB
"""A session, and what each matrix adds."""
_TABLES = 4 * _MIB
"""Rows of the embedding in memory, and the pages of rotary tables in use."""
_NODE = 2 * _KIB
"""What each product adds with the kernels: nothing is packed in memory."""
_SCRATCH = 6
"""Bytes of rounded activations for each of the widest product's inputs, in the buffers of all threads."""
_LOADING = 60 * _MIB
"""Pages of the weights' file that were read and not yet given back during loading, at most."""


def _kernels() -> bool:
    from edgespec import kernels

    return kernels.library() is not None


class OnnxSpec(RuntimeSpec):
    """See ``RuntimeSpec``. Memory was measured with onnxruntime 1.31 (see ``edgespec.device.memory``).

    With the kernels (``edgespec.kernels``), on the CPU, keys and values are float16. Without them they are
    float32: ONNX Runtime's own ``GroupQueryAttention`` takes float16 only with float16 queries.
    """

    name = "onnx"
    title = "ONNX Runtime"
    forms = ("built", "plain")
    install = "pip install onnxruntime"
    exact = True
    prefill_chunk = PREFILL_CHUNK
    cache_types = ("float16", "float32")
    devices = ("cpu", "gpu", "npu")
    providers = True

    def why_not_here(self) -> str | None:
        return why_not_installed("onnxruntime", "onnxruntime", self.install)

    def version(self) -> str:
        import onnxruntime

        if _kernels():
            from edgespec.kernels import LAYOUT_VERSION, isa

            return f"{onnxruntime.__version__}, kernels {KERNELS_VERSION}.{LAYOUT_VERSION} {isa()}"
        return f"{onnxruntime.__version__}, built by {BUILDER_VERSION}"

    def device(self, device: str, provider: str | None) -> str:
        import onnxruntime

        from edgespec.runtimes.onnx.providers import choose_provider

        chosen = choose_provider(device, provider, onnxruntime.get_available_providers())
        number = device.partition(":")[2] if chosen != "CPUExecutionProvider" else ""
        return chosen.removesuffix("ExecutionProvider").lower() + (number and f":{number}")

    def memory(self, model: ModelDimensions, run: RunConfiguration) -> RuntimeMemory:
        chunk = self.prefill_chunk
        layer = 4 * chunk * (3 * model.feed_forward + 6 * model.hidden)
        if model.kernel_bytes:
            return RuntimeMemory(
                libraries=_LIBRARIES,
                runtime=_SESSION + _NODE * model.matrices,
                weights=model.kernel_bytes,
                cache=2 * model.cache_numbers * (run.context + MAX_ROWS),
                logits=4 * run.rows * model.columns,
                activations=layer + _SCRATCH * chunk * model.feed_forward,
                loading=0,
            )
        attention = 2 * 4 * chunk * model.heads * run.context
        return RuntimeMemory(
            libraries=_LIBRARIES,
            runtime=_SESSION + _MATRIX * model.matrices + _TABLES,
            weights=model.packed_bytes,
            cache=4 * model.cache_numbers * (run.context + MAX_ROWS),
            logits=4 * run.rows * model.columns,
            activations=layer + attention,
            loading=min(_LOADING, model.largest_bytes),
        )

    def cache_types_of(self, model: ModelDimensions) -> tuple[str, ...]:
        return ("float16",) if model.kernel_bytes else ("float32",)

    def packs(self, device: str, provider: str | None) -> bool:
        return _kernels() and self.device(device, provider) == "cpu"

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
        if "packed" in read_manifest(path):
            from edgespec.runtimes.onnx.kernel_runtime import KernelRuntime

            if self.device(options.device, options.provider) != "cpu":
                raise UserError(
                    f"{path} was exported for a CPU with edgespec's kernels; use --device cpu, or export "
                    "the model with --format onnx"
                )
            return KernelRuntime(
                path,
                context=options.context,
                threads=options.threads,
                rows=options.rows,
                profile=options.profile,
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
            profile=options.profile,
            progress=options.progress,
        )

    def pool_threads(self) -> int | None:
        from edgespec.runtimes.onnx import session

        return session.pool_threads()


SPEC = OnnxSpec()
