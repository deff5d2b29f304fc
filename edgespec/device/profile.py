"""What passes cost on a machine, and what that depends on."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from edgespec.core.latency import LatencyCurve
from edgespec.core.runtime_spec import RuntimeSpec
from edgespec.device import huge_pages
from edgespec.device.machine import cpu_name, physical_cores, power_source
from edgespec.errors import UserError

VERSION = 1
"""Version of a profile's contents."""
_CLEARLY = 0.95
"""Times that are not below this share of another's may be noise."""
_NOISY, _FALLS = 0.3, 0.1
"""Spreads, and larger passes that take less, of a machine that did something else meanwhile."""
_MAX_FILES = 256
_END = 1 << 20
"""Bytes of each end of a model's file that its fingerprint covers."""
_WEIGHTS = re.compile(r"\.(onnx|data|onnx_data|safetensors|gguf)$|^config\.json$")

_COUNTED = ("cpu", "cores", "system", "power", "pages")
"""Facts of a machine that make a profile another."""

Facts = Mapping[str, "str | int | float"]


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
    """Of these facts ``_COUNTED`` count."""


@dataclass(frozen=True)
class Profile:
    """What passes cost: one model on one runtime and device."""

    machine: Facts
    """``cpu``, ``cores`` (physical, to use), ``threads`` (logical), ``system``, ``power`` ("mains",
    "battery" or "unknown"), ``pages`` ("huge" or "small"); where it was measured, ``memory_bytes_per_s``."""
    model: Facts
    """``name``, ``fingerprint`` and ``weight_bytes``, what a pass reads; with the kernels, their ``isa``."""
    runtime: str
    runtime_version: str
    device: str
    exact: bool
    threads: int
    curve: LatencyCurve
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

    def draft_curve(self, chunk: int) -> LatencyCurve:
        """The latency of a draft model's passes: over a token or two, and over ``chunk`` tokens of a
        prompt (``RuntimeSpec.prefill_chunk``), which have no logits."""
        few = [i for i, size in enumerate(self.curve.rows) if size <= 2]
        seconds = chunk / self.prefill_tokens_per_s
        return LatencyCurve(
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
    runtime: RuntimeSpec,
    *,
    device: str = "auto",
    provider: str | None = None,
    exact: bool = True,
    threads: int | None = None,
) -> Setup:
    """What a profile must be of to be trusted for the model at ``path``, opened as ``Engine.open``
    does. Loads nothing and takes a few milliseconds.

    Raises ``UserError`` where the runtime, the device or the file is not there.
    """
    return Setup(
        fingerprint(path),
        runtime.name,
        runtime.version(),
        runtime.device(device, provider),
        exact and runtime.exact,
        threads or physical_cores(),
        machine(),
    )


def key(setup: Setup) -> str:
    """The name of ``setup``'s profile: another one for all that could make it wrong."""
    counted = {name: setup.machine.get(name) for name in _COUNTED}
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
        "pages": "huge" if huge_pages.in_use() else "small",
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
        for file in files[:_MAX_FILES]:
            with file.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                digest.update(f"{size}\n".encode())
                for start in (0, max(size - _END, 0)):
                    stream.seek(start)
                    digest.update(stream.read(_END))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path") from error
    return digest.hexdigest()
