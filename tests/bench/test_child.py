from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgespec.bench.child import in_child
from edgespec.bench.workloads import read_prompts
from edgespec.errors import UserError


def test_a_child_is_another_process_and_its_errors_come_back() -> None:
    assert in_child(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="Spec-Bench"):
        in_child(read_prompts, Path("nowhere"))
