"""What a board is, asked with a shell script that needs nothing there, and whether a bundle fits it."""

import re
import shlex
from dataclasses import asdict, dataclass
from typing import Any

OLDEST_PYTHON = (3, 9)
SCRIPT = """
tell() { printf '%s=%s\\n' "$1" "$2"; }
case $folder in '~/'*) folder=$HOME/${folder#'~/'};; esac
tell architecture "$(uname -m 2>/dev/null)"
tell system "$(uname -s 2>/dev/null)"
tell model "$(tr -d '\\0' </proc/device-tree/model 2>/dev/null)"
tell python "$("$python" -c 'import sys; print(*sys.version_info[:3], sep=".")' 2>/dev/null)"
tell venv "$("$python" -c 'import ensurepip, venv; print("yes")' 2>/dev/null)"
while [ ! -d "$folder" ] && [ "$folder" != / ] && [ "$folder" != . ]; do folder=$(dirname "$folder"); done
tell disk "$(df -Pk "$folder" 2>/dev/null | tail -n 1)"
tell writable "$([ -w "$folder" ] && echo yes)"
tell memory "$(grep MemTotal /proc/meminfo 2>/dev/null)"
tell available "$(grep MemAvailable /proc/meminfo 2>/dev/null)"
tell end here
"""
SAME = {"arm64": "aarch64", "amd64": "x86_64"}


@dataclass(frozen=True)
class Facts:
    """None: the board does not tell. python: (major, minor, patch). venv: whether it can make environments."""

    architecture: str
    system: str
    model: str
    python: tuple[int, ...] | None
    venv: bool
    disk_mib: int | None
    writable: bool
    memory_mib: int | None
    available_mib: int | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "python": ".".join(map(str, self.python)) if self.python else None}


@dataclass(frozen=True)
class Needs:
    """What a bundle asks of a board. memory_mib: that the measuring process takes. own_python: no environment made."""

    architecture: str
    disk_mib: int
    memory_mib: int
    board_memory_mib: int | None
    title: str
    own_python: bool


def probe(folder: str, python: str) -> str:
    """The script, for a working folder and the name of a Python."""
    return f"folder={shlex.quote(folder)}\npython={shlex.quote(python)}\n{SCRIPT}"


def parse_facts(text: str) -> Facts | None:
    """Of the script's output, which a login script may have written before; None when it did not run to its end."""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if found.get("end") != "here":
        return None
    version = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", found.get("python", ""))
    disk = re.search(r"\s\d+\s+-?\d+\s+(\d+)\s+(?:\d+%|-)\s+/", found.get("disk", ""))
    architecture = found.get("architecture", "")
    return Facts(
        architecture=SAME.get(architecture, architecture),
        system=found.get("system", ""),
        model=found.get("model", ""),
        python=tuple(map(int, version.groups())) if version else None,
        venv=found.get("venv") == "yes",
        disk_mib=int(disk.group(1)) // 1024 if disk else None,
        writable=found.get("writable") == "yes",
        memory_mib=_mib(found.get("memory", "")),
        available_mib=_mib(found.get("available", "")),
    )


def _mib(line: str) -> int | None:
    found = re.search(r"(\d+)\s*kB", line)
    return int(found.group(1)) // 1024 if found else None


def faults(facts: Facts, needs: Needs, folder: str, python: str) -> list[str]:
    """Why the bundle cannot be measured there; all reasons at once."""
    told = ".".join(map(str, facts.python or ()))
    checks = (
        (facts.system == "Linux", f"it runs {facts.system or 'an unknown system'}, not Linux"),
        (facts.python is not None, f"it has no {python}: install Python 3.9 or later, or name one with --board-python"),
        (facts.python is None or facts.python >= OLDEST_PYTHON, f"its Python is {told}, at least 3.9 is needed"),
        (
            facts.python is None or facts.venv or needs.own_python,
            f"its {python} cannot make environments: sudo apt install python3-venv",
        ),
        (facts.writable, f"{folder} cannot be written there"),
        (
            facts.disk_mib is None or facts.disk_mib >= needs.disk_mib,
            f"{facts.disk_mib} MiB are free at {folder}, {needs.disk_mib} MiB are needed",
        ),
        (
            facts.available_mib is None or facts.available_mib >= needs.memory_mib,
            f"{facts.available_mib} MiB of memory are free, the model takes about {needs.memory_mib} MiB",
        ),
        (
            needs.architecture in ("any", facts.architecture),
            f"it is {facts.architecture}, the bundle is for {needs.title} ({needs.architecture}); "
            "--any-board measures it all the same",
        ),
    )
    return [text for good, text in checks if not good]


def warnings(facts: Facts, needs: Needs) -> list[str]:
    """What is not as the target says, and yet no reason not to measure. The firmware keeps some memory."""
    if not needs.board_memory_mib or not facts.memory_mib or facts.memory_mib >= 0.8 * needs.board_memory_mib:
        return []
    return [f"it has {facts.memory_mib} MiB of memory, {needs.title} is taken to have {needs.board_memory_mib} MiB"]
