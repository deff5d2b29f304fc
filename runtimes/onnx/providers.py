"""Execution providers of ONNX Runtime and the devices that they drive."""

from __future__ import annotations

import re

from edgespec.errors import UserError

# Device → execution providers that drive it, the best first, with the package that brings each.
PROVIDERS = {
    "cpu": {"CPUExecutionProvider": "onnxruntime"},
    "gpu": {
        "CUDAExecutionProvider": "onnxruntime-gpu",
        "DmlExecutionProvider": "onnxruntime-directml",
        "MIGraphXExecutionProvider": "onnxruntime-migraphx",
        "WebGpuExecutionProvider": "onnxruntime-webgpu",
        "OpenVINOExecutionProvider": "onnxruntime-openvino",
    },
    "npu": {
        "QNNExecutionProvider": "onnxruntime-qnn",
        "VitisAIExecutionProvider": "onnxruntime-vitisai",
        "CoreMLExecutionProvider": "onnxruntime",
        "OpenVINOExecutionProvider": "onnxruntime-openvino",
    },
}


def choose_provider(device: str, provider: str | None, available: list[str]) -> str:
    """The execution provider for ``--device`` and ``--provider``.

    ``available`` is what the installed ONNX Runtime has. Raises ``UserError`` where it lacks what
    was asked for.
    """
    if not re.fullmatch(r"auto|cpu|npu|gpu(:\d+)?", device):
        raise UserError(f"there is no device {device!r}; take auto, cpu, gpu, gpu:N or npu")
    if provider is not None:
        names = {name.removesuffix("ExecutionProvider").lower(): name for name in available}
        wanted = provider.removesuffix("ExecutionProvider").lower()
        if wanted in names:
            return names[wanted]
        raise UserError(
            f"the installed onnxruntime has no provider {provider} (it has {', '.join(available)}); "
            "install the onnxruntime package that brings it"
        )
    kind = "cpu" if device == "auto" else device.partition(":")[0]
    found = next((name for name in PROVIDERS[kind] if name in available), None)
    if found is None:
        packages = ", ".join(dict.fromkeys(PROVIDERS[kind].values()))
        raise UserError(
            f"the installed onnxruntime drives no {kind}; install the one for yours "
            f"({packages}), or use --device cpu"
        )
    return found
