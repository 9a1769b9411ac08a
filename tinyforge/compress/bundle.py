"""Assemble the bundle (format: ``tinyforge.device.bundle``) beside its destination, verify it, swap it in at once.

The same contents give the same bytes, but for what was measured (latency) and where (``made_with`` of the golden
vectors). Every number in bundle.json that follows from raw data is worked out by ``device.claims`` from the files
already written, as ``verify`` does it again.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyforge.compress.card import model_card
from tinyforge.compress.place import check_place
from tinyforge.compress.variants import REFERENCE, Variant
from tinyforge.device import bundle as device_bundle
from tinyforge.device.claims import claims
from tinyforge.device.seal import bundle_files, digest_of, hash_files, record_bytes, sealed
from tinyforge.device.selftest import Model, write_golden
from tinyforge.device.spec import InputSpec
from tinyforge.device.verify import verify_bundle
from tinyforge.errors import BundleError, GateError
from tinyforge.store import naming

PACKAGE = "tinyforge_device"
FLOORS = {"numpy": "1.26", "Pillow": "10.3", "onnxruntime": "1.20", "openvino": "2025.0"}
METHOD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle.

    models, made: the folder of model files and what is in it; of these the chosen one and the fp32 reference are
    shipped, and those named in ``also``. golden_images: file name -> encoded image, for the self-test and for
    measuring; a few real ones.
    predictions: method -> {names, labels, predicted} on the test set; the score of each is worked out from it.
    latency: variant -> report of ``device.bench``, of shipped ones only; machine: where it was measured. providers:
    runtime -> what shall run its models; exact_int8: of its sums, see ``Target``. candidates: among how many models the
    test images chose. provenance: lineage, versions, seeds; no times of day. notes: what a user must know, for the
    model card. recipe_lock: TOML. report_html: the whole document.
    """

    name: str
    target: str
    classes: Sequence[str]
    spec: InputSpec
    threads: int
    chosen: str
    models: Path
    made: Sequence[Variant]
    golden_images: Mapping[str, bytes]
    recipe_lock: str
    report_html: str
    predictions: Mapping[str, Mapping[str, Sequence[Any]]] = field(default_factory=dict)
    latency: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    providers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    exact_int8: bool = False
    machine: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    licences: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    also: Sequence[str] = ()
    candidates: int = 1

    def shipped(self) -> list[Variant]:
        """The chosen variant, the fp32 reference, then the others. Raises ValueError when one of them was not made."""
        made = {one.name: one for one in self.made if not one.failure}
        wanted = list(dict.fromkeys((self.chosen, REFERENCE, *self.also)))
        missing = [name for name in wanted if name not in made]
        if missing:
            raise ValueError(f"cannot ship {missing[0]}: it was not made")
        return [made[name] for name in wanted]

    def runtimes(self) -> list[str]:
        """What the bundle needs: the fp32 reference may be left unused."""
        runtimes = {one.name: one.runtime for one in self.shipped()}
        return list(dict.fromkeys(runtimes[name] for name in (self.chosen, *self.also)))


def write_bundle(folder: Path, contents: Contents, *, overwrite: bool = False) -> Path:
    """Write, verify and swap in the bundle at ``folder``. Returns it.

    What is already there is replaced when ``overwrite`` is given, or when it is a bundle of the same name and target.
    Raises BundleError when it may not be replaced, GateError when the finished bundle does not verify. On any error,
    what was there before is untouched.
    """
    check_place(folder, contents.name, contents.target, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(folder) as scratch, naming(folder):
        finished = scratch / "new"
        _write(finished, contents)
        outcome = verify_bundle(finished)
        if not outcome.ok:
            faults = "; ".join(fault["message"] for fault in outcome.faults)
            raise GateError(f"the finished bundle does not pass its own verification: {faults}")
        _swap(finished, folder, scratch / "old")
    return folder


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder``, gone in the end; what a killed process left there is gone at once.

    Raises BundleError while another process has it.
    """
    scratch = folder.with_name(f".{folder.name}-being-written")
    scratch.mkdir(exist_ok=True)
    handle = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in scratch.iterdir():  # the other process may have removed it by now
                shutil.rmtree(left)
        except (BlockingIOError, FileNotFoundError) as fault:
            raise BundleError(f"{folder} is being written by another process; wait for it") from fault
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(handle)


def _write(root: Path, contents: Contents) -> None:
    """Every file: raw data first, then the card, then bundle.json, which lists the others and is sealed."""
    shipped = contents.shipped()
    (root / "model").mkdir(parents=True)
    for file in (file for variant in shipped for file in variant.files):
        shutil.copyfile(contents.models / file, root / "model" / file)
    copy_device_package(root / PACKAGE)
    models = {
        one.name: Model(
            root / "model" / one.files[0], one.runtime, one.precision, contents.threads, exact_int8=contents.exact_int8
        )
        for one in shipped
    }
    write_golden(root, contents.golden_images, contents.spec, models)
    for method, predictions in contents.predictions.items():
        _write_json(root / "predictions" / f"{_plain(method)}.json", predictions)
    for variant, report in contents.latency.items():
        _write_json(root / "latency" / f"{_plain(variant)}.json", {"machine": dict(contents.machine), **report})
    _write_text(root / "recipe.lock.toml", contents.recipe_lock)
    _write_text(root / "requirements.txt", requirements(*contents.runtimes()))
    _write_text(root / "report.html", contents.report_html)
    record = bundle_record(root, contents)
    _write_text(root / "README.md", model_card(record, contents.notes))
    (root / device_bundle.RECORD).write_bytes(record_bytes(sealed({**record, "files": hash_files(root)})))


def bundle_record(root: Path, contents: Contents) -> dict[str, Any]:
    """bundle.json of the files now at ``root``, but for ``files`` and the seal."""
    variants = {
        one.name: {
            "runtime": one.runtime,
            "precision": one.precision,
            "files": [device_bundle.file_record(root, f"model/{file}") for file in one.files],
            **({"providers": list(wanted)} if (wanted := contents.providers.get(one.runtime)) else {}),
            **({"exact_int8": True} if contents.exact_int8 and one.precision == "int8" else {}),
        }
        for one in contents.shipped()
    }
    among = {"candidates": contents.candidates} if contents.candidates > 1 else {}
    model = {"chosen": contents.chosen, "variants": variants, **among}
    return {
        "schema_version": device_bundle.SCHEMA_VERSION,
        "name": contents.name,
        "target": contents.target,
        "classes": list(contents.classes),
        "input": contents.spec.to_json(),
        "threads": contents.threads,
        "model": model,
        **claims(root, bundle_files(root), model, len(contents.classes)),
        "provenance": dict(contents.provenance),
        "licences": [dict(one) for one in contents.licences],
    }


def bundle_digest(folder: Path) -> str:
    """What ``sha256sum bundle.json`` prints: kept elsewhere, it tells this very bundle from any other."""
    return digest_of((folder / device_bundle.RECORD).read_bytes())


def requirements(*runtimes: str) -> str:
    """requirements.txt of a bundle whose models run in ``runtimes``: the lowest versions that the tests cover."""
    return "".join(f"{package}>={FLOORS[package]}\n" for package in ("numpy", "Pillow", *runtimes))


def copy_device_package(folder: Path) -> None:
    """The modules of ``tinyforge.device`` as a package of its own: it imports nothing but itself, relatively."""
    source = Path(device_bundle.__file__).parent
    folder.mkdir(parents=True)
    for path in sorted(source.glob("*.py")):
        shutil.copyfile(path, folder / path.name)


def _plain(name: str) -> str:
    """``name``, which becomes a file name. Raises ValueError when it is not plain."""
    if not METHOD.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a file: letters, digits, '.', '_' and '-' only")
    return name


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _swap(finished: Path, folder: Path, retired: Path) -> None:
    """Put ``finished`` in the place of ``folder``, which moves to ``retired``, or comes back when that fails."""
    was_there = folder.exists() or folder.is_symlink()
    if was_there:
        folder.rename(retired)
    try:
        finished.rename(folder)
    except BaseException:
        if was_there:
            retired.rename(folder)
        raise
