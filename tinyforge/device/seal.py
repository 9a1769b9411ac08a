"""The seal: bundle.json lists the sha256 of every other file, and carries the sha256 of itself without the seal.

So no byte of the bundle changes unnoticed. Who changes a file and writes hashes and seal anew is found only where a
number no longer follows from the raw data; where everything is forged alike, only by comparing the digest of
bundle.json (``sha256sum bundle.json``) with one that came by another way. A seal is no signature.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .folder import BundleFault, entries, file_sha256, locate

RECORD = "bundle.json"
BYTE_CODE = "tinyforge_device/__pycache__/"


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """``record`` with its seal."""
    return {**record, "seal": seal_of(record)}


def seal_of(record: dict[str, Any]) -> str:
    """sha256 of the record without its seal, as JSON with sorted keys and no spaces, in ASCII."""
    body = {key: value for key, value in record.items() if key != "seal"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def record_bytes(record: dict[str, Any]) -> bytes:
    """bundle.json: the one way in which a record is written."""
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False, indent=1)
    return (text + "\n").encode("utf-8")


def digest_of(data: bytes) -> str:
    """What ``sha256sum bundle.json`` prints."""
    return hashlib.sha256(data).hexdigest()


def seal_fault(record: dict[str, Any], data: bytes) -> str | None:
    """Why ``data``, read as ``record``, is not bundle.json as it was sealed."""
    if record.get("seal") != seal_of(record):
        return "bundle.json: edited after it was sealed, its content does not give its seal"
    try:
        same = record_bytes(record) == data
    except UnicodeError:
        same = False
    return None if same else "bundle.json: edited after it was sealed, it is not written as TinyForge writes it"


def bundle_files(root: Path) -> list[str]:
    """Sorted names of every file that ``files`` of bundle.json must list.

    All but bundle.json, the byte code that Python leaves beside the device package, and what lies under a hidden
    top-level name (a virtual environment). A link counts as a file, so that it is found.
    """
    return [name for name, _ in entries(root) if name != RECORD and not _left_behind(name)]


def _left_behind(name: str) -> bool:
    is_byte_code = name.startswith(BYTE_CODE) and name.endswith(".pyc") and name.count("/") == 2
    return name.startswith(".") or is_byte_code


def hash_files(root: Path) -> dict[str, str]:
    """The value of ``files`` in bundle.json. Raises BundleFault on links and what else is no regular file."""
    return {name: file_sha256(locate(root, name)) for name in bundle_files(root)}


def file_faults(root: Path, listed: dict[str, str]) -> list[tuple[str, str]]:
    """(name, message) of every file that changed, is missing, or is not listed."""
    faults = []
    for name, sha256 in listed.items():
        try:
            if file_sha256(locate(root, name)) != sha256:
                faults.append((name, f"{name}: changed, its sha256 differs from bundle.json"))
        except BundleFault as fault:
            faults.append((name, str(fault)))
    added = [name for name in bundle_files(root) if name not in listed]
    return faults + [(name, f"{name}: not listed in bundle.json") for name in added]


def uncovered(root: Path) -> list[str]:
    """A note about each thing in the folder that the seal leaves out."""
    hidden = sorted(path.name for path in root.iterdir() if path.name.startswith("."))
    notes = [f"{name}: not part of the bundle, not checked" for name in hidden]
    if (root / BYTE_CODE).is_dir():
        notes.append(f"{BYTE_CODE} holds Python's byte code, which is not checked; it may be deleted")
    return notes
