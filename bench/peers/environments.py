"""Where the peers are installed: each in a virtual environment of its own, or in this one if it is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from edgespec.errors import UserError
from edgespec.models import store
from edgespec.progress import Progress, silent

if TYPE_CHECKING:
    from edgespec.bench.peers import Peer

INSTALLED = "installed.txt"
"""In an environment: the output of ``pip freeze``."""
_REQUIRED = "requirements.txt"
"""In an environment: what it was made for."""


def setup(peer: Peer, progress: Progress = silent) -> Path:
    """The Python that runs ``peer``: of its environment, which is made if it is absent or for other
    requirements, or this one if the peer requires nothing.

    An interrupted setup leaves nothing that is taken for an environment; of two at once the second
    waits. Raises ``UserError``.
    """
    if not peer.requirements:
        return Path(sys.executable)
    folder = _folder(peer)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with store.locked(folder.with_name(f".{peer.name}.lock"), f"set up {peer.name}", progress):
            if not _is_current(peer):
                _make(peer, folder, progress)
    except OSError as error:
        raise UserError(f"cannot set up {peer.name} in {folder}: {store.reason(error)}") from error
    return _python(folder)


def python_of(peer: Peer) -> Path | None:
    """The Python that runs ``peer``; ``None`` if it has to be set up first."""
    if peer.requirements and _is_current(peer):
        return _python(_folder(peer))
    return Path(sys.executable) if all(map(_is_here, peer.requirements)) else None


def _make(peer: Peer, folder: Path, progress: Progress) -> None:
    """Into a temporary name; renamed when whole. Programs in it would not survive that: use ``-m``."""
    partial = folder.with_name(f".{peer.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a setup that was killed
    try:
        progress(f"making the environment of {peer.name}", 0, 3)
        venv.create(partial)
        progress(f"installing {', '.join(peer.requirements)}", 1, 3)
        log = folder.with_name(f"{peer.name}.log")
        _pip(partial, peer, log, "install", *peer.requirements)
        progress(f"recording the versions of {peer.name}", 2, 3)
        freeze = _pip(partial, peer, log, "freeze")
        (partial / INSTALLED).write_text(freeze, "utf-8")
        (partial / _REQUIRED).write_text(_required(peer), "utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
        progress(f"{peer.name} is set up", 3, 3)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pip(environment: Path, peer: Peer, log: Path, *arguments: str) -> str:
    """What this Python's pip prints on stdout; all output goes to ``log``, too."""
    pip = [sys.executable, "-m", "pip", "--python", str(_python(environment))]
    pip += ["--disable-pip-version-check", "--no-input"]
    variables = os.environ | {"PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}
    variables.pop("PYTHONPATH", None)
    done = subprocess.run(
        [*pip, *arguments],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    log.write_text(done.stdout + done.stderr, "utf-8")
    if done.returncode:
        output = [line for line in done.stderr.splitlines() if line.strip()] or ["no output"]
        errors = [line for line in output if line.startswith("ERROR")] or output
        why = errors[-1].removeprefix("ERROR: ")[:300]
        raise UserError(f"pip cannot install {peer.name}: {why}; its output is in {log}")
    return done.stdout


def _folder(peer: Peer) -> Path:
    return store.data_dir("peers") / peer.name


def _python(environment: Path) -> Path:
    programs = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    return environment.joinpath(*programs)


def _required(peer: Peer) -> str:
    return "".join(f"{requirement}\n" for requirement in peer.requirements)


def _is_current(peer: Peer) -> bool:
    """Whether its environment is there, made for what it requires now."""
    folder = _folder(peer)
    if not _python(folder).exists():  # nor if the Python that it was made of is gone
        return False
    return (folder / _REQUIRED).read_text("utf-8") == _required(peer)


def _is_here(requirement: str) -> bool:
    """Whether the Python that runs this has it."""
    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False
