"""What this machine is: the facts that belong beside every measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from .instructions import instruction_set

PACKAGES = ("numpy", "pillow", "onnxruntime", "openvino")
EMULATORS = ("qemu-", "rosetta", "box64")
ROOT = Path("/")


def describe_machine(root: Path = ROOT) -> dict[str, Any]:
    """{cpu, architecture, instructions, emulated, cores (usable by this process), memory_mib, system, python, package
    versions}. instructions: what kernels are chosen by.

    ``root`` holds the system's files; tests replace it.
    """
    return {
        "cpu": cpu_model(root),
        "architecture": platform.machine(),
        "instructions": instruction_set(root / "proc/cpuinfo"),
        "emulated": emulated(root),
        "cores": usable_cores(),
        "memory_mib": _memory_mib(root),
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


def emulated(root: Path = ROOT) -> bool:
    """Whether an emulator runs this process: latencies then say nothing of a board.

    qemu's user mode pretends in /proc/self, but not in /proc/thread-self, which names the program that really runs.
    """
    try:
        program = (root / "proc/thread-self/exe").readlink().name
    except OSError:
        return False
    return program.startswith(EMULATORS)


def cpu_model(root: Path = ROOT) -> str:
    """The board's name where there is one (Raspberry Pi 4 Model B Rev 1.4), else the processor's."""
    board = _read(root / "proc/device-tree/model").strip("\0\n ")
    lines = _read(root / "proc/cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return board or next(iter(names), platform.processor() or "unknown")


def peak_rss_mib() -> float | None:
    """Most memory this process has held. VmHWM, since getrusage's figure on Linux includes the parent's before exec."""
    for line in _read(ROOT / "proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 2**20 if sys.platform == "darwin" else peak / 1024, 1)


def _memory_mib(root: Path) -> int | None:
    sizes = [line.split()[1] for line in _read(root / "proc/meminfo").splitlines() if line.startswith("MemTotal:")]
    return int(sizes[0]) // 1024 if sizes else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
