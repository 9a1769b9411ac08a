"""What this machine offers TinyForge: Python, cores, memory, GPU, and every dependency, without importing any."""

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinyforge import __version__
from tinyforge.cores import cgroup_cpu_max, cpu_limit
from tinyforge.device.machine import describe_machine
from tinyforge.device.report import table

_CGROUP_MEMORY = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*([^;]*?)\s*(?:;.*extra\s*==\s*['\"](\w+)['\"].*)?$")


def examine(deep: bool = False) -> dict[str, Any]:
    """{tinyforge, python, machine, cpu_limit, memory_limit_mib, gpus, dependencies, missing}.

    dependencies: per package {extra, requires, version or None, ok, advice}. missing: those of base and host.
    deep: also import torch, and tell what it sees.
    """
    dependencies = [_dependency(*requirement) for requirement in requirements()]
    report = {
        "tinyforge": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "machine": describe_machine(),
        "cpu_limit": cpu_limit(cgroup_cpu_max()),
        "memory_limit_mib": memory_limit_mib(_first_text(_CGROUP_MEMORY)),
        "gpus": gpus(),
        "dependencies": dependencies,
        "missing": [d["name"] for d in dependencies if d["extra"] in ("base", "host") and not d["ok"]],
    }
    return report | ({"torch": _torch()} if deep else {})


def requirements() -> list[tuple[str, str, str]]:
    """(package, version range, extra or 'base') of TinyForge, from its metadata, in a checkout from pyproject.toml."""
    try:
        declared = importlib.metadata.requires("tinyforge") or []
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = project["optional-dependencies"].items()
        declared = project["dependencies"] + [
            f'{name}; extra == "{extra}"' for extra, names in extras for name in names
        ]
    return [
        (name, spec, extra or "base") for name, spec, extra in (_REQUIREMENT.match(text).groups() for text in declared)
    ]


def satisfies(version: str, spec: str) -> bool:
    """Whether a version meets a range of '>=' clauses, by its leading numbers: '2.6.0+cpu' meets '>=2.6'."""
    floors = re.findall(r">=\s*([0-9.]+)", spec)
    return all(_numbers(version) >= _numbers(floor) for floor in floors)


def memory_limit_mib(memory_max: str) -> int | None:
    """A cgroup's memory.max in MiB; None without a limit ('max', or cgroup v1's huge number)."""
    limit = int(memory_max) if memory_max.isdigit() else 0
    return limit // 2**20 if 0 < limit < 2**60 else None


def gpus() -> list[str]:
    """NVIDIA GPUs by name and memory, from nvidia-smi; empty when there is none."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _dependency(name: str, spec: str, extra: str) -> dict[str, Any]:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    ok = version is not None and satisfies(version, spec)
    wanted = "tinyforge" if extra == "base" else f"tinyforge[{extra}]"
    advice = None if ok else f'pip install "{wanted}"'
    return {"name": name, "extra": extra, "requires": spec, "version": version, "ok": ok, "advice": advice}


def _torch() -> dict[str, Any]:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": devices,
        "threads": torch.get_num_threads(),
    }


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.match(r"[0-9.]*", version).group().split(".") if part]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _first_text(paths: Iterable[str]) -> str:
    return next((Path(path).read_text().strip() for path in paths if Path(path).is_file()), "")


def as_text(report: dict[str, Any]) -> str:
    """A report of ``examine`` for a terminal."""
    machine = report["machine"]
    limits = [f"{report['cpu_limit']:g} cores"] if report["cpu_limit"] else []
    limits += [f"{report['memory_limit_mib']} MiB"] if report["memory_limit_mib"] else []
    rows = [
        [d["name"], d["extra"], d["requires"], d["version"] or "missing", "" if d["ok"] else d["advice"]]
        for d in report["dependencies"]
    ]
    lines = [
        f"tinyforge {report['tinyforge']}, Python {report['python']} ({report['executable']})",
        f"{machine['cpu']}, {machine['architecture']}, {machine['cores']} cores, {machine['memory_mib']} MiB",
        f"limits of this container: {', '.join(limits) or 'none'}",
        f"GPUs: {'; '.join(report['gpus']) or 'none found by nvidia-smi'}",
        *(f"torch {key}: {value}" for key, value in report.get("torch", {}).items()),
        "",
        table(["package", "for", "needs", "version", "to install"], rows),
    ]
    return "\n".join(lines)
