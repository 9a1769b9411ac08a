"""How many cores this process may use."""

from math import ceil
from pathlib import Path

from tinyforge.device.machine import usable_cores

CGROUP = Path("/sys/fs/cgroup")


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
