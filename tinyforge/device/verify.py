"""Does a bundle hold what it claims? Hashes, model metadata, golden vectors, and every number from its raw data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .bench import STAGES, summarise
from .bundle import Bundle, BundleFault, hash_faults, load_bundle, need, read_json
from .runtime import MissingRuntime, RuntimeFault, open_session
from .selftest import Outcome, run_selftest
from .stats import score


def verify_bundle(path: str | Path) -> Outcome:
    """Check everything and collect every discrepancy; models are run only when no file has changed.

    Raises BundleFault when the folder is no bundle at all, MissingRuntime without the chosen model's runtime.
    """
    bundle = load_bundle(path)
    outcome = Outcome()
    changed = hash_faults(bundle)
    outcome.checks += len(bundle.record["files"])
    for fault in changed:
        outcome.check(False, "file", fault.partition(":")[0], fault)
    for check, where, fault in (*_score_faults(bundle), *_latency_faults(bundle)):
        outcome.check(fault is None, check, where, f"{where}: {fault}")
    if changed:
        outcome.notes.append("models and golden vectors were not run, since files have changed")
        return outcome
    for check, where, fault in _metadata_faults(bundle):
        outcome.check(fault is None, check, where, f"{where}: {fault}")
    tested = run_selftest(bundle, hashes=False)
    return Outcome(outcome.faults + tested.faults, outcome.notes + tested.notes, outcome.checks + tested.checks)


Finding = tuple[str, str, "str | None"]


def _score_faults(bundle: Bundle) -> Iterator[Finding]:
    """Every score from its raw predictions; and one label per image throughout."""
    labels: dict[str, int] = {}
    for method, claimed in bundle.record["scores"].items():
        where = f"scores[{method!r}]"
        try:
            name = need(claimed, "predictions", str, where)
            rows = read_predictions(bundle, name)
        except BundleFault as fault:
            yield "score", where, str(fault)
            continue
        true = {**score(sum(label == found for _, label, found in rows), len(rows)), "predictions": name}
        yield "score", where, _difference(claimed, true)
        other = [image for image, label, _ in rows if labels.setdefault(image, label) != label]
        yield "score", where, f"{other[0]!r} has another label than in other predictions" if other else None


def read_predictions(bundle: Bundle, name: str) -> list[tuple[str, int, int]]:
    """(image name, label, predicted) of a predictions file. Raises BundleFault."""
    record = read_json(bundle.root, name)
    names, labels, found = (need(record, key, list, name) for key in ("names", "labels", "predicted"))
    if not len(names) == len(labels) == len(found) > 0:
        raise BundleFault(f"{name}: names, labels and predicted must be equally many, at least one")
    if not all(isinstance(image, str) for image in names):
        raise BundleFault(f"{name}: names must be text")
    if any(type(index) is not int or not 0 <= index < len(bundle.classes) for index in labels + found):
        raise BundleFault(f"{name}: labels and predicted must be class indices below {len(bundle.classes)}")
    twice = [image for image, count in Counter(names).items() if count > 1]
    if twice:
        raise BundleFault(f"{name}: {twice[0]!r} appears more than once")
    return list(zip(names, labels, found))


def _latency_faults(bundle: Bundle) -> Iterator[Finding]:
    """Every percentile from the raw latencies."""
    for variant, claimed in bundle.record["latency"].items():
        where = f"latency[{variant!r}]"
        try:
            bundle.variant(variant)
            true = summarise(read_latencies(bundle, need(claimed, "raw", str, where)))
        except BundleFault as fault:
            yield "latency", where, str(fault)
        else:
            yield "latency", where, _difference({key: claimed.get(key) for key in true}, true)
            size = bundle.variants[variant].model_bytes
            yield "latency", where, _difference({"model_bytes": claimed.get("model_bytes")}, {"model_bytes": size})


def read_latencies(bundle: Bundle, name: str) -> dict[str, list[int]]:
    """Raw latencies per stage, microseconds. Raises BundleFault."""
    record = read_json(bundle.root, name)
    raw = {stage: need(record, stage, list, name) for stage in STAGES}
    if len({len(values) for values in raw.values()}) != 1 or not raw["infer"]:
        raise BundleFault(f"{name}: the stages must have equally many runs, at least one")
    if any(type(value) is not int or value < 0 for values in raw.values() for value in values):
        raise BundleFault(f"{name}: latencies must be whole microseconds")
    return raw


def _difference(claimed: Any, true: dict[str, Any]) -> str | None:
    """The first key whose claimed value is not the true one."""
    for key in sorted({*claimed, *true}):
        if claimed.get(key) != true.get(key):
            return f"{key} is given as {claimed.get(key)!r}, the raw data say {true.get(key)!r}"
    return None


def _metadata_faults(bundle: Bundle) -> Iterator[Finding]:
    """The classes and input that each model file carries itself."""
    expected = {"classes": list(bundle.classes), "input": json.loads(json.dumps(bundle.spec.to_json()))}
    for variant in bundle.variants.values():
        try:
            session = open_session(bundle.model_path(variant), variant.runtime, bundle.threads)
        except MissingRuntime:
            continue
        except RuntimeFault as fault:
            yield "metadata", variant.name, str(fault)
            continue
        found = session.metadata()
        for key, value in expected.items():
            yield "metadata", variant.name, _metadata_fault(found.get(key), value, key)


def _metadata_fault(text: str | None, expected: Any, key: str) -> str | None:
    if text is None:
        return f"the model file carries no {key!r}"
    try:
        same = json.loads(text) == expected
    except ValueError:
        same = False
    return None if same else f"{key!r} in the model file is not that of bundle.json"
