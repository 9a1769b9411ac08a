"""What a cached pool was read from, so that other data are not taken for it; and what a training is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from tinyforge.errors import MissingError

ORIGIN = "origin.json"


def origin_of(files: Iterable[tuple[str, Path]]) -> dict[str, object]:
    """Of (class or kind, file): how many, and the sha256 of their kinds, names and sizes; not of where they are."""
    listed = sorted((kind, file.name, file.stat().st_size) for kind, file in files)
    return {"files": len(listed), "sha256": hashlib.sha256(json.dumps(listed).encode()).hexdigest()}


def keep_origin(pool: Path, origin: dict[str, object]) -> None:
    pool.mkdir(parents=True, exist_ok=True)
    (pool / ORIGIN).write_text(json.dumps(origin), encoding="utf-8")


def require_origin(pool: Path, origin: dict[str, object]) -> None:
    """Raise ValueError when the pool is not known to be made of these files."""
    file = pool / ORIGIN
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != origin:
        raise ValueError(
            f"{pool} was made from other files than those given now ({origin['files']} files); "
            "choose another --out, or leave the option away to go on with those"
        )


def check_device(name: str) -> None:
    """Raise ValueError for what is no device of torch, MissingError for one that this machine has not."""
    try:
        kind = torch.device(name).type
    except RuntimeError as fault:
        raise ValueError(f"--device {name}: is no device; cpu or cuda") from fault
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: only cpu and cuda can be trained on")
    if kind == "cuda" and not torch.cuda.is_available():
        raise MissingError(f"--device {name}: this machine has no CUDA device; give --device cpu")
