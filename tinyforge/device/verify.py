"""Does a bundle hold what it claims? Seal and hashes, metadata in the models, golden vectors, every number anew.

A folder that cannot be read as a bundle raises BundleFault (exit code 2): malformed, incomplete, unsafe paths, another
schema. A bundle that can be read, but does not hold what it claims, has faults in its ``Outcome`` (exit code 1).
Whoever distrusts a bundle verifies it with a TinyForge of their own: the copy inside may have been changed too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .bundle import Bundle, Variant, hash_faults, load_bundle
from .card import numbers, numbers_in
from .claims import SECTIONS, claims
from .folder import BundleFault, read_bytes
from .metadata import read_metadata
from .seal import RECORD, uncovered
from .selftest import Outcome, run_selftest

CARD = "README.md"
INT8 = {".onnx": b'"\x10DequantizeLinear', ".xml": b'type="FakeQuantize"'}  # an operator's type, as the files hold it


def verify_bundle(path: str | Path, digest: str | None = None) -> Outcome:
    """Check everything and collect every discrepancy; models are run last, and only when all else fits.

    digest: sha256 of the bundle.json that is expected. The outcome's facts tell the digest found and the certificate.
    Raises BundleFault when the folder is no bundle at all, MissingRuntime without the chosen model's runtime.
    """
    bundle = load_bundle(path, sealed=False)
    outcome = Outcome(facts={"digest": bundle.digest}, notes=uncovered(bundle.root))
    if digest is not None:
        wrong = f"bundle.json: its digest is {bundle.digest}, not the one given"
        outcome.check(digest.strip().lower() == bundle.digest, "digest", RECORD, wrong)
    changed = hash_faults(bundle)
    outcome.checks += len(bundle.record["files"]) + 1
    for where, fault in changed:
        outcome.check(False, "seal" if where == RECORD else "file", where, fault)
    for check, where, fault in _claim_faults(bundle):
        outcome.check(fault is None, check, where, f"{where} {fault}")
    for where, fault in _metadata_faults(bundle) if all(where == RECORD for where, _ in changed) else ():
        outcome.check(fault is None, "metadata", where, f"{where}: {fault}")
    if outcome.faults:
        outcome.notes.append("models and golden vectors were not run, since something else does not fit")
        return outcome
    tested = run_selftest(bundle, hashes=False)
    facts = {**outcome.facts, "certificate": bundle.record["certificate"]["statement"]}
    return Outcome(tested.faults, outcome.notes + tested.notes, outcome.checks + tested.checks, facts)


def _claim_faults(bundle: Bundle) -> Iterator[tuple[str, str, str | None]]:
    """(section, place, fault or None) of every number, worked out from the raw data and the files."""
    record = bundle.record
    for name, variant in bundle.variants.items():
        for index, file in enumerate(variant.files):
            size, where = (bundle.root / file.path).stat().st_size, f"model/variants/{name}/files/{index}/bytes"
            yield "size", where, None if file.bytes == size else _told(file.bytes, size)
    try:
        true = claims(bundle.root, record["files"], record["model"], len(bundle.classes))
    except BundleFault as fault:
        yield "raw data", RECORD, f"cannot be checked: {fault}"
        return
    for section in SECTIONS:
        for where, claimed, found in leaves(record[section], true[section], section):
            same = type(claimed) is type(found) and claimed == found
            yield section, where, None if same else _told(claimed, found)
    yield "card", CARD, _card_fault(bundle, true)


def _card_fault(bundle: Bundle, true: Mapping[str, Any]) -> str | None:
    """The first line of README.md's certificate and tables that is not as the raw data give it."""
    try:
        found = numbers_in(read_bytes(bundle.root, CARD).decode("utf-8", "replace"))
    except BundleFault as fault:
        return f"cannot be checked: {fault}"
    for line, wanted in zip_longest(found, numbers(true, bundle.chosen), fillvalue=ABSENT):
        if line != wanted:
            return f"says {_short(line)}, the raw data {_short(wanted)}"
    return None


ABSENT = "absent"


def leaves(claimed: Any, true: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """(place, claimed, true) of every value at the ends of two JSON values; ABSENT where one has none."""
    if isinstance(claimed, dict) and isinstance(true, dict):
        for key in sorted({*claimed, *true}):
            yield from leaves(claimed.get(key, ABSENT), true.get(key, ABSENT), f"{where}/{key}")
    elif isinstance(claimed, list) and isinstance(true, list) and len(claimed) == len(true):
        for index, pair in enumerate(zip(claimed, true)):
            yield from leaves(*pair, f"{where}/{index}")
    else:
        yield where, claimed, true


def _told(claimed: Any, found: Any) -> str:
    return f"is given as {_short(claimed)}, the raw data say {_short(found)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _metadata_faults(bundle: Bundle) -> Iterator[tuple[str, str | None]]:
    """What each model file says of itself."""
    spec = json.loads(json.dumps(bundle.spec.to_json()))
    expected = {"name": bundle.name, "classes": list(bundle.classes), "input": spec}
    for variant in bundle.variants.values():
        where = variant.files[0].path
        try:
            found = read_metadata(bundle.model_path(variant))
        except BundleFault as fault:
            yield where, str(fault)
            continue
        for key, value in expected.items():
            yield where, _metadata_fault(found.get(key), value, key)
        yield where, _precision_fault(bundle.root / where, variant)


def _precision_fault(path: Path, variant: Variant) -> str | None:
    """Whether it is an int8 model can be read off the file; fp16 weights are not told from fp32 ones."""
    found = INT8.get(path.suffix, INT8[".onnx"]) in path.read_bytes()
    if found == (variant.precision == "int8"):
        return None
    return f"'precision' is {variant.precision!r}, but the model file has {'' if found else 'no '}int8 operators"


def _metadata_fault(text: str | None, expected: Any, key: str) -> str | None:
    if text is None:
        return f"the model file carries no {key!r}"
    try:
        same = (text if isinstance(expected, str) else json.loads(text)) == expected
    except ValueError:
        same = False
    return None if same else f"{key!r} in the model file is not that of bundle.json"
