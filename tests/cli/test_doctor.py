from __future__ import annotations

import json
import os
import platform
import re
import sys
from pathlib import Path

import pytest

from edgespec import kernels
from edgespec.cli import doctor
from edgespec.device import cgroup, machine
from edgespec.device.cores import Cores
from edgespec.models import store
from tests.cli.conftest import Run


def test_doctor_tells_what_is_here(with_model: Path, run: Run) -> None:
    result = run("doctor")
    assert result.exit_code == 0
    facts = dict(re.findall(r"^  (\S+(?: \S+)?) {2,}(.*)$", result.stdout, re.M))
    assert platform.python_version() in facts["Python"]
    assert "CPUExecutionProvider" in facts["onnxruntime"]
    assert facts["devices"].startswith("cpu")
    assert facts["models"].startswith(str(store.models_dir()))
    assert "NOT WRITABLE" not in result.stdout
    assert "smollm2-135m-instruct" in result.stdout


@pytest.mark.parametrize(("features", "told"), [(("avx2", "amx_int8"), True), (("avx2",), False)])
def test_how_to_build_llama_cpp_for_amx(
    features: tuple[str, ...], told: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda n: n == "llama_cpp" or found(n))
    monkeypatch.setattr(machine, "cpu_features", lambda: features)
    assert ("-fno-dse" in run("doctor").stdout) == told


def test_doctor_tells_what_to_do(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()  # where folders cannot be made, by root neither
    monkeypatch.setenv("EDGESPEC_HOME", str(tmp_path / "file"))
    found = doctor.find_spec
    monkeypatch.setattr(doctor, "find_spec", lambda n: None if n in ("pip", "torch") else found(n))
    result = run("doctor")
    assert result.exit_code == 0
    assert result.stdout.count("NOT WRITABLE: set EDGESPEC_HOME to another folder") == 2
    assert "MISSING: python -m ensurepip" in result.stdout
    assert "pip install 'edgespec[torch]'" in result.stdout
    assert "edgespec models pull smollm2-135m-instruct" in result.stdout


def test_two_builds_of_onnxruntime_clash() -> None:
    told = doctor._onnxruntime(["onnxruntime", "onnxruntime-gpu"])
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in told


def test_doctor_does_not_import_torch(home: Path, run: Run) -> None:
    before = set(sys.modules)
    run("doctor")
    assert not {"torch", "transformers", "llama_cpp"} & (set(sys.modules) - before)


def test_doctor_shows_what_limits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("/sys/fs/cgroup/docker")
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    for module in (doctor, machine):
        monkeypatch.setattr(module, "available_cores", lambda: Cores(20, 14, 6))
    quota, limit = (
        cgroup.Limit(1.5, folder / "cpu.max"),
        cgroup.Limit(300 << 20, folder / "memory.max"),
    )
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: limit)
    monkeypatch.setattr(cgroup, "memory_left", lambda: limit._replace(value=256 << 20))
    facts = json.loads(run("doctor", "--json").stdout)["machine"]
    assert facts["cores"] == "1 to use, 32 logical in all"
    assert facts["limits of cores"] == (
        "20 logical cores by affinity; 6 of 14 physical cores are performance cores; "
        f"a quota of 1.5 CPUs in {quota.file}"
    )
    assert facts["memory"].endswith("GiB, 0.2 GiB available")
    assert facts["limit of memory"] == f"300 MiB in {limit.file}"


def test_doctor_shows_no_limits_where_there_are_none(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "available_cores", lambda: Cores(os.cpu_count() or 1, 1, 1))
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: None)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: None)
    facts = json.loads(run("doctor", "--json").stdout)["machine"]
    assert not any(name.startswith("limit") for name in facts)


def test_memory_is_this_machines() -> None:
    total, available = machine.memory()
    assert 0 < available <= total
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert total == pytest.approx(pages, rel=0.02)


def test_every_machine_we_support_has_vector_instructions() -> None:
    assert machine.cpu_features()


def test_json_tells_of_the_kernels(run: Run, without_kernels: None) -> None:
    found = json.loads(run("doctor", "--json").stdout)
    assert found["kernels"] == {
        "available": False, "isa": None, "why_not": "not built, for a test"
    }  # fmt: skip
    assert "not built, for a test; onnx is slower" in found["software"]["kernels"]


@pytest.mark.skipif(kernels.library() is None, reason="the kernels were not built")
def test_json_tells_the_instruction_set(run: Run) -> None:
    found = json.loads(run("doctor", "--json").stdout)["kernels"]
    assert found == {"available": True, "isa": kernels.isa(), "why_not": None}
