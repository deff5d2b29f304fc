"""Limits of Linux control groups (containers, systemd slices) on processor time and memory, ``cgroups(7)``.

All groups limit a process, from its own group up to the root. Those that it can see are read. Versions 1
and 2 may be mounted at once, with different controllers. A container may see its own group as the root,
by a namespace or because only this group is mounted. ``root`` is the root folder of the file system.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from edgespec.device.cores import read_text

_ROOT = Path("/")
_UNLIMITED = 1 << 62
"""Version 1 writes a number above this where there is no limit."""

_ABOVE = "hierarchical_memory_limit"
"""Version 1: the smallest limit, also of groups that this process cannot see. It is in ``memory.stat``."""
_MEMORY = (
    ("memory.current", "inactive_file", ("memory.max", "memory.high")),
    ("memory.usage_in_bytes", "total_inactive_file", ("memory.limit_in_bytes", "memory.stat")),
)
"""Of versions 2 and 1: the file of the bytes used, their part that is cached files, and the files of limits."""


class Limit(NamedTuple):
    """The smallest limit, and the file that sets it."""

    value: float
    file: Path


def cpu_quota(root: Path = _ROOT) -> Limit | None:
    """The processor time that this process may use, in CPUs; ``None``: all of it."""
    return _smallest(_quotas(root))


def memory_limit(root: Path = _ROOT) -> Limit | None:
    """The bytes of memory that this process and others in its groups may use; ``None``: no limit."""
    return _smallest(limit for limit, _ in _memory(root))


def memory_left(root: Path = _ROOT) -> Limit | None:
    """The bytes of memory that are left below the limits; ``None``: no limit.

    Cached files that the system drops first do not count as used.
    """
    return _smallest(Limit(max(0, limit - used), file) for (limit, file), used in _memory(root))


def _smallest(limits: Iterator[Limit]) -> Limit | None:
    return min(limits, key=lambda limit: limit.value, default=None)


def _quotas(root: Path) -> Iterator[Limit]:
    for group in _groups("cpu", root):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            text = " ".join(read_text(group / name) for name in names)
            if found := re.fullmatch(r"(\d+) ([1-9]\d*)", text):  # not "max" or -1
                yield Limit(int(found[1]) / int(found[2]), group / names[0])


def _memory(root: Path) -> Iterator[tuple[Limit, int]]:
    """Limits, and the bytes that are used of each."""
    for group in _groups("memory", root):
        lines = [line.partition(" ") for line in read_text(group / "memory.stat").splitlines()]
        stat = {name: text for name, _, text in lines}
        for usage, inactive, names in _MEMORY:
            used = (_number(read_text(group / usage)) or 0) - (_number(stat.get(inactive, "")) or 0)
            for name in names:
                text = stat.get(_ABOVE, "") if name == "memory.stat" else read_text(group / name)
                if (limit := _number(text)) is not None:
                    yield Limit(limit, group / name), max(0, used)


def _groups(controller: str, root: Path) -> list[Path]:
    """The folders of this process's groups that may have ``controller``, from its own up, in both versions."""
    paths: dict[str, str] = {}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    groups = [root / "sys/fs/cgroup"]  # some sandboxes do not list it as a mount
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        fields, _, described = line.partition(" - ")
        kind, _, options = described.split(" ", 2)
        top, at = map(_unescaped, fields.split(" ")[3:5])
        if kind == "cgroup2":
            path = paths.get("", "/")
        elif kind == "cgroup" and controller in options.split(","):
            path = paths.get(controller, "/")
        else:
            continue
        mount, inner = root / at.lstrip("/"), PurePosixPath(path)
        seen = ".." not in inner.parts and inner.is_relative_to(top)
        group = mount / inner.relative_to(top) if seen else mount
        groups += [group, *(each for each in group.parents if each.is_relative_to(mount))]
    return groups


def _unescaped(field: str) -> str:
    """A path of mountinfo, with spaces and the like as octal numbers."""
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), field)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) < _UNLIMITED else None
