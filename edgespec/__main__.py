"""``edgespec`` and ``python -m edgespec``."""

from edgespec.device import huge_pages


def start() -> None:
    """What the command runs."""
    huge_pages.restart()
    from edgespec.cli import main

    main(prog_name="edgespec")


if __name__ == "__main__":
    start()
