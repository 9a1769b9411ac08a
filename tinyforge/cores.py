"""How many cores and how much memory this process may use."""

from math import ceil
from pathlib import Path

from tinyforge.device.machine import usable_cores

CGROUP, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")
MOST_HANDS = 4
"""Pieces of work at a time. Beyond four cores a piece gets several threads: a build has few pieces at its end."""


def cpu_limit(cpu_max: str) -> float | None:
    """Cores granted by a cgroup's cpu.max ('200000 100000' is 2.0); None without a limit."""
    quota, _, period = cpu_max.partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.strip().isdigit() else None


def cgroup_cpu_max(root: Path = CGROUP) -> str:
    """The text of cpu.max, put together from two files under cgroup v1; empty without either."""
    v1 = [root / "cpu" / name for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if (root / "cpu.max").is_file():
        return (root / "cpu.max").read_text().strip()
    return " ".join(file.read_text().strip() for file in v1) if all(file.is_file() for file in v1) else ""


def granted_cores(root: Path = CGROUP) -> int:
    """Cores of this process's affinity, or fewer where a container's quota grants fewer; a share counts as one."""
    limit = cpu_limit(cgroup_cpu_max(root))
    return min(usable_cores(), max(1, ceil(limit))) if limit else usable_cores()


def available_bytes(root: Path = CGROUP, meminfo: Path = MEMINFO) -> int | None:
    """Memory that this process may still take: the system's, or what a container's limit leaves; None: not told here.

    What files are cached in can be given back, so it counts as free.
    """
    told = meminfo.read_text() if meminfo.is_file() else ""
    lines = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        return None
    found = 1024 * int(lines["MemAvailable"].split()[0])
    for folder, limit, used, cached in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        if (folder / limit).is_file() and (most := (folder / limit).read_text().strip()).isdigit():
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(stat.get(cached, 0))
            found = min(found, max(0, int(most) - taken))
    return found
