"""The models that edgespec knows by name: what they are and where to get them (catalogue.toml)."""

from __future__ import annotations

import functools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class CatalogueEntry:
    """One model; `size` is in bytes, exact beside a `sha256`, else about."""

    name: str
    description: str
    architecture: str
    parameters: int
    quantization: str
    license: str
    size: int
    file: str
    tokenizer_family: str
    drafts: tuple[str, ...]
    runtimes: tuple[str, ...]
    sources: tuple[str, ...]
    sha256: str | None = None


@dataclass(frozen=True)
class HubFile:
    """A file on the Hugging Face hub; no revision is the newest one."""

    repository: str
    file: str
    revision: str | None


@dataclass(frozen=True)
class WheelMember:
    """A file in a wheel: the whole model or the next part of it."""

    requirement: str
    member: str


Source = HubFile | tuple[WheelMember, ...] | Path


@functools.cache
def load_catalogue() -> dict[str, CatalogueEntry]:
    """Read the catalogue that is installed with edgespec: entries by name, in the file's order."""
    tables = tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8"))
    return {name: _entry(name, table) for name, table in tables.items()}


def parse_source(source: str) -> Source:
    """Read `hf:OWNER/REPO/FILE[@REVISION]`, `pypi:PACKAGE==VERSION/FILE` or a path.

    `{1..22}` and `{01..22}` in a `pypi:` source stand for the numbers of its parts, all of them
    counting together.
    Raises ValueError where the text is none of these.
    """
    kind, _, rest = source.partition(":")
    if kind == "hf":
        match = re.fullmatch(r"([^/@]+/[^/@]+)/([^@]+?)(?:@([^@]+))?", rest)
        if not match:
            raise ValueError(f"{source}: not hf:OWNER/REPO/FILE[@REVISION]")
        return HubFile(*match.groups())
    if kind == "pypi":
        parts = tuple(WheelMember(*part.partition("/")[::2]) for part in _expand(rest))
        if not all("==" in part.requirement and part.member for part in parts):
            raise ValueError(f"{source}: not pypi:PACKAGE==VERSION/FILE")
        return parts
    return Path(source).expanduser()


def _entry(name: str, table: dict[str, Any]) -> CatalogueEntry:
    lists = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    return CatalogueEntry(name=name, **{**table, **lists})


def _expand(text: str) -> list[str]:
    """One text for each step of all the `{first..last}` in it; leading zeros give the width."""
    ranges = re.findall(r"\{(\d+)\.\.(\d+)\}", text)
    counts = {int(last) - int(first) + 1 for first, last in ranges} or {1}
    if len(counts) != 1 or min(counts) < 1:
        raise ValueError(f"{text}: ranges of different lengths")

    def number(step: int, match: re.Match[str]) -> str:
        return str(int(match[1]) + step).zfill(len(match[1]) if match[1].startswith("0") else 1)

    return [
        re.sub(r"\{(\d+)\.\.\d+\}", functools.partial(number, step), text)
        for step in range(counts.pop())
    ]
