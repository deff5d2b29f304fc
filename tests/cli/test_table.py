"""Tables and sizes as the command line prints them."""

from __future__ import annotations

import pytest

from edgespec.cli.table import print_table
from edgespec.units import format_size


def test_piped_output_keeps_whole_cells_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    long = "[bold]" + "word " * 200 + "end"
    print_table([("NAME", "SIZE"), (long, "1"), ("b", "1000")], left=1)
    header, first, second = capsys.readouterr().out.splitlines()
    assert first == f"{long}     1"
    assert second.split() == ["b", "1000"]
    assert len(header) == len(first) == len(second)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (10200, "10 KiB"),
        (98 * 10**6, "93 MiB"),
        (3 << 30, "3.00 GiB"),
        (5 << 50, "5120.00 TiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert format_size(size) == text
