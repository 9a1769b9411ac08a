"""Which arithmetic this processor has: golden vectors are compared more strictly with those made on the same."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
LEVELS = {  # by machine, best first: (name, flags in /proc/cpuinfo of which one is enough)
    "x86_64": (
        ("amx", ("amx_int8",)),
        ("avx512-vnni", ("avx512_vnni",)),
        ("avx-vnni", ("avx_vnni",)),
        ("avx512", ("avx512bw",)),
        ("avx2", ("avx2",)),
        ("sse", ("sse4_1", "sse2")),
    ),
    "aarch64": (("i8mm", ("i8mm",)), ("dotprod", ("asimddp",)), ("neon", ("asimd",))),
    "armv7l": (("neon", ("neon",)),),
}
SAME = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "armv8l": "armv7l"}


def instruction_set(cpuinfo: Path = CPUINFO, machine: str = "") -> str:
    """'x86_64 avx512-vnni', 'aarch64 dotprod', ...: what kernels are chosen by; 'aarch64' where no more is told."""
    machine = (machine or platform.machine()).lower()
    machine = SAME.get(machine, machine)
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return machine
    listed = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    flags = set(listed.partition(":")[2].split())
    level = next((name for name, enough in LEVELS.get(machine, ()) if flags.intersection(enough)), "")
    return f"{machine} {level}".strip()
