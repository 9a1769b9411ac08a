"""What bundle.json claims, worked out from the raw data in the bundle: once when it is written, again by ``verify``.

::

    scores       {method: {"n", "correct", "accuracy", "low", "high", "predictions": file}}    ``stats.score``
    parity       {variant: {"against", "n", "agreement", "drop", "low", "high"}}     paired, on the same images:
                 share of equal answers; accuracy lost against the fp32 model, with its 95 % interval
    latency      {variant: {**bench.summary(report), "model_bytes", "machine", "raw": file}}
    certificate  {"variant", "accuracy": {...} | null, "latency": {...} | null, "statement"}

The certificate speaks of the chosen model. accuracy: a lower bound at 95 % confidence, exact and one-sided, on test
images, which chose nothing: models are chosen on others. latency: an upper bound of the 90th percentile at 99 %
confidence by order statistics (early stopping). Both hold for images, and for a machine at rest, like those measured,
and for nothing else.
Source: Clopper & Pearson 1934, Biometrika 26(4); MLPerf inference, LoadGen early stopping.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .bench import STAGES, summarise, summary
from .folder import BundleFault, need, read_json
from .stats import exact_lower, paired_difference, percentile_bound, runs_needed, score

Rows = "list[tuple[str, int, int]]"
SECTIONS = ("scores", "parity", "latency", "certificate")
ACCURACY_CONFIDENCE = 0.95
LATENCY_SHARE, LATENCY_CONFIDENCE = 0.90, 0.99
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
        "certificate": certificate(model["chosen"], answers, reports),
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
    """A report of ``bench_model``, its raw latencies checked. Raises BundleFault."""
    report = read_json(root, name)
    raw = need(report, "raw_us", dict, name)
    runs = [need(raw, stage, list, name) for stage in STAGES]
    if set(raw) != set(STAGES) or len({len(values) for values in runs}) != 1 or not runs[0]:
        raise BundleFault(f"{name}: the stages must have equally many runs, at least one")
    if any(type(value) is not int or not 0 <= value <= MAX_RUN_US for values in runs for value in values):
        raise BundleFault(f"{name}: latencies must be whole microseconds, at most a day")
    need(need(report, "machine", dict, name), "cpu", str, f"{name}: 'machine'")
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
    return {**summary(dict(report)), **summarise(report["raw_us"]), "model_bytes": size, "raw": f"latency/{name}.json"}


def certificate(variant: str, answers: Mapping[str, Rows], reports: Mapping[str, Any]) -> dict[str, Any]:
    """What may be claimed of the shipped model, and how sure that is."""
    accuracy = _accuracy(variant, answers[variant]) if variant in answers else None
    latency = _latency(variant, reports[variant]) if variant in reports else None
    said = f"{_accuracy_text(accuracy)}; {_latency_text(latency)}"
    return {"variant": variant, "accuracy": accuracy, "latency": latency, "statement": said}


def _accuracy(variant: str, rows: Rows) -> dict[str, Any]:
    correct = sum(label == found for _, label, found in rows)
    bound = exact_lower(correct, len(rows), ACCURACY_CONFIDENCE)
    return {
        "at_least": math.floor(bound * 1e6) / 1e6,
        "confidence": ACCURACY_CONFIDENCE,
        "n": len(rows),
        "correct": correct,
        "predictions": f"predictions/{variant}.json",
    }


def _latency(variant: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """at_most_ms is None, with the reason, where the measurement does not carry a claim."""
    infer = report["raw_us"]["infer"]
    bound, reason = percentile_bound(infer, LATENCY_SHARE, LATENCY_CONFIDENCE), _why_not(report)
    return {
        "percentile": LATENCY_SHARE,
        "at_most_ms": None if reason else bound / 1000,
        "reason": reason,
        "confidence": LATENCY_CONFIDENCE,
        "runs": len(infer),
        "threads": report.get("threads"),
        "settled": report.get("settled"),
        "machine": report["machine"]["cpu"],
        "raw": f"latency/{variant}.json",
    }


def _why_not(report: Mapping[str, Any]) -> str:
    """Why no latency may be claimed from this report, '' when it may."""
    least = runs_needed(LATENCY_SHARE, LATENCY_CONFIDENCE)
    if len(report["raw_us"]["infer"]) < least:
        return f"{least} timed runs are needed, there are {len(report['raw_us']['infer'])}"
    if report["machine"].get("emulated"):
        return "it was measured under an emulator"
    if report.get("valid") is False:
        reasons = report.get("reasons")
        return f"the measurement is not valid: {', '.join(map(str, reasons)) if isinstance(reasons, list) else 'why?'}"
    return ""


def _accuracy_text(claim: Mapping[str, Any] | None) -> str:
    if claim is None:
        return "no accuracy is claimed: there were no test images"
    return (
        f"top-1 >= {math.floor(claim['at_least'] * 1000) / 10:.1f} % at {_percent(claim['confidence'])} "
        f"(exact binomial, n = {claim['n']})"
    )


def _latency_text(claim: Mapping[str, Any] | None) -> str:
    if claim is None or claim["reason"]:
        return f"no latency is claimed: {claim['reason'] if claim else 'it was not measured'}"
    unsettled = "" if claim["settled"] else ", not settled"
    return (
        f"p90 of inference <= {claim['at_most_ms']:g} ms at {_percent(claim['confidence'])} "
        f"(early stopping, {claim['runs']} runs{unsettled}) on {claim['machine']}"
    )


def _percent(share: float) -> str:
    return f"{round(100 * share, 6):g} %"
