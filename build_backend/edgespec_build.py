"""setuptools, and before it the C library in ``kernels/src``, with whatever C compiler there is.

The library is built unless the environment has ``EDGESPEC_KERNELS=0``. The system's
compiler is taken where it works. Where there is none, ``ziglang`` is a requirement of the build (PEP 517). If
compiling fails, the package is built without the library, with a file that states the reason. ``CC`` names
the compiler.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that stay as they are)

KERNELS = Path(__file__).resolve().parents[1] / "edgespec" / "kernels"
REASON = "not_built.txt"

FLAGS = ["-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = [f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vnni")]
ISAS = {
    "x86_64": {
        "avx512vnni": [*_AVX2, *_AVX512],
        "avxvnni": [*_AVX2, "-mavxvnni"],
        "avx2": _AVX2,
    },
    "aarch64": {
        "neon_i8mm": ["-march=armv8.2-a+dotprod+i8mm"],
        "neon_dotprod": ["-march=armv8.2-a+dotprod"],
    },
}
"""Instruction sets by architecture: the file ``isa_NAME.c`` and the flags it is compiled with."""
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_SUFFIXES = {"windows": ".dll", "darwin": ".dylib", "macos": ".dylib"}


def machine() -> str:
    name = platform.machine().lower()
    return _MACHINES.get(name, name)


def library_name(system: str) -> str:
    return "libedgespec_kernels" + _SUFFIXES.get(system.lower(), ".so")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise OSError(next((line for line in lines if "error" in line), lines[-1]))


def _works(compiler: Sequence[str]) -> bool:
    """Whether it compiles and links a library: macOS, for one, has a ``cc`` that only offers to install one."""
    program = "#include <stdlib.h>\n#include <stdatomic.h>\n#include <string.h>\nint f(void) { return 0; }\n"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "try.c"
        source.write_text(program)
        try:
            _run([*compiler, "-shared", "-fPIC", str(source), "-o", str(source.with_suffix(".so"))])
        except OSError:
            return False
    return True


def system_compiler() -> list[str] | None:
    """The first compiler of GCC's command line that works."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        command = shlex.split(name, posix=os.name == "posix") if name else []
        if command and shutil.which(command[0]) and _works(command):
            return command
    return None


def zig() -> list[str] | None:
    found = importlib.util.find_spec("ziglang")
    return [sys.executable, "-m", "ziglang", "cc"] if found else None


def compile_library(
    compiler: Sequence[str], output: Path, architecture: str, flags: Sequence[str] = ()
) -> list[str]:
    """Compile and link the library; the instruction sets that the compiler knows, which are returned.

    Raises ``OSError`` with the compiler's first error.
    """
    sources = KERNELS / "src"
    with tempfile.TemporaryDirectory() as folder:

        def compiled(name: str, *more: str) -> Path:
            target = Path(folder) / f"{name}.o"
            source = str(sources / f"{name}.c")
            pic = [] if output.suffix == ".dll" else ["-fPIC"]
            _run([*compiler, *flags, *FLAGS, *pic, *more, "-c", source, "-o", str(target)])
            return target

        def isa(name: str, more: Sequence[str]) -> Path | None:
            if "ziglang" in compiler:
                more = [flag.replace("-march=armv8.2-a", "-mcpu=generic") for flag in more]
            try:
                return compiled(f"isa_{name}", "-O3", *more)
            except OSError:
                return None  # an older compiler

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            tried = {
                name: pool.submit(isa, name, more)
                for name, more in ISAS.get(architecture, {}).items()
            }
            rest = [
                pool.submit(compiled, name, "-O2")
                for name in ("isa_portable", "layout", "operator", "matmul", "layer")
            ]
            made = {name: found for name, job in tried.items() if (found := job.result())}
            objects = [*made.values(), *(job.result() for job in rest)]
        objects.append(compiled("isa", "-O2", *(f"-DEK_HAVE_{name.upper()}" for name in made)))
        linked = output.with_name(output.name + ".part")
        try:
            _run([*compiler, *flags, "-shared", *map(str, objects), "-o", str(linked)])
            os.replace(linked, output)
        finally:
            linked.unlink(missing_ok=True)
    return list(made)


def build_library(folder: Path = KERNELS) -> str | None:
    """Put the library into ``folder``; ``None``, or why that did not work, which is put there instead."""
    output = folder / library_name(platform.system())
    reason: str | None = None
    if os.environ.get("EDGESPEC_KERNELS") == "0":
        reason = "EDGESPEC_KERNELS was 0 when the package was built"
    elif compiler := system_compiler() or zig():
        try:
            compile_library(compiler, output, machine())
        except OSError as error:
            reason = f"{' '.join(compiler)} failed: {error}"
    else:
        reason = "no C compiler when the package was built, and no ziglang"
    if reason:
        output.unlink(missing_ok=True)
        (folder / REASON).write_text(reason + "\n", encoding="utf-8")
        print(f"edgespec: built without its kernels: {reason}", file=sys.stderr)
    else:
        (folder / REASON).unlink(missing_ok=True)
    return reason


def _requirements() -> list[str]:
    has_wheels = machine() in ISAS and platform.system() in ("Linux", "Darwin", "Windows")
    wanted = os.environ.get("EDGESPEC_KERNELS") != "0" and has_wheels
    return ["ziglang>=0.17"] if wanted and not system_compiler() else []


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _requirements()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _requirements()


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    settings = dict(config_settings or {})
    if build_library() is None:  # the wheel is for this platform then, and for every Python 3
        given = settings.get("--build-option", [])
        given = [given] if isinstance(given, str) else list(given)
        tag = sysconfig.get_platform().replace("universal2", platform.machine())
        settings["--build-option"] = [*given, f"--plat-name={tag}"]
    return build_meta.build_wheel(wheel_directory, settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    build_library()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
