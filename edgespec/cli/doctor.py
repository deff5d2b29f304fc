"""``edgespec doctor``: the machine, the software and the installed models."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import click

from edgespec.device import cgroup, huge_pages, machine
from edgespec.device.cores import available_cores
from edgespec.models import store
from edgespec.models.catalogue import DEFAULT_MODEL
from edgespec.units import format_size

_AMX_CURE = (
    "CMAKE_ARGS=-DCMAKE_CXX_FLAGS=-fno-dse "
    "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python"
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Show the hardware, software and models of this machine.

    For each missing part, the command that installs it is shown.

    \b
    For a bug report:
      edgespec doctor > doctor.txt
    """
    rooms = (
        ("Machine", _machine()),
        ("Software", _software()),
        ("Folders", _folders()),
        ("Models", _models()),
    )
    if as_json:
        found: dict[str, object] = {name.lower(): dict(facts) for name, facts in rooms}
        isa, why_not = _kernels()
        found["kernels"] = {"available": why_not is None, "isa": isa, "why_not": why_not}
        click.echo(json.dumps(found, indent=2))
        return
    for heading, facts in rooms:
        click.secho(heading, bold=True)
        for name, fact in facts:
            click.echo(f"  {name:<18} {fact}")


Facts = Iterator[tuple[str, str]]


def _machine() -> Facts:
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield "processor", machine.cpu_name()
    yield "features", " ".join(machine.cpu_features()) or "unknown"
    yield "cores", f"{machine.physical_cores()} to use, {os.cpu_count()} logical in all"
    if limits := "; ".join(_core_limits()):
        yield "limits of cores", limits
    total, available = machine.memory()[0], machine.available_memory() or 0
    yield "memory", f"{total / 2**30:.1f} GiB, {available / 2**30:.1f} GiB available"
    if limit := cgroup.memory_limit():
        yield "limit of memory", f"{format_size(int(limit.value))} in {limit.file}"
    yield "huge pages", "in use" if huge_pages.in_use() else "not in use"


def _core_limits() -> Iterator[str]:
    """What makes the cores to use fewer than the logical ones, except hyper-threads."""
    cores = available_cores()
    if cores.logical < (os.cpu_count() or 1):
        yield f"{cores.logical} logical cores by affinity"
    if cores.performance < cores.physical:
        yield f"{cores.performance} of {cores.physical} physical cores are performance cores"
    if quota := cgroup.cpu_quota():
        yield f"a quota of {quota.value:g} CPUs in {quota.file}"


def _software() -> Facts:
    from edgespec.runtimes.onnx.providers import PROVIDERS

    yield "edgespec", _version("edgespec")
    yield "Python", f"{platform.python_version()}, {sys.executable}"
    builds = metadata.packages_distributions().get("onnxruntime", [])
    yield "onnxruntime", _onnxruntime(sorted(set(builds)))
    isa, why_not = _kernels()
    missing = f"MISSING: {why_not}; onnx is slower without them. Install a C compiler, then edgespec again"
    yield "kernels", f"in use ({isa})" if isa else missing
    yield "ik-llama-cpp-python", _optional("ik_llama_cpp", "ik-llama-cpp-python", "ik")
    yield "llama-cpp-python", _llama_cpp()
    yield "torch", _optional("torch", "torch", "torch")
    has_pip = find_spec("pip") is not None
    yield "pip", _version("pip") if has_pip else "MISSING: python -m ensurepip"
    here = set(_providers())
    driven = ", ".join(device for device, providers in PROVIDERS.items() if here & set(providers))
    yield "devices", f"{driven or 'none'} (by ONNX Runtime)"


def _kernels() -> tuple[str | None, str | None]:
    """The kernels' instruction set, or why there is none."""
    from edgespec import kernels

    why_not = kernels.why_not()
    return None if why_not else kernels.isa(), why_not


def _onnxruntime(builds: list[str]) -> str:
    if len(builds) > 1:  # they are the same package in several builds: the last one installed wins
        others = " ".join(builds)
        return f"CLASH of {others}: pip uninstall -y {others}, then install one of them"
    if not builds:
        return "MISSING: pip install onnxruntime"
    return f"{_version(builds[0])} ({builds[0]}): {', '.join(_providers())}"


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError as error:
        return [f"does not load: {error}"]
    providers: list[str] = onnxruntime.get_available_providers()
    return providers


def _llama_cpp() -> str:
    found = _optional("llama_cpp", "llama-cpp-python", "llama")
    if find_spec("llama_cpp") and "amx_int8" in machine.cpu_features():
        found += f"; if it crashes (GCC before 12.4 or 13.3 builds its AMX wrongly): {_AMX_CURE}"
    return found


def _optional(module: str, distribution: str, extra: str) -> str:
    """Found without importing it: torch alone takes seconds."""
    if find_spec(module) is None:
        return f"not installed (optional): pip install 'edgespec[{extra}]'"
    return _version(distribution)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "version unknown: not installed as a package"


def _folders() -> Facts:
    for name, folder in (("models", store.models_dir()), ("cache", store.cache_dir())):
        nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        free = f"{format_size(shutil.disk_usage(nearest).free)} free"
        advice = "" if _writable(nearest) else "; NOT WRITABLE: set EDGESPEC_HOME to another folder"
        yield name, f"{folder}, {free}{advice}"


def _writable(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def _models() -> Facts:
    found = store.installed()
    for model in found:
        yield model.entry.name, str(model.path)
    if not found:
        yield "none yet", f"edgespec models pull {DEFAULT_MODEL}"
