"""Folders that the user names for results."""

import os
from pathlib import Path

from tinyforge.errors import UsageError


def check_out(out: Path) -> None:
    """Raise UsageError unless ``out`` is a folder that can be written, or one that can be made. Makes nothing."""
    try:
        nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    except OSError as fault:
        raise UsageError(f"{str(out)[:80]}: cannot be a folder ({fault.strerror}); choose another --out") from fault
    if not nearest.is_dir():
        raise UsageError(f"{nearest} is not a folder; choose another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{nearest} cannot be written; choose another --out")
