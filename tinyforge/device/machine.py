"""What this machine is: the facts that belong beside every measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "pillow", "onnxruntime", "openvino")


def describe_machine() -> dict[str, Any]:
    """{cpu, architecture, cores (usable by this process), memory_mib, system, python, package versions}."""
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "memory_mib": _memory_mib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **versions(),
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed, without importing them."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The board's name where there is one (Raspberry Pi 4 Model B Rev 1.4), else the processor's."""
    board = _read("/proc/device-tree/model").strip("\0\n ")
    names = [line.partition(":")[2].strip() for line in _read("/proc/cpuinfo").splitlines() if "model name" in line]
    return board or next(iter(names), platform.processor() or "unknown")


def peak_rss_mib() -> float | None:
    """Most memory this process has held. VmHWM, since getrusage's figure on Linux includes the parent's before exec."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 1024, 1)


def _memory_mib() -> int | None:
    sizes = [line.split()[1] for line in _read("/proc/meminfo").splitlines() if line.startswith("MemTotal:")]
    return int(sizes[0]) // 1024 if sizes else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
