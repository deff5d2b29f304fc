"""Profiles in files, kept between runs or given by hand; the format is in ``docs/reference/profiles.md``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from edgespec.core.latency import LARGEST, LatencyCurve
from edgespec.device.profile import VERSION, Profile
from edgespec.device.profile import key as key_of
from edgespec.errors import UserError
from edgespec.files import replacing
from edgespec.models import store

FORMAT = "edgespec profile"
_MAX_BYTES, _MAX_ITEMS, _MAX_TEXT = 1 << 20, 256, 400
_MAX_SECONDS, _MAX_COUNT = 1e4, 1 << 50
_MAX_KEPT = 1000


def load(key: str, notice: Callable[[str], None] = lambda line: None) -> Profile | None:
    """The profile kept under ``key``; ``None`` without one to trust.

    A file that is there and is not that profile is reported to ``notice``.
    """
    path = _path(key)
    try:
        found = _parse(_read(path))
        if key_of(found.setup) != key:
            raise ValueError("it is of another machine, model or version")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        notice(f"the profile {path} is not used: {error}; `edgespec tune` makes a new one")
        return None
    return found


def kept(fingerprint: str) -> list[Profile]:
    """All profiles of a model that are kept, of whatever runtime; of this machine or of another."""
    found = []
    for path in sorted(store.profiles_dir().glob("*.json"))[:_MAX_KEPT]:
        with contextlib.suppress(OSError, ValueError):  # `load` reports invalid profiles
            found.append(_parse(_read(path)))
    return [profile for profile in found if profile.model["fingerprint"] == fingerprint]


def save(profile: Profile, notice: Callable[[str], None] = lambda line: None) -> Path | None:
    """Keep ``profile`` under its key and return where.

    Written beside it and renamed, so that others see the old one or the new. Where the folder
    cannot take it, ``notice`` gets a report and the result is ``None``: the next run measures again.
    """
    path = _path(key_of(profile.setup))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, private=True) as partial:
            partial.write_text(dumps(profile), encoding="utf-8")
    except OSError as error:
        notice(f"cannot keep the profile in {path.parent}: {store.reason(error)}")
        return None
    return path


def read_profile(path: Path) -> Profile:
    """A profile given by hand, of whatever machine. Raises ``UserError`` where it is not one."""
    try:
        return _parse(_read(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not a device profile: {error}; `edgespec tune` makes one"
        ) from error


def dumps(profile: Profile) -> str:
    """``profile`` as its file has it."""
    whole = {"format": FORMAT, "version": VERSION, **asdict(profile)}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def _path(key: str) -> Path:
    return store.profiles_dir() / f"{key}.json"


# -- what is in a file: it may come from anywhere ----------------------------------------------


def _read(path: Path) -> str:
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes")
    return text.decode()


def _parse(text: str) -> Profile:
    """Raises ``ValueError`` for anything but a profile whose figures can be computed with."""
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
            raise ValueError(f"it does not say that it is an {FORMAT}")
        if (version := found.pop("version", None)) != VERSION:
            raise ValueError(f"it has version {repr(version)[:40]} of the format, not {VERSION}")
        names = {field.name for field in fields(Profile)}
        if set(found) != names:
            odd = sorted(names ^ set(found))[0]
            raise ValueError(f"{repr(odd)[:40]} is {'missing' if odd in names else 'not known'}")
        machine, model = _facts(found["machine"], "machine"), _facts(found["model"], "model")
        for name in ("cpu", "system", "power"):
            _text(machine.get(name), f"machine.{name}")
        _whole(machine.get("cores"), "machine.cores")
        for name in ("name", "fingerprint"):
            _text(model.get(name), f"model.{name}")
        _whole(model.get("weight_bytes"), "model.weight_bytes")
        counts = found["thread_counts"]
        if not isinstance(counts, dict) or not len(counts) <= _MAX_ITEMS:
            raise ValueError("thread_counts is no short object")
        for name in ("exact", "quick"):
            if not isinstance(found[name], bool):
                raise ValueError(f"{name} is neither true nor false")
        if str(found["threads"]) not in counts:
            raise ValueError("thread_counts lacks the profile's own")
        created = _text(found["created"], "created")
        datetime.fromisoformat(created)
        return Profile(
            machine=machine,
            model=model,
            runtime=_text(found["runtime"], "runtime"),
            runtime_version=_text(found["runtime_version"], "runtime_version"),
            device=_text(found["device"], "device"),
            exact=found["exact"],
            threads=_whole(found["threads"], "threads", most=1 << 16),
            curve=_curve(found["curve"]),
            prefill_tokens_per_s=_number(
                found["prefill_tokens_per_s"], "prefill_tokens_per_s", 1e9
            ),
            thread_counts={
                _whole(
                    int(count) if count.isdecimal() else 0, "thread_counts", most=1 << 16
                ): _number(seconds, "thread_counts")
                for count, seconds in counts.items()
            },
            quick=found["quick"],
            created=created,
            pass_sizes=_ascending(found["pass_sizes"], "pass_sizes", 1, LARGEST),
            power_w=None if found["power_w"] is None else _number(found["power_w"], "power_w"),
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _curve(found: Any) -> LatencyCurve:
    if not isinstance(found, dict) or set(found) != {field.name for field in fields(LatencyCurve)}:
        raise ValueError("curve is not an object of rows, lengths, seconds and spread")
    rows = _ascending(found["rows"], "rows", 1, LARGEST)
    lengths = _ascending(found["lengths"], "lengths", 0)

    def table(name: str, zero: bool) -> tuple[tuple[float, ...], ...]:
        lines = [_list(line, name, len(rows)) for line in _list(found[name], name, len(lengths))]
        return tuple(tuple(_number(x, name, zero=zero) for x in line) for line in lines)

    return LatencyCurve(rows, lengths, table("seconds", False), table("spread", True))


def _ascending(found: Any, name: str, least: int, most: int = _MAX_COUNT) -> tuple[int, ...]:
    counts = tuple(_whole(count, name, least, most) for count in _list(found, name, least=0))
    if list(counts) != sorted(set(counts)):
        raise ValueError(f"{name} do not ascend")
    return counts


def _facts(found: Any, name: str) -> dict[str, str | int | float]:
    if not isinstance(found, dict) or len(found) > _MAX_ITEMS:
        raise ValueError(f"{name} is no short object")
    for fact, value in found.items():
        _text(fact, name)
        if isinstance(value, str):
            _text(value, f"{name}.{fact}")
        else:
            _number(value, f"{name}.{fact}", _MAX_COUNT, zero=True)
    return found


def _list(found: Any, name: str, count: int | None = None, least: int = 1) -> list[Any]:
    if not isinstance(found, list) or not least <= len(found) <= _MAX_ITEMS:
        raise ValueError(f"{name} is no list of {least} to {_MAX_ITEMS}")
    if count is not None and len(found) != count:
        raise ValueError(f"{name} has {len(found)} items where {count} belong")
    return found


def _text(found: Any, name: str) -> str:
    if not isinstance(found, str) or not 0 < len(found) <= _MAX_TEXT or not found.isprintable():
        raise ValueError(f"{name} is no short, printable text")
    return found


def _whole(found: Any, name: str, least: int = 1, most: int = _MAX_COUNT) -> int:
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise ValueError(f"{name} has {repr(found)[:40]}, which is no count of {least} to {most}")
    return found


def _number(found: Any, name: str, most: float = _MAX_SECONDS, *, zero: bool = False) -> float:
    numeric = isinstance(found, int | float) and not isinstance(found, bool)
    if not numeric or not 0 <= found < most or not (found or zero):  # nor is NaN
        raise ValueError(
            f"{name} has {repr(found)[:40]}, which is no number above 0 and below {most:g}"
        )
    return float(found)
