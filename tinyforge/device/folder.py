"""The folder of a bundle as a stranger's: safe names, regular files only, strict JSON, hashes.

Nothing here knows what a bundle means. Everything refused raises BundleFault with one line: which file, and why.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 32
MAX_WHOLE = 2**63
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "an object", bool: "a truth"}


class BundleFault(ValueError):
    """A folder that is not a usable bundle; the message names the file or key and the reason."""


def check_name(name: str) -> None:
    """Raise BundleFault unless ``name`` is a plain relative path that means the same on every system."""
    parts = name.split("/")
    reasons = (
        (not name, "is empty"),
        (any(ord(sign) < 32 or ord(sign) == 127 for sign in name), "holds a control character"),
        (name.startswith("/"), "is absolute and leaves the bundle"),
        ("\\" in name or ":" in name, "is a Windows path and may leave the bundle"),
        (".." in parts, "leaves the bundle"),
        ("" in parts or "." in parts, "is not in its plain form"),
        (any(part[-1:] in (" ", ".") or part.split(".")[0].lower() in RESERVED for part in parts), "is not portable"),
    )
    for wrong, reason in reasons:
        if wrong:
            raise BundleFault(f"path {name[:80]!r} {reason}")


def check_distinct(names: Iterable[str]) -> None:
    """Raise BundleFault when two names are one file where case, or how accents are written, does not count."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise BundleFault(f"paths {other!r} and {name!r} are the same file on some systems")


def locate(root: Path, name: str) -> Path:
    """The regular file ``name`` of the bundle. Raises BundleFault when it is missing, a link, or outside the folder."""
    check_name(name)
    path = root / name
    try:
        home, real = root.resolve(), path.resolve()
        if not real.is_relative_to(home):
            raise BundleFault(f"path {name!r} leaves the bundle through a symbolic link")
        if real != home / name:
            raise BundleFault(f"path {name!r} is a symbolic link")
        if not path.exists():
            raise BundleFault(f"{name}: missing")
        if not path.is_file():
            raise BundleFault(f"{name}: is not a regular file")
    except (OSError, UnicodeError, RuntimeError) as fault:  # too long, not encodable, a loop of links
        why = getattr(fault, "strerror", None) or type(fault).__name__
        raise BundleFault(f"path {name[:80]!r} cannot be used: {why}") from fault
    return path


def read_bytes(root: Path, name: str, limit: int = MAX_JSON_BYTES) -> bytes:
    path = locate(root, name)
    try:
        if path.stat().st_size > limit:
            raise BundleFault(f"{name}: larger than {limit} bytes")
        return path.read_bytes()
    except OSError as fault:
        raise BundleFault(f"{name}: cannot be read ({fault.strerror})") from fault


def read_json(root: Path, name: str) -> dict[str, Any]:
    """A JSON object of the bundle."""
    return parse_json(read_bytes(root, name), name)


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object in UTF-8, without duplicate keys, NaN, infinity or what else cannot be reckoned with.

    Whole numbers are below 2**63, so that each has a nearest float. Raises BundleFault.
    """
    how = {"parse_constant": _no_constant, "parse_float": _finite, "parse_int": _whole}
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, **how)
        _check_depth(value)
    except (ValueError, RecursionError) as fault:
        raise BundleFault(f"{name}: not valid JSON ({fault})") from fault
    if not isinstance(value, dict):
        raise BundleFault(f"{name}: must be an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return result


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _whole(text: str) -> int:
    value = int(text) if len(text) <= 20 else MAX_WHOLE
    if abs(value) >= MAX_WHOLE:
        raise ValueError(f"{text[:40]} is too large a number")
    return value


def _check_depth(value: Any) -> None:
    """What reads and writes JSON again may recurse, so not as deep as the parser itself can go."""
    layer = [value]
    for _ in range(MAX_JSON_DEPTH):
        holders = [one.values() if isinstance(one, dict) else one for one in layer if isinstance(one, (dict, list))]
        layer = [inner for holder in holders for inner in holder]
    if layer:
        raise ValueError(f"nested more than {MAX_JSON_DEPTH} deep")


def only_keys(record: dict[str, Any], known: Iterable[str], where: str) -> None:
    """Raise BundleFault naming a key that is not ``known``."""
    unknown = sorted(set(record) - set(known))
    if unknown:
        raise BundleFault(f"{where}: unknown key {unknown[0]!r}")


def need(record: Any, key: str, kind: type, where: str) -> Any:
    """``record[key]``, which must be of ``kind`` (float takes whole numbers too; no number takes a bool)."""
    if not isinstance(record, dict):
        raise BundleFault(f"{where}: must be an object")
    if key not in record:
        raise BundleFault(f"{where}: {key!r} is missing")
    value = record[key]
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise BundleFault(f"{where}: {key!r} must be {TYPE_NAMES[kind]}")
    return value


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def entries(root: Path) -> Iterator[tuple[str, Path]]:
    """Everything in the folder that is not a plain directory, sorted: (name, path); links are not followed.

    However deep: folders are kept in a list, not in calls.
    """
    waiting = [("", root)]
    while waiting:
        above, path = waiting.pop()
        if above and (path.is_symlink() or not path.is_dir()):
            yield above, path
            continue
        inner = [(f"{above}/{one.name}" if above else one.name, one) for one in path.iterdir()]
        waiting += sorted(inner, reverse=True)
