"""Finds where a model runs the fastest, by the profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgespec.core.runtime_spec import RuntimeSpec
from edgespec.device import profile as profiles
from edgespec.device import profile_files
from edgespec.device.profile import Profile, Setup
from edgespec.errors import UserError


@dataclass(frozen=True)
class Placement:
    """Where and how a model runs: the options of ``Engine.open`` that its speed depends on."""

    runtime: RuntimeSpec
    device: str = "auto"
    provider: str | None = None
    exact: bool | None = None
    """True: nothing else will do; ``None``: where the runtime can."""
    threads: int | None = None

    @property
    def padded(self) -> bool:
        """Whether passes are padded to sizes that agree bit for bit, where the runtime can."""
        return self.exact is not False

    def setup(self, path: Path) -> Setup:
        """What a profile of the model at ``path`` must be of to hold here."""
        return profiles.setup(
            path,
            self.runtime,
            device=self.device,
            provider=self.provider,
            exact=self.padded,
            threads=self.threads,
        )


def known(
    path: Path, place: Placement, notice: Callable[[str], None] = lambda line: None
) -> Profile | None:
    """The profile of ``place``, or where it leaves the threads open of the number that is the fastest."""
    found = profile_files.load(profiles.key(place.setup(path)), notice)
    if found is None or place.threads is not None or found.best_threads == found.threads:
        return found
    faster = replace(place, threads=found.best_threads)
    return profile_files.load(profiles.key(faster.setup(path)), notice) or found


def fastest_first(
    path: Path,
    places: Sequence[Placement],
    *,
    speculates: bool,
    notice: Callable[[str], None] = lambda line: None,
) -> list[Placement]:
    """``places``, one for each runtime that may run the model at ``path``, the fastest first.

    Speed is what profiles promise, in tokens per second. Device and threads that a place leaves open become those
    of its fastest profile; threads are those of the process's pool where it runs models already. Places without
    a profile come last, in their order; if the first has none, nothing shows that another is faster, and the
    order stays. ``speculates``: every second drafted token is taken to be accepted; else plain decoding is compared.
    """
    candidates: list[tuple[float, Placement]] = []
    measured = profile_files.kept(profiles.fingerprint(path))
    for place in places:
        here = replace(place, threads=place.threads or place.runtime.pool_threads())
        kept = {profile.device for profile in measured if profile.runtime == place.runtime.name}
        devices: tuple[str, ...] = (place.device,) if kept else ()
        if kept and place.device == "auto" and place.provider is None:
            devices = ("cpu",) if kept == {"cpu"} else place.runtime.devices
        found = [
            (profile.tokens_per_s(0.5 if speculates else 0.0), profile, device)
            for device in devices
            if (profile := _known(path, replace(here, device=device), notice))
        ]
        if found:
            rate, profile, device = max(found, key=lambda one: one[0])
            here = replace(here, device=device, threads=here.threads or profile.threads)
            candidates.append((rate, here))
        else:
            candidates.append((0.0, here))
    if not candidates[0][0]:
        return [here for _, here in candidates]
    return [here for _, here in sorted(candidates, key=lambda one: -one[0])]


def _known(path: Path, place: Placement, notice: Callable[[str], None]) -> Profile | None:
    try:
        return known(path, place, notice)
    except UserError:  # it has no such device
        return None
