"""Runtimes load a model that is already in their format and run passes over it.

Each runtime has a folder with its ``SPEC``, a ``RuntimeSpec``. Other packages add theirs through the
entry point group ``edgespec.runtimes``: the entry's name is the runtime's, its value a ``RuntimeSpec``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module, metadata

from edgespec.core.runtime_spec import Form, RuntimeSpec
from edgespec.errors import UserError

BUILT_IN = ("onnx", "llama_cpp", "ik_llama_cpp")
"""Modules of this package that have a ``SPEC``, in the order in which ``--runtime auto`` prefers them. One
that is not there is left out, so that a distribution may drop it."""
ENTRY_POINTS = "edgespec.runtimes"


@cache
def specs() -> Mapping[str, RuntimeSpec]:
    """All runtimes by name, the preferred ones first; other packages' come last.

    Raises ``UserError`` where another package's entry is no ``RuntimeSpec``.
    """
    found: dict[str, RuntimeSpec] = {}
    for name in BUILT_IN:
        module = f"{__name__}.{name}"
        try:
            spec = import_module(module).SPEC
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
        else:
            found[spec.name] = spec
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            spec = entry.load()
        except Exception as error:  # it is another package's code
            raise UserError(
                f"the runtime {entry.name} ({entry.value}) does not load: {error}"
            ) from error
        if not isinstance(spec, RuntimeSpec) or spec.name != entry.name or spec.name in found:
            raise UserError(
                f"the runtime {entry.name} ({entry.value}) is no RuntimeSpec of that name, or there are "
                "two of them; uninstall the package that brings it"
            )
        found[spec.name] = spec
    return found


def get(name: str) -> RuntimeSpec:
    """The runtime of this name. Raises ``UserError`` where there is none."""
    if name not in specs():
        raise UserError(f"there is no runtime {name!r}; take {' or '.join(['auto', *specs()])}")
    return specs()[name]


def for_form(form: Form) -> RuntimeSpec | None:
    """The preferred runtime that is installed here and takes ``form``; ``None`` where there is none."""
    return next((s for s in specs().values() if form in s.forms and not s.why_not_here()), None)
