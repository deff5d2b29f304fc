"""How the library is built: with which compiler, for which systems, and what happens without one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import setuptools  # noqa: F401  (before a test imports distutils, which it replaces)

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "kernels" / "src"
FUZZ = sorted(Path(__file__).parent.glob("fuzz*.c"))
BUILD = "import edgespec_build as b; print(b.build_wheel(r'{}'))"


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    path = ROOT / "build_backend" / "edgespec_build.py"
    if not path.is_file():
        pytest.skip("runs in a clone")
    spec = importlib.util.spec_from_file_location("edgespec_build", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_zig_is_asked_for_only_without_a_compiler(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = (backend.get_requires_for_build_wheel, backend.get_requires_for_build_editable)
    for hook in hooks:  # setuptools' own need a process of their own
        monkeypatch.setattr(backend.build_meta, hook.__name__, lambda settings=None: [])
    monkeypatch.setenv("EDGESPEC_KERNELS", "1")
    monkeypatch.setattr(backend, "machine", lambda: "x86_64")
    monkeypatch.setattr(backend, "system_compiler", lambda: ["cc"])
    assert not any("ziglang>=0.17" in hook() for hook in hooks)
    monkeypatch.setattr(backend, "system_compiler", lambda: None)
    assert all("ziglang>=0.17" in hook() for hook in hooks)
    monkeypatch.setenv("EDGESPEC_KERNELS", "0")
    assert not any("ziglang>=0.17" in hook() for hook in hooks)
    monkeypatch.setenv("EDGESPEC_KERNELS", "1")
    monkeypatch.setattr(backend, "machine", lambda: "riscv64")  # ziglang has no wheel for it
    assert not any("ziglang>=0.17" in hook() for hook in hooks)


def test_a_compiler_that_does_not_work_is_none(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cc", "gcc", "clang"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert backend.system_compiler() is None


def test_the_reason_is_kept_where_nothing_is_built(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / backend.library_name(backend.platform.system())
    library.write_bytes(b"of a build before")
    monkeypatch.setenv("EDGESPEC_KERNELS", "1")
    monkeypatch.setattr(backend, "system_compiler", lambda: None)
    monkeypatch.setattr(backend, "zig", lambda: None)
    assert "no C compiler" in backend.build_library(tmp_path)
    assert "no C compiler" in (tmp_path / backend.REASON).read_text()
    assert not library.exists()
    monkeypatch.setattr(backend, "zig", lambda: [sys.executable, "-c", "raise SystemExit('no')"])
    assert "failed: no" in backend.build_library(tmp_path)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("runs in a clone")
    copy = tmp_path_factory.mktemp("clone") / "edgespec"
    built = ("libedgespec_kernels.*", "not_built.txt")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", *built)
    return Path(shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored))


def build(clone: Path, out: Path, **environment: str) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(out)],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(clone / "build_backend"), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


USE = """
from edgespec import kernels
print(kernels.__file__, kernels.library(), kernels.why_not(), sep="|")
"""


def installed(wheel: Path, target: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=target, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    file, *rest = done.stdout.strip().split("|")
    assert Path(file).is_relative_to(target)
    return rest


def test_a_wheel_without_the_library_works_and_states_the_reason(
    clone: Path, tmp_path: Path
) -> None:
    wheel = build(clone, tmp_path, EDGESPEC_KERNELS="0")
    assert wheel.name.endswith("-py3-none-any.whl")
    library, reason = installed(wheel, tmp_path / "installed")
    assert library == "None"
    assert "EDGESPEC_KERNELS was 0" in reason


@pytest.mark.slow
def test_a_wheel_with_the_library(clone: Path, tmp_path: Path, backend: ModuleType) -> None:
    if not backend.system_compiler():
        pytest.skip("no C compiler")
    wheel = build(clone, tmp_path, EDGESPEC_KERNELS="1")
    assert "-py3-none-" in wheel.name
    assert "any" not in wheel.name
    library, reason = installed(wheel, tmp_path / "installed")
    assert Path(library).is_relative_to(tmp_path / "installed")
    assert reason == "None"


TARGETS = [
    ("x86_64", "linux", "x86_64-linux-gnu.2.17"),
    ("aarch64", "linux", "aarch64-linux-gnu.2.17"),
    ("x86_64", "macos", "x86_64-macos"),
    ("aarch64", "macos", "aarch64-macos"),
    ("x86_64", "windows", "x86_64-windows-gnu"),
    ("aarch64", "windows", "aarch64-windows-gnu"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "system", "target"), TARGETS)
def test_zig_compiles_for_every_system(
    machine: str, system: str, target: str, tmp_path: Path, backend: ModuleType
) -> None:
    if not (zig := backend.zig()):
        pytest.skip("no ziglang")
    output = tmp_path / backend.library_name(system)
    made = backend.compile_library(zig, output, machine, ["-target", target])
    assert made == list(backend.ISAS[machine])
    assert output.stat().st_size > 100_000
    assert b"RegisterCustomOps" in output.read_bytes()


def fuzz(compiler: list[str], isas: dict[str, list[str]], folder: Path, *flags: str) -> Path:
    """The fuzz program, with these instruction sets and their flags."""
    have = [f"-DEK_HAVE_{name.upper()}" for name in isas]
    common = [*compiler, *flags, *have, "-std=gnu11", "-ffp-contract=off", f"-I{SOURCES}"]
    files = {SOURCES / f"isa_{name}.c": more for name, more in {**isas, "portable": []}.items()}
    files |= {file: [] for file in (SOURCES / "isa.c", SOURCES / "layout.c", *FUZZ)}

    def compiled(file: Path) -> str:
        target = str(folder / f"{file.stem}.o")
        subprocess.run([*common, *files[file], "-c", str(file), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, files))
    program = folder / "fuzz"
    subprocess.run([*compiler, *flags, *objects, "-o", str(program), "-lm"], check=True)
    return program


def output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("optimization", "rounds", "seeds"),
    [("-O0", "4", "1"), pytest.param("-O1", "20", "123", marks=pytest.mark.slow)],
)
def test_fuzzing_with_sanitizers(
    optimization: str, rounds: str, seeds: str, tmp_path: Path, backend: ModuleType
) -> None:
    """Every format and operation in random shapes; what is read or written outside, or undefined, ends it."""
    compiler = backend.system_compiler()
    checks = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    command = [*(compiler or ["cc"]), *checks, str(probe), "-o", str(tmp_path / "probe")]
    if not compiler or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no compiler with sanitizers")
    isas = backend.ISAS.get(backend.machine(), {})
    program = str(fuzz(compiler, isas, tmp_path, optimization, *checks))
    for seed in seeds:
        output(program, rounds, seed)


@pytest.mark.slow
def test_arm_gives_the_same_bits(tmp_path: Path, backend: ModuleType) -> None:
    """NEON's dot products and i8mm under emulation, against the portable C of this machine."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    compiler, zig = backend.system_compiler(), backend.zig()
    if not emulator or not zig or not compiler:
        pytest.skip("needs a compiler, ziglang and qemu-user")
    (tmp_path / "arm").mkdir()
    arm = {"neon_i8mm": ["-mcpu=generic+dotprod+i8mm"], "neon_dotprod": ["-mcpu=generic+dotprod"]}
    target = [*zig, "-target", "aarch64-linux-musl"]
    program = fuzz(target, arm, tmp_path / "arm", "-O2", "-static")
    found = output(emulator, "-cpu", "max", str(program), "20")
    assert found == output(str(fuzz(compiler, {}, tmp_path, "-O2")), "20")


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["Nehalem", "Haswell"])
def test_older_processors_give_the_same_bits(
    processor: str, tmp_path: Path, backend: ModuleType
) -> None:
    """Without AVX2, and with it but without AVX-512: what the processor lacks is not chosen."""
    emulator = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    compiler = backend.system_compiler()
    if not emulator or not compiler or backend.machine() != "x86_64":
        pytest.skip("needs x86-64, a compiler and qemu-user")
    program = str(fuzz(compiler, backend.ISAS["x86_64"], tmp_path, "-O1"))
    assert output(emulator, "-cpu", processor, program, "10") == output(program, "10")
