"""``python -m edgespec.bench.experiments NAME MODEL``."""

from __future__ import annotations

import click

from edgespec.bench.experiments import (
    block_efficiency,
    exactness,
    learning,
    memory,
    passes,
    perplexity,
    rendering,
    simulation,
    speed,
)


@click.group()
def main() -> None:
    """Measure one claim of edgespec on one model."""


for _module in (
    block_efficiency,
    exactness,
    learning,
    memory,
    passes,
    perplexity,
    rendering,
    simulation,
    speed,
):
    main.add_command(_module.main, _module.__name__.rpartition(".")[2].replace("_", "-"))

if __name__ == "__main__":
    main(prog_name="python -m edgespec.bench.experiments")
