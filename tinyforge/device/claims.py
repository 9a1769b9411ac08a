"""What bundle.json claims, worked out from the raw data in the bundle: once when it is written, again by ``verify``.

::

    scores       {method: {"n", "correct", "accuracy", "low", "high", "predictions": file}}    ``stats.score``
    parity       {variant: {"against", "n", "agreement", "drop", "low", "high"}}     paired, on the same images:
                 share of equal answers; accuracy lost against the fp32 model, with its 95 % interval
    latency      {variant: {**bench.summary(report), "model_bytes", "machine", "raw": file}}
    certificate  {"variant", "accuracy": {...} | null, "latency": {...} | null, "statement"}

What the certificate claims: see ``certificate.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .bench import summary
from .certificate import Rows, certificate
from .conditions import judge
from .folder import BundleFault, need, read_json
from .stats import paired_difference, score
from .timing import STAGES, summarise

SECTIONS = ("scores", "parity", "latency", "certificate")
REFERENCE_PRECISION = "fp32"
MAX_RUN_US = 86_400 * 10**6  # a day


def claims(root: Path, files: Iterable[str], model: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """All ``SECTIONS``. files: names in the bundle; model: that of bundle.json. Raises BundleFault on faulty data."""
    names = sorted(files)
    answers = {_stem(name): read_predictions(root, name, num_classes) for name in names if _is_in(name, "predictions")}
    reports = {_stem(name): read_report(root, name) for name in names if _is_in(name, "latency")}
    check_labels(answers)
    stray = sorted(set(reports) - set(model["variants"]))
    if stray:
        raise BundleFault(f"latency/{stray[0]}.json: of no model of this bundle")
    return {
        "scores": {method: score_of(method, rows) for method, rows in answers.items()},
        "parity": parity(model["variants"], answers),
        "latency": {name: latency_of(name, report, model["variants"][name]) for name, report in reports.items()},
        "certificate": certificate(model["chosen"], answers, reports, model.get("candidates", 1)),
    }


def _is_in(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/") and name.endswith(".json")


def _stem(name: str) -> str:
    return name.partition("/")[2][: -len(".json")]


def read_predictions(root: Path, name: str, num_classes: int) -> Rows:
    """(image name, label, predicted) of a predictions file. Raises BundleFault."""
    record = read_json(root, name)
    names, labels, found = (need(record, key, list, name) for key in ("names", "labels", "predicted"))
    if not len(names) == len(labels) == len(found) > 0:
        raise BundleFault(f"{name}: names, labels and predicted must be equally many, at least one")
    if not all(isinstance(image, str) for image in names):
        raise BundleFault(f"{name}: names must be text")
    if any(type(index) is not int or not 0 <= index < num_classes for index in labels + found):
        raise BundleFault(f"{name}: labels and predicted must be class indices below {num_classes}")
    twice = [image for image, count in Counter(names).items() if count > 1]
    if twice:
        raise BundleFault(f"{name}: {twice[0]!r} appears more than once")
    return list(zip(names, labels, found))


def check_labels(answers: Mapping[str, Rows]) -> None:
    """Raise BundleFault unless an image has one label throughout."""
    labels: dict[str, int] = {}
    for method, rows in answers.items():
        for image, label, _ in rows:
            if labels.setdefault(image, label) != label:
                raise BundleFault(f"predictions/{method}.json: {image!r} has another label than in other predictions")


def read_report(root: Path, name: str) -> dict[str, Any]:
    """A report of ``bench_arms``, its raw latencies checked. Raises BundleFault."""
    report = read_json(root, name)
    raw = need(report, "raw_us", dict, name)
    runs = [need(raw, stage, list, name) for stage in STAGES]
    if set(raw) != set(STAGES) or len({len(values) for values in runs}) != 1 or not runs[0]:
        raise BundleFault(f"{name}: the stages must have equally many runs, at least one")
    if any(type(value) is not int or not 0 <= value <= MAX_RUN_US for values in runs for value in values):
        raise BundleFault(f"{name}: latencies must be whole microseconds, at most a day")
    need(need(report, "machine", dict, name), "cpu", str, f"{name}: 'machine'")
    try:
        judged = judge(need(report, "samples", list, name))
    except (KeyError, IndexError, TypeError, AttributeError) as fault:
        raise BundleFault(f"{name}: 'samples' are not of a machine's state") from fault
    for key, value in judged.items():
        if report.get(key) != value:
            raise BundleFault(f"{name}: {key!r} is not what 'samples' say")
    return report


def score_of(method: str, rows: Rows) -> dict[str, Any]:
    correct = sum(label == found for _, label, found in rows)
    return {**score(correct, len(rows)), "predictions": f"predictions/{method}.json"}


def parity(variants: Mapping[str, Any], answers: Mapping[str, Rows]) -> dict[str, Any]:
    """Every model beside the fp32 one, where both answered the same images. Raises BundleFault where they did not."""
    exact = [name for name, one in variants.items() if one["precision"] == REFERENCE_PRECISION and name in answers]
    if not exact:
        return {}
    reference = sorted(exact)[0]
    others = sorted(name for name in variants if name in answers and name != reference)
    return {name: _beside(name, answers[name], reference, answers[reference]) for name in others}


def _beside(name: str, rows: Rows, reference: str, expected: Rows) -> dict[str, Any]:
    if [row[:2] for row in rows] != [row[:2] for row in expected]:
        raise BundleFault(f"predictions/{name}.json: not of the same images as predictions/{reference}.json")
    right = [[label == found for _, label, found in one] for one in (expected, rows)]
    drop, low, high = (round(value, 6) for value in paired_difference(*right))
    same = sum(a[2] == b[2] for a, b in zip(expected, rows))
    agreement = round(same / len(rows), 6)
    return {"against": reference, "n": len(rows), "agreement": agreement, "drop": drop, "low": low, "high": high}


def latency_of(name: str, report: Mapping[str, Any], variant: Mapping[str, Any]) -> dict[str, Any]:
    """The report without its raw latencies; what follows from them is worked out anew."""
    size = sum(file["bytes"] for file in variant["files"])
    follows = {**summarise(report["raw_us"]), **judge(report["samples"]), "model_bytes": size}
    return {**summary(dict(report)), **follows, "raw": f"latency/{name}.json"}
