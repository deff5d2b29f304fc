"""What passes cost on a machine, kept between runs. The file's format is in ``docs/profiles.md``."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from hashlib import sha256
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgespec.errors import UserError
from edgespec.export import BUILDER_VERSION
from edgespec.models import store
from edgespec.runtimes.devices import choose_provider, cpu_name, physical_cores, power_source

FORMAT, VERSION = "edgespec profile", 1
LARGEST = 64
"""``Curve.at`` gives the cost of passes over up to so many tokens."""
_MAX_BYTES, _MAX_ITEMS, _MAX_TEXT = 1 << 20, 256, 400
_MAX_SECONDS, _MAX_COUNT = 1e4, 1 << 50
_CLEARLY = 0.95
"""Times that are not below this share of another's may be noise."""
_MAX_KEPT = 1000
_NOISY, _FALLS = 0.3, 0.1
"""Spreads, and larger passes that take less, of a machine that did something else meanwhile."""
_END = 1 << 20
"""Bytes of each end of a model's file that its fingerprint covers."""
_WEIGHTS = re.compile(r"\.(onnx|data|onnx_data|safetensors|gguf)$|^config\.json$")

Facts = Mapping[str, "str | int | float"]


@dataclass(frozen=True)
class Curve:
    """Seconds of a pass over n tokens (all logits) after L tokens in the cache.

    ``rows`` are the sizes n that ran, padding included; both they and ``lengths`` ascend.
    """

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    """[length][rows], medians."""
    spread: tuple[tuple[float, ...], ...]
    """[length][rows], (p90 - p10) / median."""

    def at(self, length: int) -> npt.NDArray[np.float64]:
        """Seconds of passes over 1…64 tokens after ``length``; that of n is at n - 1.

        Linear between what was measured; beyond it along the last slope, where that rises, so
        never less than the nearest that was measured.
        """
        sizes, rows = np.arange(1.0, LARGEST + 1), np.asarray(self.rows, np.float64)
        table = np.array([np.interp(sizes, rows, seconds) for seconds in self.seconds])
        if len(rows) > 1:
            rise = np.diff(np.asarray(self.seconds)[:, -2:]).clip(0) / (rows[-1] - rows[-2])
            table += rise * (sizes - rows[-1]).clip(0)
        if len(self.lengths) == 1:
            return np.asarray(table[0])
        after = min(max(int(np.searchsorted(self.lengths, length)), 1), len(self.lengths) - 1)
        start, end = self.lengths[after - 1 : after + 1]
        share = max((length - start) / (end - start), 0.0)
        change = table[after] - table[after - 1]
        falls_on = (share > 1) & (change < 0)
        return np.asarray(table[after - 1] + change * np.where(falls_on, 1.0, share))


@dataclass(frozen=True)
class Setup:
    """What a profile is of: everything that could make it wrong."""

    fingerprint: str
    """Of the model's files, see ``fingerprint``."""
    runtime: str
    runtime_version: str
    device: str
    exact: bool
    """Whether passes are padded so that their rows agree, where the runtime can."""
    threads: int
    machine: Facts
    """``cpu``, ``cores``, ``system`` and ``power`` count."""


@dataclass(frozen=True)
class Profile:
    """What passes cost: one model on one runtime and device."""

    machine: Facts
    """``cpu``, ``cores`` (physical, to use), ``threads`` (logical), ``system``, ``power`` ("mains",
    "battery" or "unknown"); where it was measured, ``memory_bytes_per_s``."""
    model: Facts
    """``name``, ``fingerprint`` and ``weight_bytes``, what a pass reads."""
    runtime: str
    runtime_version: str
    device: str
    exact: bool
    threads: int
    curve: Curve
    prefill_tokens_per_s: float
    thread_counts: Mapping[int, float]
    """Threads → seconds of the smallest pass; ``threads`` is among them."""
    quick: bool
    """Measured in a moment, before the first answer."""
    created: str
    """ISO 8601, UTC."""
    pass_sizes: tuple[int, ...] = ()
    """Sizes that passes were padded to, as ``ModelInfo`` has them."""
    power_w: float | None = None
    """Watts that decoding draws more than idling does, where somebody measured it."""

    @property
    def bandwidth(self) -> float:
        """Bytes of weights read a second, in the smallest pass."""
        return float(self.model["weight_bytes"]) / self.curve.seconds[0][0]

    @property
    def steady(self) -> bool:
        """Whether the machine let it be measured: more than one pass of a size, and much alike."""
        spread = float(np.median(self.curve.spread))
        falls = np.diff(self.curve.seconds, axis=1) < -_FALLS * np.array(self.curve.seconds)[:, 1:]
        return 0 < spread < _NOISY and not falls.any()

    @property
    def best_threads(self) -> int:
        """The count with the fastest smallest pass; the profile's own unless that is clearly slower,
        for larger passes gain more from threads."""
        fastest = min(self.thread_counts, key=self.thread_counts.__getitem__)
        own = self.thread_counts[self.threads]
        return fastest if self.thread_counts[fastest] < _CLEARLY * own else self.threads

    def tokens_per_s(self, acceptance: float = 0.5) -> float:
        """With chains of the best length, of whose tokens ``acceptance`` are right; 0: plain decoding.

        Drafts cost nothing here: it compares runtimes, it does not predict.
        """
        passes = zip(self.curve.rows, self.curve.seconds[0], strict=True)
        return max(sum(acceptance**i for i in range(rows)) / seconds for rows, seconds in passes)

    def draft_curve(self, chunk: int) -> Curve:
        """What passes of a draft model cost: over a token or two, and over ``chunk`` of a prompt,
        which has no logits."""
        few = [i for i, size in enumerate(self.curve.rows) if size <= 2]
        seconds = chunk / self.prefill_tokens_per_s
        return Curve(
            (*(self.curve.rows[i] for i in few), chunk),
            self.curve.lengths,
            tuple((*(row[i] for i in few), seconds) for row in self.curve.seconds),
            tuple((*(row[i] for i in few), 0.0) for row in self.curve.spread),
        )

    @property
    def setup(self) -> Setup:
        """What it is of."""
        return Setup(
            str(self.model["fingerprint"]),
            self.runtime,
            self.runtime_version,
            self.device,
            self.exact,
            self.threads,
            self.machine,
        )


def setup(
    path: Path,
    runtime: str,
    *,
    device: str = "auto",
    provider: str | None = None,
    exact: bool = True,
    threads: int | None = None,
) -> Setup:
    """What a profile must be of to be trusted for the model at ``path``, opened as ``Engine.open``
    does; nothing is loaded, and a few milliseconds pass.

    Raises ``UserError`` where there is no such runtime, device or file.
    """
    if runtime == "onnx":
        import onnxruntime

        chosen = choose_provider(device, provider, onnxruntime.get_available_providers())
        number = device.partition(":")[2] if chosen != "CPUExecutionProvider" else ""
        device = chosen.removesuffix("ExecutionProvider").lower() + (number and f":{number}")
        version = f"{onnxruntime.__version__}, built by {BUILDER_VERSION}"
    elif runtime == "ik-llama-cpp":
        if device not in ("auto", "cpu"):
            raise UserError(f"{runtime} runs on the processor alone; use --device cpu with it")
        device, version = "cpu", _version("ik_llama_cpp", "ik-llama-cpp-python", "ik")
    else:
        if device != "cpu":  # which every build has: it is not imported to learn that
            from edgespec.runtimes.llama_cpp import choose_device

            device = choose_device(device)
        version = _version("llama_cpp", "llama-cpp-python", "llama")
    exact = exact and runtime == "onnx"  # no sizes of pass are promised to agree on the others
    count = threads or physical_cores()
    return Setup(fingerprint(path), runtime, version, device, exact, count, machine())


def key(setup: Setup) -> str:
    """The name of ``setup``'s profile: another one for all that could make it wrong."""
    counted = {name: setup.machine[name] for name in ("cpu", "cores", "system", "power")}
    parts = {**asdict(setup), "machine": counted, "version": VERSION}
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def machine() -> dict[str, str | int | float]:
    """The facts of this machine that a profile keeps, as they are now."""
    return {
        "cpu": cpu_name(),
        "cores": physical_cores(),
        "threads": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "power": power_source(),
    }


def fingerprint(path: Path) -> str:
    """A hash of the sizes and of the first and last MiB of a model's files.

    Unlike one of the whole file it takes a few milliseconds, so it can be taken at every start.
    Models alike in those (a fine-tune that kept its last layers' bits) also cost the same.
    """
    try:
        files = [path]
        if path.is_dir():
            files = [f for f in sorted(path.iterdir()) if _WEIGHTS.search(f.name) and f.is_file()]
        digest = sha256()
        for file in files[:_MAX_ITEMS]:
            with file.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                digest.update(f"{size}\n".encode())
                for start in (0, max(size - _END, 0)):
                    stream.seek(start)
                    digest.update(stream.read(_END))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    return digest.hexdigest()


def load(key: str, notice: Callable[[str], None] = lambda line: None) -> Profile | None:
    """The profile kept under ``key``; ``None`` without one to trust.

    A file that is there and is not that profile is told to ``notice``.
    """
    path = _path(key)
    try:
        found = _parse(_read(path))
        if _key_of(found) != key:
            raise ValueError("it is of another machine, model or version")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        notice(f"the profile {path} is not used: {error}; `edgespec tune` makes it anew")
        return None
    return found


def kept(fingerprint: str) -> list[Profile]:
    """All profiles of a model that are kept, of whatever runtime; of this machine or of another."""
    found = []
    for path in sorted(store.profiles_dir().glob("*.json"))[:_MAX_KEPT]:
        with contextlib.suppress(OSError, ValueError):  # `load` tells of those that are asked for
            found.append(_parse(_read(path)))
    return [profile for profile in found if profile.model["fingerprint"] == fingerprint]


def save(profile: Profile, notice: Callable[[str], None] = lambda line: None) -> Path | None:
    """Keep ``profile`` under its key and return where.

    Written beside it and renamed, so that others see the old one or the new. Where the folder
    cannot take it, ``notice`` is told and the result is ``None``: the next run measures again.
    """
    path = _path(_key_of(profile))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(dumps(profile))
            os.replace(name, path)
        finally:
            with contextlib.suppress(FileNotFoundError):  # as it should be
                os.unlink(name)
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


def _key_of(profile: Profile) -> str:
    return key(profile.setup)


def _version(module: str, package: str, extra: str) -> str:
    """The package's, and its libraries' size: it is compiled at home, with whatever options."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(f"{package} is not installed: pip install 'edgespec[{extra}]'")
    libraries = [f for f in (Path(spec.origin).parent / "lib").glob("*") if f.is_file()]
    size = sum(f.stat().st_size for f in libraries)
    return f"{metadata.version(package)}, {size} bytes"


# -- the file: it may come from anywhere -------------------------------------------------------


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


def _curve(found: Any) -> Curve:
    if not isinstance(found, dict) or set(found) != {field.name for field in fields(Curve)}:
        raise ValueError("curve is not an object of rows, lengths, seconds and spread")
    rows = _ascending(found["rows"], "rows", 1, LARGEST)
    lengths = _ascending(found["lengths"], "lengths", 0)

    def table(name: str, zero: bool) -> tuple[tuple[float, ...], ...]:
        lines = [_list(line, name, len(rows)) for line in _list(found[name], name, len(lengths))]
        return tuple(tuple(_number(x, name, zero=zero) for x in line) for line in lines)

    return Curve(rows, lengths, table("seconds", False), table("spread", True))


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
