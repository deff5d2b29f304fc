"""Whether a Python package is installed, and which build of it, without importing it."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from edgespec.errors import UserError


def why_not_installed(module: str, package: str, install: str) -> str | None:
    """One line that says what to do; ``None`` where ``module`` is there."""
    return None if find_spec(module) else f"{package} is not installed: {install}"


def compiled_version(module: str, package: str, install: str) -> str:
    """The package's version and the size of its libraries: it is compiled at home, with any options.

    Raises ``UserError`` where it is not installed.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(f"{package} is not installed: {install}")
    libraries = [f for f in (Path(spec.origin).parent / "lib").glob("*") if f.is_file()]
    size = sum(f.stat().st_size for f in libraries)
    return f"{metadata.version(package)}, {size} bytes"
