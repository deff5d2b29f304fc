from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgespec import kernels


@pytest.fixture(autouse=True)
def best_instruction_set() -> Iterator[None]:
    """Tests that need the library are skipped without it, and leave the best instruction set in use."""
    if reason := kernels.why_not():
        pytest.skip(reason)
    yield
    kernels.set_isa()
