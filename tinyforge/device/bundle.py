"""The bundle: the folder that travels to the device. Its format, version 2, and its strict reader.

::

    <name>-<target>/
      bundle.json          the record below, sealed (``seal``)
      model/               <variant>.onnx, or <variant>.xml with <variant>.bin
      tinyforge_device/    this package
      selftest/            golden.json, golden.npz and the encoded images (``selftest.write_golden`` writes them)
      predictions/         <method>.json: raw predictions, one file per score
      latency/             <variant>.json: a report of ``bench.bench_arms`` with its raw latencies, and the machine
      README.md            its certificate and tables as ``card`` writes them
      recipe.lock.toml  requirements.txt  report.html

bundle.json, all keys required but for the optional ones, no others allowed, also inside of "model"::

    {"schema_version": 2,
     "name": "digits", "target": "raspi4",
     "classes": ["0", "1", ...],                      unique, not empty; their order is the order of the logits
     "input": InputSpec.to_json(),
     "threads": 4,                                    inference threads of the shipped configuration
     "model": {"chosen": "onnx-int8",
               "variants": {"onnx-int8": {"runtime": "onnxruntime" | "openvino",
                                          "precision": "fp32" | "fp16" | "int8",
                                          "files": [{"path", "sha256", "bytes"}, ...],      first: opened
                                          "providers": ["GPU", "CPU"],           optional, most wanted first
                                          "exact_int8": true}, ...},             optional, see runtime.open_session
               "candidates": 12},                optional: models that the test images chose the shipped one among
     "scores", "parity", "latency", "certificate":    what follows from the raw data: ``claims`` says how
     "provenance": {...},                             any object: lineage, versions, seeds; no times of day
     "licences": [{"name": "...", "licence": "...", ...}, ...],       both text; other keys are free
     "files": {"<path>": "<sha256>", ...},            every file but bundle.json itself: ``seal.hash_files(root)``
     "seal": "<sha256>"}                              of the record without its seal: ``seal.seal_of(record)``

predictions/<method>.json::

    {"names": ["7/001.png", ...], "labels": [7, ...], "predicted": [7, ...]}       equally long; class indices

Paths are relative to the folder, with ``/``; none may leave it, and nothing in the folder may be a symbolic link.

Model metadata: ONNX ``metadata_props`` and OpenVINO ``rt_info/tinyforge`` hold ``name``, ``classes`` (JSON list) and
``input`` (JSON of InputSpec); ``verify`` compares them with bundle.json. OpenVINO's ``rt_info/model_info`` besides
holds the Model API's own keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .folder import (
    BundleFault,
    check_distinct,
    check_name,
    file_sha256,
    locate,
    need,
    only_keys,
    parse_json,
    read_bytes,
    read_json,
)
from .seal import RECORD, bundle_files, digest_of, file_faults, hash_files, seal_fault
from .spec import InputSpec

__all__ = ["Bundle", "BundleFault", "bundle_files", "hash_files", "load_bundle", "locate", "need", "read_json"]

SCHEMA_VERSION = 2
RUNTIMES = ("onnxruntime", "openvino")
PRECISIONS = ("fp32", "fp16", "int8")
PERCENTILES = ("p50_ms", "p90_ms", "p99_ms")
KEYS = {
    "schema_version": int,
    "name": str,
    "target": str,
    "classes": list,
    "input": dict,
    "threads": int,
    "model": dict,
    "scores": dict,
    "parity": dict,
    "latency": dict,
    "certificate": dict,
    "provenance": dict,
    "licences": list,
    "files": dict,
    "seal": str,
}
MODEL_KEYS = ("chosen", "variants", "candidates")
PLACES = (  # what may lie in the folder: files, and folders of files
    RECORD, "README.md", "recipe.lock.toml", "requirements.txt", "report.html",
    "model/", "tinyforge_device/", "selftest/", "predictions/", "latency/",
)  # fmt: skip
VARIANT_KEYS = ("runtime", "precision", "files", "providers", "exact_int8")
FILE_KEYS = ("path", "sha256", "bytes")


@dataclass(frozen=True)
class FileRecord:
    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Variant:
    """One model of the bundle. The first of ``files`` is opened, the others belong to it.

    providers: the runtime's providers or devices that may run it, most wanted first; empty: the processor.
    exact_int8: its int8 sums must not saturate, whatever the processor.
    """

    name: str
    runtime: str
    precision: str
    files: tuple[FileRecord, ...]
    providers: tuple[str, ...] = ()
    exact_int8: bool = False

    @property
    def model_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Bundle:
    """A validated bundle.json. record: the whole of it as read. digest: sha256 of bundle.json, which covers every file.

    unsealed: why the record is not as it was sealed, '' when it is.
    """

    root: Path
    name: str
    target: str
    classes: tuple[str, ...]
    spec: InputSpec
    threads: int
    chosen: str
    variants: dict[str, Variant]
    record: dict[str, Any]
    digest: str
    unsealed: str = ""

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


def load_bundle(path: str | Path, *, sealed: bool = True, check_hashes: bool = False) -> Bundle:
    """Read and validate a bundle: schema, types, paths inside the folder, files present, seal.

    ``sealed=False`` leaves a broken seal to the caller, as ``unsealed``; ``check_hashes`` also compares the content of
    every file. Raises BundleFault for the first fault found, with ``sealed`` also where what is shown is malformed.
    """
    root = Path(path)
    bundle = _parse(root, *_read_record(root))
    listed = bundle.record["files"]
    check_distinct(listed)
    for name in listed:
        locate(root, name)
        if name not in PLACES and not name.startswith(tuple(place for place in PLACES if place.endswith("/"))):
            raise BundleFault(f"{name}: has no place in a bundle")
    for file in (file for variant in bundle.variants.values() for file in variant.files):
        if file.path not in listed:
            raise BundleFault(f"{file.path}: named in 'model', but not in 'files'")
        if listed[file.path] != file.sha256:
            raise BundleFault(f"{file.path}: 'model' and 'files' disagree on its sha256")
    if sealed and bundle.unsealed:
        raise BundleFault(f"{bundle.unsealed}; `verify` says what does not fit")
    if sealed:
        check_told(bundle.record)
    for _, fault in hash_faults(bundle) if check_hashes else ():
        raise BundleFault(fault)
    return bundle


def _read_record(root: Path) -> tuple[dict[str, Any], bytes]:
    """bundle.json of the known schema version, and its bytes."""
    if not root.is_dir():
        raise BundleFault(f"{root} is not a folder; name the folder of a bundle, which holds {RECORD}")
    if not (root / RECORD).exists():
        raise BundleFault(f"{RECORD}: missing in {root}; is that a bundle, whole? Copy it again or build it")
    data = read_bytes(root, RECORD)
    record = parse_json(data, RECORD)
    version = record.get("schema_version")
    if version == 1 and not isinstance(version, bool):
        raise BundleFault("bundle.json: schema version 1, of an older TinyForge; build it again with this version")
    if version != SCHEMA_VERSION or isinstance(version, (bool, float)):
        raise BundleFault(f"bundle.json: schema version {version!r}, this program reads {SCHEMA_VERSION}")
    return record, data


def _parse(root: Path, record: dict[str, Any], data: bytes) -> Bundle:
    """The record checked, but for what needs other files. The seal is only noted."""
    for key, kind in KEYS.items():
        need(record, key, kind, "bundle.json")
    only_keys(record, KEYS, "bundle.json")
    only_keys(record["model"], MODEL_KEYS, "bundle.json: 'model'")
    for index, one in enumerate(record["licences"]):
        for key in ("name", "licence"):
            need(one, key, str, f"bundle.json: licences[{index}]")
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
    if "candidates" in record["model"]:
        need(record["model"], "candidates", int, "bundle.json: 'model'")
    if record["model"].get("candidates", 1) < 1:
        raise BundleFault("bundle.json: 'candidates' must be at least 1")
    bundle = Bundle(
        root,
        record["name"],
        record["target"],
        tuple(classes),
        spec,
        record["threads"],
        chosen,
        {name: _parse_variant(name, value) for name, value in found.items()},
        record,
        digest_of(data),
        seal_fault(record, data) or "",
    )
    bundle.variant()
    return bundle


def check_told(record: dict[str, Any]) -> None:
    """Raise BundleFault where what is shown of a bundle is not of its form; `verify` looks at every number."""
    for name, one in record["scores"].items():
        where = f"bundle.json: scores of {name!r}"
        need(one, "n", int, where)
        for key in ("accuracy", "low", "high"):
            need(one, key, float, where)
    for name, one in record["latency"].items():
        where = f"bundle.json: latency of {name!r}"
        for key in PERCENTILES:
            if not isinstance(one, dict) or one.get(key) is not None:
                need(one, key, float, where)
    need(record["certificate"], "statement", str, "bundle.json: 'certificate'")


def _parse_variant(name: str, record: Any) -> Variant:
    where = f"bundle.json: variant {name!r}"
    runtime = need(record, "runtime", str, where)
    precision = need(record, "precision", str, where)
    only_keys(record, VARIANT_KEYS, where)
    if runtime not in RUNTIMES:
        raise BundleFault(f"{where}: unknown runtime {runtime!r}; known: {', '.join(RUNTIMES)}")
    if precision not in PRECISIONS:
        raise BundleFault(f"{where}: unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    files = tuple(_parse_file(value, where) for value in need(record, "files", list, where))
    paths = [file.path for file in files]
    if not files or len(set(paths)) < len(paths):
        raise BundleFault(f"{where}: 'files' must name each file once, at least one")
    providers = record.get("providers", [])
    if not isinstance(providers, list) or not all(isinstance(one, str) and one for one in providers):
        raise BundleFault(f"{where}: 'providers' must be a list of names")
    exact_int8 = record.get("exact_int8", False)
    if not isinstance(exact_int8, bool):
        raise BundleFault(f"{where}: 'exact_int8' must be true or false")
    return Variant(name, runtime, precision, files, tuple(providers), exact_int8)


def _parse_file(record: Any, where: str) -> FileRecord:
    path = need(record, "path", str, where)
    check_name(path)
    only_keys(record, FILE_KEYS, f"{where}, {path}")
    size = need(record, "bytes", int, f"{where}, {path}")
    sha256 = _check_sha256(need(record, "sha256", str, f"{where}, {path}"), f"{where}, {path}")
    if size < 1:
        raise BundleFault(f"{where}, {path}: 'bytes' must be at least 1")
    return FileRecord(path, sha256, size)


def _check_sha256(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise BundleFault(f"{where}: not a sha256")
    return value


def file_record(root: Path, name: str) -> dict[str, Any]:
    """The entry of a model file in bundle.json."""
    path = root / name
    return {"path": name, "sha256": file_sha256(path), "bytes": path.stat().st_size}


def hash_faults(bundle: Bundle) -> list[tuple[str, str]]:
    """(file, message) of a broken seal, and of every file that changed, is missing, or is not listed."""
    seal = [(RECORD, bundle.unsealed)] if bundle.unsealed else []
    return seal + file_faults(bundle.root, bundle.record["files"])
