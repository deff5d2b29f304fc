"""Limits of control groups, in file trees as container engines, systemd and Kubernetes lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgespec.device import cgroup, machine
from edgespec.device.cores import Cores

MIB = 1 << 20
NO_LIMIT = 9223372036854771712
V2 = "cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"


def mount(top: str, at: str, described: str) -> str:
    return f"35 24 0:30 {top} {at} rw,nosuid,nodev,noexec,relatime shared:9 - {described}\n"


def v1(*controllers: str, top: str, parent: str = "/sys/fs/cgroup") -> str:
    return "".join(
        mount(top, f"{parent}/{each}", f"cgroup cgroup rw,{each}") for each in controllers
    )


def quota(group: str, quota_us: int, period_us: int = 100_000) -> dict[str, str]:
    return {
        f"{group}/cpu.cfs_quota_us": f"{quota_us}\n",
        f"{group}/cpu.cfs_period_us": f"{period_us}\n",
    }


def used(group: str, limit: object, usage: int, inactive: int = 0) -> dict[str, str]:
    """Files of version 2, in MiB."""
    return {
        f"{group}/memory.max": f"{limit * MIB if isinstance(limit, int) else limit}\n",
        f"{group}/memory.current": f"{usage * MIB}\n",
        f"{group}/memory.stat": f"anon 1\ninactive_file {inactive * MIB}\nactive_file 9\n",
    }


def used_v1(
    group: str, limit: int, usage: int, inactive: int = 0, above: int = NO_LIMIT
) -> dict[str, str]:
    return {
        f"{group}/memory.limit_in_bytes": f"{limit}\n",
        f"{group}/memory.usage_in_bytes": f"{usage}\n",
        f"{group}/memory.stat": f"cache 1\nhierarchical_memory_limit {above}\n"
        f"inactive_file 7\ntotal_inactive_file {inactive}\n",
    }


CGROUP, MOUNTS = "/proc/self/cgroup", "/proc/self/mountinfo"
FS = "/sys/fs/cgroup"
DOCKER = "/docker/8f3c"
POD = "/kubepods/burstable/pod5ab1"
USER = "/user.slice/user-1000.slice/user@1000.service/app.slice/app-edgespec.scope"
LAYOUTS: dict[str, tuple[dict[str, str], float | None, float | None, float | None]] = {
    "no limits at all": (
        {CGROUP: "0::/\n", MOUNTS: mount("/", FS, V2), f"{FS}/cgroup.controllers": "cpu memory\n"},
        None, None, None,
    ),
    "nothing can be read": ({}, None, None, None),
    "docker, version 2, own namespace": (
        {
            CGROUP: "0::/\n",
            MOUNTS: mount("/", FS, V2),
            f"{FS}/cpu.max": "150000 100000\n",
            **used(FS, 300, 100, 30),
        },
        1.5, 300, 230,
    ),
    "docker, version 2, the host's namespace": (
        {
            CGROUP: "0::/system.slice/docker-8f3c.scope\n",
            MOUNTS: mount("/", FS, V2),
            f"{FS}/system.slice/docker-8f3c.scope/cpu.max": "50000 100000\n",
            **used(f"{FS}/system.slice/docker-8f3c.scope", 512, 12),
            **used(f"{FS}/system.slice", "max", 2000),
        },
        0.5, 512, 500,
    ),
    "docker, version 1, only its own groups are mounted": (
        {
            CGROUP: f"4:memory:{DOCKER}\n3:cpu,cpuacct:{DOCKER}\n2:cpuset:{DOCKER}\n1:name=systemd:{DOCKER}\n",
            MOUNTS: mount(DOCKER, f"{FS}/cpu,cpuacct", "cgroup cgroup rw,cpu,cpuacct") + v1("memory", top=DOCKER),
            **quota(f"{FS}/cpu,cpuacct", 250_000),
            **used_v1(f"{FS}/memory", 1024 * MIB, 300 * MIB, 100 * MIB),
        },
        2.5, 1024, 824,
    ),
    "docker, version 1, without limits": (
        {
            CGROUP: f"4:memory:{DOCKER}\n3:cpu:{DOCKER}\n",
            MOUNTS: v1("cpu", "memory", top=DOCKER),
            **quota(f"{FS}/cpu", -1),
            **used_v1(f"{FS}/memory", NO_LIMIT, 300 * MIB),
        },
        None, None, None,
    ),
    "docker in docker, version 1": (
        {
            CGROUP: f"4:memory:{DOCKER}/docker/77aa\n3:cpu:{DOCKER}/docker/77aa\n",
            MOUNTS: v1("cpu", "memory", top=f"{DOCKER}/docker/77aa"),
            **quota(f"{FS}/cpu", 400_000),
            **used_v1(f"{FS}/memory", NO_LIMIT, 50 * MIB, above=200 * MIB),
        },
        4, 200, 150,
    ),
    "kubernetes, version 1: the pod's limit is above the container's mount": (
        {
            CGROUP: f"11:cpu,cpuacct:{POD}/c1\n9:memory:{POD}/c1\n",
            MOUNTS: mount(f"{POD}/c1", f"{FS}/cpu,cpuacct", "cgroup cgroup rw,cpu,cpuacct") + v1("memory", top=f"{POD}/c1"),
            **quota(f"{FS}/cpu,cpuacct", 50_000),
            **used_v1(f"{FS}/memory", 800 * MIB, 100 * MIB, above=600 * MIB),
        },
        0.5, 600, 500,
    ),
    "kubernetes, version 2, the host's tree": (
        {
            CGROUP: f"0::{POD}/c1\n",
            MOUNTS: mount("/", FS, V2),
            f"{FS}{POD}/c1/cpu.max": "max 100000\n",
            f"{FS}{POD}/cpu.max": "300000 100000\n",
            f"{FS}/kubepods/cpu.max": "1600000 100000\n",
            **used(f"{FS}{POD}/c1", 900, 100),
            **used(f"{FS}{POD}", 1000, 700),
        },
        3, 900, 300,
    ),
    "systemd, nested slices": (
        {
            CGROUP: f"0::{USER}\n",
            MOUNTS: mount("/", FS, V2),
            f"{FS}{USER}/cpu.max": "max 100000\n",
            f"{FS}/user.slice/user-1000.slice/cpu.max": "200000 100000\n",
            f"{FS}/user.slice/cpu.max": "800000 100000\n",
            **used(f"{FS}{USER}", "max", 50),
            **used(f"{FS}/user.slice/user-1000.slice", 4096, 1096),
            f"{FS}{USER}/memory.high": f"{2048 * MIB}\n",
        },
        2, 2048, 1998,
    ),
    "systemd, versions 1 and 2 at once": (
        {
            CGROUP: "5:memory:/system.slice/a.service\n3:cpu,cpuacct:/system.slice/a.service\n0::/system.slice/a.service\n",
            MOUNTS: mount("/", f"{FS}/unified", V2)
            + mount("/", f"{FS}/cpu,cpuacct", "cgroup cgroup rw,cpu,cpuacct")
            + v1("memory", top="/"),
            **quota(f"{FS}/cpu,cpuacct/system.slice", 100_000, 50_000),
            **quota(f"{FS}/cpu,cpuacct/system.slice/a.service", -1),
            **used_v1(f"{FS}/memory", NO_LIMIT, 9000 * MIB),
            **used_v1(f"{FS}/memory/system.slice/a.service", 256 * MIB, 56 * MIB),
        },
        2, 256, 200,
    ),
    "lxc, version 1": (
        {
            CGROUP: "4:memory:/lxc/web/init.scope\n3:cpu:/lxc/web/init.scope\n",
            MOUNTS: v1("cpu", "memory", top="/lxc/web"),
            **quota(f"{FS}/cpu", 300_000),
            **quota(f"{FS}/cpu/init.scope", -1),
            **used_v1(f"{FS}/memory", 512 * MIB, 112 * MIB),
            **used_v1(f"{FS}/memory/init.scope", NO_LIMIT, 10 * MIB, above=512 * MIB),
        },
        3, 512, 400,
    ),
    "lxc, version 2": (
        {
            CGROUP: "0::/init.scope\n",
            MOUNTS: mount("/", FS, V2),
            f"{FS}/cpu.max": "100000 100000\n",
            **used(f"{FS}/init.scope", "max", 10),
            **used(FS, 128, 28),
        },
        1, 128, 100,
    ),
    "a namespace that the process was moved out of": (
        {
            CGROUP: "0::/../other\n",
            MOUNTS: mount("/", FS, V2),
            f"{FS}/cpu.max": "100000 100000\n",
            "/sys/fs/other/cpu.max": "10000 100000\n",
        },
        1, None, None,
    ),
    "a mount of another group": (
        {CGROUP: "0::/\n", MOUNTS: mount("/../..", "/host/cgroup", V2), "/host/cgroup/cpu.max": "200000 100000\n"},
        2, None, None,
    ),
    "a mount point with a space": (
        {CGROUP: "0::/a\n", MOUNTS: mount("/", r"/my\040groups", V2), "/my groups/a/cpu.max": "700000 100000\n"},
        7, None, None,
    ),
    "a sandbox that lists no mounts": (
        {f"{FS}/cpu.max": "200000 100000\n", **used(FS, 64, 100)},
        2, 64, 0,
    ),
}  # fmt: skip


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_smallest_limit_counts(layout: str, tmp_path: Path) -> None:
    files, cpus, limit, left = LAYOUTS[layout]
    root = lay_out(tmp_path, files)

    def value(found: cgroup.Limit | None, unit: int = 1) -> float | None:
        assert found is None or found.file.is_file()
        return None if found is None else found.value / unit

    assert value(cgroup.cpu_quota(root)) == cpus
    assert value(cgroup.memory_limit(root), MIB) == limit
    assert value(cgroup.memory_left(root), MIB) == left


@pytest.mark.parametrize(
    ("quota", "threads", "cpus"),
    [(None, 4, 8), (0.2, 1, 1), (1.0, 1, 1), (2.99, 2, 2), (6.5, 4, 6)],
)
def test_threads_stay_within_the_quota(
    quota: float | None, threads: int, cpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = None if quota is None else cgroup.Limit(quota, Path("cpu.max"))
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: limit)
    monkeypatch.setattr(machine, "available_cores", lambda: Cores(8, 6, 4))
    assert machine.physical_cores() == threads
    assert machine.usable_cpus() == cpus


def test_available_memory_stays_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> tuple[int, int]:
        raise OSError

    monkeypatch.setattr(machine, "memory", lambda: (900, 500))
    for left, available in ((None, 500), (300, 300), (700, 500)):
        limit = None if left is None else cgroup.Limit(left, Path("memory.max"))
        monkeypatch.setattr(cgroup, "memory_left", lambda limit=limit: limit)
        assert machine.available_memory() == available
    monkeypatch.setattr(machine, "memory", unreadable)
    assert machine.available_memory() == 700
    monkeypatch.setattr(cgroup, "memory_left", lambda: None)
    assert machine.available_memory() is None
