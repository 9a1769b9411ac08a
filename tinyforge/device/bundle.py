"""The bundle: the folder that travels to the device. Its format, version 1, and its strict reader.

::

    <name>-<target>/
      bundle.json          the record below
      model/               <variant>.onnx, or <variant>.xml with <variant>.bin
      tinyforge_device/    this package
      selftest/            golden.json, golden.npz and the encoded images (``selftest.write_golden`` writes them)
      predictions/         <method>.json: raw predictions, one file per score
      latency/             <variant>.json: raw latencies in µs, {"decode": [...], "preprocess": [...], "infer": [...]}
      recipe.lock.toml  requirements.txt  README.md  report.html

bundle.json, all keys required, no others allowed::

    {"schema_version": 1,
     "name": "digits", "target": "raspi4",
     "classes": ["0", "1", ...],                      unique, not empty; their order is the order of the logits
     "input": InputSpec.to_json(),
     "threads": 4,                                    inference threads of the shipped configuration
     "model": {"chosen": "onnx-int8",
               "variants": {"onnx-int8": {"runtime": "onnxruntime" | "openvino",
                                          "precision": "fp32" | "fp16" | "int8",
                                          "files": [{"path", "sha256", "bytes"}, ...]}, ...}},   first: opened
     "scores": {"<method>": {"n", "correct", "accuracy", "low", "high",    exactly ``stats.score(correct, n)``
                             "predictions": "predictions/<method>.json"}, ...},
     "latency": {"<variant>": {**``bench.summary(report)``, "raw": "latency/<variant>.json"}, ...},   may be empty
     "provenance": {...},                             free: lineage, versions, seeds; no times of day
     "licences": [{"name": "...", "licence": "...", ...}, ...],
     "files": {"<path>": "<sha256>", ...}}            every file except ``UNHASHED``: exactly ``hash_files(root)``

predictions/<method>.json::

    {"names": ["7/001.png", ...], "labels": [7, ...], "predicted": [7, ...]}       equally long; class indices

Paths are relative to the folder, with ``/``; none may leave it, not through a symbolic link either.

Model metadata: ONNX ``metadata_props`` and OpenVINO ``rt_info/tinyforge`` hold ``classes`` (JSON list) and ``input``
(JSON of InputSpec); ``verify`` compares them with bundle.json. OpenVINO's ``rt_info/model_info`` besides holds the
Model API's own keys.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .spec import InputSpec

SCHEMA_VERSION = 1
RUNTIMES = ("onnxruntime", "openvino")
PRECISIONS = ("fp32", "fp16", "int8")
UNHASHED = ("bundle.json", "report.html", "README.md")
MAX_RECORD_BYTES = 64 * 2**20
KEYS = {
    "schema_version": int,
    "name": str,
    "target": str,
    "classes": list,
    "input": dict,
    "threads": int,
    "model": dict,
    "scores": dict,
    "latency": dict,
    "provenance": dict,
    "licences": list,
    "files": dict,
}
TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "an object"}


class BundleFault(ValueError):
    """A folder that is not a usable bundle; the message names the file or key and the reason."""


@dataclass(frozen=True)
class FileRecord:
    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Variant:
    """One model of the bundle. The first of ``files`` is opened, the others belong to it."""

    name: str
    runtime: str
    precision: str
    files: tuple[FileRecord, ...]

    @property
    def model_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Bundle:
    """A validated bundle.json. ``record`` is the whole of it as read."""

    root: Path
    name: str
    target: str
    classes: tuple[str, ...]
    spec: InputSpec
    threads: int
    chosen: str
    variants: dict[str, Variant]
    record: dict[str, Any]

    def variant(self, name: str | None = None) -> Variant:
        """The named variant, by default the chosen one. Raises BundleFault naming those there are."""
        name = name or self.chosen
        if name not in self.variants:
            raise BundleFault(f"no variant {name!r} in this bundle; it has {', '.join(self.variants)}")
        return self.variants[name]

    def model_path(self, variant: Variant) -> Path:
        """The file to open. Raises BundleFault when a file of the model has changed: runtimes may crash on such."""
        for file in variant.files:
            if file_sha256(locate(self.root, file.path)) != file.sha256:
                raise BundleFault(f"{file.path}: changed, its sha256 differs from bundle.json")
        return self.root / variant.files[0].path


def load_bundle(path: str | Path, *, check_hashes: bool = False) -> Bundle:
    """Read and validate a bundle: schema, types, paths inside the folder, files present with the right size.

    ``check_hashes`` also compares the content of every file. Raises BundleFault for the first fault found.
    """
    root = Path(path)
    record = read_record(root)
    bundle = _parse(root, record)
    for variant in bundle.variants.values():
        for file in variant.files:
            _check_size(root, file)
            if record["files"].get(file.path) != file.sha256:
                raise BundleFault(f"{file.path}: 'model' and 'files' disagree on its sha256")
    for name in record["files"]:
        locate(root, name)
    for fault in hash_faults(bundle) if check_hashes else ():
        raise BundleFault(fault)
    return bundle


def read_record(root: Path) -> dict[str, Any]:
    """bundle.json as a dict of the known schema version."""
    if not root.is_dir():
        raise BundleFault(f"{root} is not a folder")
    record = read_json(root, "bundle.json")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise BundleFault(f"bundle.json: schema version {version!r}, this program reads {SCHEMA_VERSION}")
    return record


def read_json(root: Path, name: str) -> dict[str, Any]:
    """A JSON object of the bundle, without duplicate keys or NaN. Raises BundleFault."""
    path = locate(root, name)
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise BundleFault(f"{name}: larger than {MAX_RECORD_BYTES} bytes")
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError, OSError) as fault:
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


def locate(root: Path, name: str) -> Path:
    """The file ``name`` of the bundle. Raises BundleFault when it is missing or not inside the folder."""
    pure = PurePosixPath(name)
    if not name or "\\" in name or ":" in name or "\0" in name or pure.is_absolute() or ".." in pure.parts:
        raise BundleFault(f"path {name!r} leaves the bundle")
    if str(pure) != name:
        raise BundleFault(f"path {name!r} is not in its plain form {str(pure)!r}")
    path = root / name
    try:
        inside, present = path.resolve().is_relative_to(root.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as fault:  # too long, not encodable, a loop of links
        raise BundleFault(f"path {name[:80]!r} cannot be used: {type(fault).__name__}") from fault
    if not inside:
        raise BundleFault(f"path {name!r} leaves the bundle through a symbolic link")
    if not present:
        raise BundleFault(f"{name}: missing")
    return path


def _parse(root: Path, record: dict[str, Any]) -> Bundle:
    for key, kind in KEYS.items():
        need(record, key, kind, "bundle.json")
    unknown = sorted(set(record) - set(KEYS))
    if unknown:
        raise BundleFault(f"bundle.json: unknown key {unknown[0]!r}")
    classes = record["classes"]
    if not classes or not all(isinstance(name, str) and name for name in classes) or len(set(classes)) < len(classes):
        raise BundleFault("bundle.json: 'classes' must be unique names, at least one")
    if record["threads"] < 1:
        raise BundleFault("bundle.json: 'threads' must be at least 1")
    for name, sha256 in record["files"].items():
        _check_sha256(sha256, f"bundle.json: files[{name!r}]")
    try:
        spec = InputSpec.from_json(record["input"])
    except (ValueError, TypeError) as fault:
        raise BundleFault(f"bundle.json: 'input': {fault}") from fault
    chosen = need(record["model"], "chosen", str, "bundle.json: 'model'")
    found = need(record["model"], "variants", dict, "bundle.json: 'model'")
    variants = {name: _parse_variant(name, value) for name, value in found.items()}
    bundle = Bundle(
        root, record["name"], record["target"], tuple(classes), spec, record["threads"], chosen, variants, record
    )
    bundle.variant()
    return bundle


def _parse_variant(name: str, record: Any) -> Variant:
    where = f"bundle.json: variant {name!r}"
    runtime = need(record, "runtime", str, where)
    precision = need(record, "precision", str, where)
    if runtime not in RUNTIMES:
        raise BundleFault(f"{where}: unknown runtime {runtime!r}; known: {', '.join(RUNTIMES)}")
    if precision not in PRECISIONS:
        raise BundleFault(f"{where}: unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    files = tuple(_parse_file(value, where) for value in need(record, "files", list, where))
    paths = [file.path for file in files]
    if not files or len(set(paths)) < len(paths):
        raise BundleFault(f"{where}: 'files' must name each file once, at least one")
    return Variant(name, runtime, precision, files)


def _parse_file(record: Any, where: str) -> FileRecord:
    path = need(record, "path", str, where)
    size = need(record, "bytes", int, f"{where}, {path}")
    sha256 = _check_sha256(need(record, "sha256", str, f"{where}, {path}"), f"{where}, {path}")
    if size < 1:
        raise BundleFault(f"{where}, {path}: 'bytes' must be at least 1")
    return FileRecord(path, sha256, size)


def need(record: Any, key: str, kind: type, where: str) -> Any:
    """``record[key]``, which must be of ``kind`` (float takes whole numbers too, no number takes a bool)."""
    if not isinstance(record, dict):
        raise BundleFault(f"{where}: must be an object")
    if key not in record:
        raise BundleFault(f"{where}: {key!r} is missing")
    value = record[key]
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
        raise BundleFault(f"{where}: {key!r} must be {TYPE_NAMES[kind]}")
    return value


def _check_sha256(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise BundleFault(f"{where}: not a sha256")
    return value


def _check_size(root: Path, file: FileRecord) -> None:
    size = locate(root, file.path).stat().st_size
    if size != file.bytes:
        raise BundleFault(f"{file.path}: {size} bytes, bundle.json says {file.bytes}")


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_record(root: Path, name: str) -> dict[str, Any]:
    """The entry of a model file in bundle.json."""
    path = root / name
    return {"path": name, "sha256": file_sha256(path), "bytes": path.stat().st_size}


def bundle_files(root: Path) -> list[str]:
    """Sorted relative paths of every file that ``files`` must list.

    All but ``UNHASHED``, Python's byte code, and what lies under a hidden top-level name (a virtual environment).
    """
    names = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return sorted(
        name
        for name in names
        if name not in UNHASHED and not name.startswith(".") and "__pycache__" not in name.split("/")
    )


def hash_files(root: Path) -> dict[str, str]:
    """The value of ``files`` in bundle.json."""
    return {name: file_sha256(root / name) for name in bundle_files(root)}


def hash_faults(bundle: Bundle) -> list[str]:
    """Every file that changed, is missing, or is not listed."""
    faults, listed = [], bundle.record["files"]
    for name, sha256 in listed.items():
        try:
            if file_sha256(locate(bundle.root, name)) != sha256:
                faults.append(f"{name}: changed, its sha256 differs from bundle.json")
        except BundleFault as fault:
            faults.append(str(fault))
    faults += [f"{name}: not listed in bundle.json" for name in bundle_files(bundle.root) if name not in listed]
    return faults
