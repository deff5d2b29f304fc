from __future__ import annotations

import os
import sys
import time

import pytest

from edgespec.cli.progress import ProgressBar
from tests.cli.terminal import Terminal


def test_quick_work_is_not_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressBar()
    for done in range(100):
        progress("reading", done, 100)
    progress.stop()
    time.sleep(0.7)
    assert capsys.readouterr() == ("", "")


def test_away_from_a_terminal_lasting_stages_are_a_line_each(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = ProgressBar()
    for stage in ("waiting", "building"):
        for done in (0, 1, 2):
            progress(stage, done, 0)
            time.sleep(0.3)
    progress("soon done", 0, 1)
    progress.stop()
    assert capsys.readouterr() == ("", "waiting ...\nbuilding ...\n")


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX's")
def test_on_a_terminal_there_is_a_bar_and_then_there_is_not() -> None:
    code = """
import time
from edgespec.cli.progress import ProgressBar
progress = ProgressBar()
for done in range(15):
    progress("building", done, 20)
    time.sleep(0.1)
progress.stop()
print("after", flush=True)
input()
"""
    with Terminal([sys.executable, "-c", code]) as terminal:
        terminal.until(r"building.* 60%")
        assert "\x1b[2K" in terminal.until("after"), "the bar's line is not erased"
