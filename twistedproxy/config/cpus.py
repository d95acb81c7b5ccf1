"""How many CPUs may this process really use? The default of ``workers.count``.

The smaller of the scheduling affinity and the cgroup's quota (v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``), any level up.
A part of a CPU counts as one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable


def usable_cpus(root: str = "/") -> int:
    """At least 1; `root` is where ``proc`` and ``sys`` are looked for."""
    cpus = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(root)
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


def _cgroup_quota(root: str) -> float | None:
    quotas = []
    for line in (_read(os.path.join(root, "proc/self/cgroup")) or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            quotas += _levels(os.path.join(root, "sys/fs/cgroup"), group, _quota_v2)
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", "cpu,cpuacct", controllers):
                quotas += _levels(os.path.join(root, "sys/fs/cgroup", mount), group, _quota_v1)
    return min(quotas, default=None)


def _levels(mount: str, group: str, quota_of: Callable[[str], float | None]) -> list[float]:
    """The quotas of the group and of all above it: in a container the group's own directory may be invisible, the root is not."""
    quotas = []
    group = os.path.normpath("/" + group).lstrip("/")
    while True:
        quota = quota_of(os.path.join(mount, group))
        if quota is not None:
            quotas.append(quota)
        if not group:
            return quotas
        group = os.path.dirname(group)


def _quota_v2(directory: str) -> float | None:
    words = (_read(os.path.join(directory, "cpu.max")) or "").split()
    return _ratio(words[0], words[1]) if len(words) == 2 else None


def _quota_v1(directory: str) -> float | None:
    quota, period = (_read(os.path.join(directory, f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    return _ratio(quota.strip(), period.strip()) if quota and period else None


def _ratio(quota: str, period: str) -> float | None:
    """None for ``max``, -1 and whatever else is no quota."""
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(quota) and int(period) else None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(65536)
    except (OSError, UnicodeDecodeError):
        return None  # no such controller here: no quota from it
