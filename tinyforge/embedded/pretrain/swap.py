"""Folders that are replaced as a whole: readers see the old or the new one, and a kill at any moment loses neither.

<folder>.partial is being written; when it is complete the old folder becomes <folder>.old, the new one takes its
place, and the old one is removed. So where only the folder itself is missing, its .partial is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def beside(folder: Path) -> tuple[Path, Path]:
    """Where a folder is written before it takes its place, and where the one before it goes meanwhile."""
    return folder.with_name(f"{folder.name}.partial"), folder.with_name(f"{folder.name}.old")


def mend(folder: Path) -> None:
    """Finish a swap that was stopped between its two renames."""
    partial, old = beside(folder)
    if old.exists() and not folder.exists():
        (partial if partial.exists() else old).rename(folder)


def swap(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place, then put it there."""
    mend(folder)
    partial, old = beside(folder)
    for stale in (partial, old):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
