"""Where a bundle goes, and what may be replaced there. Imports no torch: it is asked before anything is made."""

from pathlib import Path

from tinyforge.device.bundle import RECORD
from tinyforge.device.folder import BundleFault, parse_json
from tinyforge.errors import BundleError


def check_place(folder: Path, name: str, target: str, *, overwrite: bool = False) -> None:
    """Raise BundleError unless nothing is at ``folder``, or a bundle of this name and target, or ``overwrite``."""
    if overwrite or not (folder.exists() or folder.is_symlink()):
        return
    try:
        record = parse_json((folder / RECORD).read_bytes(), RECORD)
    except (OSError, BundleFault) as fault:
        raise BundleError(f"{folder} is in the way and is not a bundle ({fault}); --overwrite replaces it") from fault
    if (record.get("name"), record.get("target")) != (name, target):
        raise BundleError(f"{folder} is the bundle of another recipe, {record.get('name')!r}; --overwrite replaces it")
