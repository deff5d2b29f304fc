"""What is published: a wheel and a source archive, built from a copy and used outside of the clone."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parents[1]
LINKED = ("bench", "export", "kernels", "models", "runtimes")
BUILD = "from setuptools import build_meta; print(build_meta.build_{}(r'{}'))"


def run(code: str, cwd: Path, path: Path | None = None) -> str:
    """Python's standard output for a program, with ``path`` before everything installed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "EDGESPEC"))}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def build(kind: str, source: Path, out: Path) -> Path:
    out.mkdir()
    return out / run(BUILD.format(kind, out), source).splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone, its links kept."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("runs in a clone")
    copy = tmp_path_factory.mktemp("clone") / "edgespec"
    built = ("build", "dist", "libedgespec_kernels.*", "not_built.txt")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", *built)
    return Path(shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored))


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build("wheel", source, source.parent / "wheel")


@pytest.fixture(scope="module")
def sdist(source: Path) -> Path:
    return build("sdist", source, source.parent / "sdist")


def modules() -> set[str]:
    """Every module of the package, as it is named there."""
    folders = ("edgespec", *(f"edgespec/{name}" for name in LINKED))  # rglob follows no links
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix() for path in found}


def test_the_links_that_make_the_layout() -> None:
    for name in LINKED:
        link = ROOT / "edgespec" / name
        assert link.is_symlink(), f"{link} is no link: clone again with core.symlinks"
        assert os.readlink(link).replace("\\", "/") == f"../{name}"


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entries = archive.infolist()
        found = {entry.filename: archive.read(entry) for entry in entries}
    assert wheel.name.endswith("-py3-none-any.whl")
    tops = {name.partition("/")[0] for name in found}
    assert tops == {"edgespec", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
    assert not any(stat.S_ISLNK(entry.external_attr >> 16) for entry in entries)
    package = {name for name in found if name.startswith("edgespec/")}
    assert all(found[name] == (ROOT / name).read_bytes() for name in package)
    assert {name for name in package if name.endswith(".py")} == modules()
    assert {"edgespec/py.typed", "edgespec/models/catalogue.toml"} <= package
    assert any(name.endswith("licenses/LICENSE") for name in found)


IMPORT = """
import importlib, importlib.resources, edgespec
for name in ("runtimes", "runtimes.onnx", "export", "export.architectures", "models", "models.gguf",
             "bench", "engine", "cli"):
    print(importlib.import_module("edgespec." + name).__file__)
from edgespec.models.catalogue import load_catalogue
assert "smollm2-135m-instruct" in load_catalogue()
assert importlib.resources.files("edgespec").joinpath("py.typed").is_file()
for name in ("runtimes", "export", "models", "bench", "tests"):
    try:
        found = importlib.import_module(name).__file__
    except ImportError:
        continue
    assert not (found or "").startswith(str(edgespec.__path__[0]).rpartition("edgespec")[0]), found
"""


def test_an_installed_wheel_is_one_package(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index"]
    subprocess.run(
        [*pip, "--no-deps", "--no-warn-script-location", "--target", str(target), str(wheel)],
        check=True,
        capture_output=True,
    )
    files = run(IMPORT, elsewhere, target).splitlines()
    assert len(files) == 9
    assert all(Path(file).is_relative_to(target / "edgespec") for file in files)
    assert (target / "edgespec" / "export").is_dir()
    assert not (target / "edgespec" / "export").is_symlink()
    version = "from edgespec.cli import main; main(['--version'])"
    assert wheel.name.split("-")[1] in run(version, elsewhere, target)
    scripts = [path for path in target.rglob("edgespec*") if path.parent.name in ("bin", "Scripts")]
    assert scripts, "no command was installed"


def test_a_wheel_built_from_the_source_archive_is_the_same(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
    shutil.unpack_archive(sdist, tmp_path)
    [unpacked] = tmp_path.iterdir()
    again = build("wheel", unpacked, tmp_path / "wheel")
    first, second = (
        {name: archive.read(name) for name in archive.namelist() if name.startswith("edgespec/")}
        for archive in map(zipfile.ZipFile, (wheel, again))
    )
    assert first == second
