"""Which execution provider a device means, and what an installed ONNX Runtime lacks."""

from __future__ import annotations

import os

import pytest

from edgespec.device.machine import cpu_name, physical_cores
from edgespec.errors import UserError
from edgespec.runtimes.onnx.providers import PROVIDERS, choose_provider

CPU, CUDA, DML = "CPUExecutionProvider", "CUDAExecutionProvider", "DmlExecutionProvider"
OPENVINO, QNN = "OpenVINOExecutionProvider", "QNNExecutionProvider"


@pytest.mark.parametrize(
    ("device", "provider", "available", "expected"),
    [
        ("auto", None, [CPU], CPU),
        ("auto", None, [CUDA, CPU], CPU),
        ("cpu", None, [CUDA, CPU], CPU),
        ("gpu", None, [DML, CUDA, CPU], CUDA),
        ("gpu", None, [DML, CPU], DML),
        ("gpu:1", None, [CUDA, CPU], CUDA),
        ("gpu", None, [OPENVINO, CPU], OPENVINO),
        ("npu", None, [OPENVINO, CPU], OPENVINO),
        ("npu", None, [OPENVINO, QNN, CPU], QNN),
        ("auto", "cpu", [CUDA, CPU], CPU),
        ("auto", "cuda", [CUDA, CPU], CUDA),
        ("auto", "CUDAExecutionProvider", [CUDA, CPU], CUDA),
        ("auto", "OpenVINO", [OPENVINO, CPU], OPENVINO),
        ("gpu", "dml", [CUDA, DML, CPU], DML),
    ],
)
def test_the_best_provider_that_is_there(
    device: str, provider: str | None, available: list[str], expected: str
) -> None:
    assert choose_provider(device, provider, available) == expected


@pytest.mark.parametrize(
    ("device", "provider", "message"),
    [
        ("gpu", None, r"drives no gpu.*onnxruntime-gpu.*--device cpu"),
        ("gpu:0", None, "drives no gpu"),
        ("npu", None, r"drives no npu.*onnxruntime-qnn"),
        ("auto", "cuda", r"no provider cuda \(it has CPUExecutionProvider\)"),
        ("auto", "", "no provider"),
        ("tpu", None, "no device 'tpu'"),
        ("", None, "no device ''"),
        ("GPU", None, "no device 'GPU'"),
        ("gpu:", None, "no device 'gpu:'"),
        ("gpu:x", None, "no device 'gpu:x'"),
        ("gpu:-1", None, "no device 'gpu:-1'"),
        ("cpu:1", None, "no device 'cpu:1'"),
        ("gpu:x", "cpu", "no device 'gpu:x'"),
        ("gpu:0\n", None, "no device"),
    ],
)
def test_what_is_not_there_is_a_user_error_of_one_line(
    device: str, provider: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        choose_provider(device, provider, [CPU])
    assert "\n" not in str(caught.value)


def test_providers_have_onnx_runtimes_names() -> None:
    for providers in PROVIDERS.values():
        for name, package in providers.items():
            assert name.endswith("ExecutionProvider")
            assert package.startswith("onnxruntime")


def test_this_machine() -> None:
    assert cpu_name().strip()
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin processes")
def test_only_allowed_cores_count() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert physical_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
