"""What may be claimed of a model on a machine, and how sure that is.

accuracy: a lower bound at 95 % confidence, exact and one-sided, on test images. A plain build chooses nothing by them;
a race chooses among ``candidates`` models, and the bound then holds for all of these at once (Bonferroni). latency: an
upper bound of the 90th percentile at 99 % confidence by order statistics (early stopping). Both hold for images, and
for a machine, like those measured, and for nothing else.
Source: Clopper & Pearson 1934, Biometrika 26(4); MLPerf inference, LoadGen early stopping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .conditions import BUSY_LOAD, judge
from .stats import exact_lower, percentile_bound, runs_needed

Rows = "list[tuple[str, int, int]]"
ACCURACY_CONFIDENCE = 0.95
LATENCY_SHARE, LATENCY_CONFIDENCE = 0.90, 0.99


def certificate(
    variant: str, answers: Mapping[str, Rows], reports: Mapping[str, Any], candidates: int = 1
) -> dict[str, Any]:
    """What may be claimed of a model, and how sure that is. candidates: among how many the test images chose it."""
    accuracy = _accuracy(variant, answers[variant], candidates) if variant in answers else None
    latency = _latency(variant, reports[variant]) if variant in reports else None
    said = f"{_accuracy_text(accuracy)}; {_latency_text(latency)}"
    return {"variant": variant, "accuracy": accuracy, "latency": latency, "statement": said}


def _accuracy(variant: str, rows: Rows, candidates: int) -> dict[str, Any]:
    correct = sum(label == found for _, label, found in rows)
    bound = exact_lower(correct, len(rows), 1 - (1 - ACCURACY_CONFIDENCE) / candidates)
    return {
        "candidates": candidates,
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
        "busy_cores": report["samples"][0].get("busy_cores"),
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
    reasons = judge(report["samples"])["reasons"]
    return f"the measurement is not valid: {', '.join(reasons)}" if reasons else ""


def _accuracy_text(claim: Mapping[str, Any] | None) -> str:
    if claim is None:
        return "no accuracy is claimed: there were no test images"
    among = f", the best of {claim['candidates']} models" if claim["candidates"] > 1 else ""
    return (
        f"top-1 >= {math.floor(claim['at_least'] * 1000) / 10:.1f} % at {_percent(claim['confidence'])} "
        f"(exact binomial, n = {claim['n']}{among})"
    )


def _latency_text(claim: Mapping[str, Any] | None) -> str:
    if claim is None or claim["reason"]:
        return f"no latency is claimed: {claim['reason'] if claim else 'it was not measured'}"
    unsettled = "" if claim["settled"] else ", not settled"
    beside = ", beside other work" if (claim["busy_cores"] or 0) > BUSY_LOAD else ""
    return (
        f"p90 of inference <= {claim['at_most_ms']:g} ms at {_percent(claim['confidence'])} "
        f"(early stopping, {claim['runs']} runs{unsettled}{beside}) on {claim['machine']}"
    )


def _percent(share: float) -> str:
    return f"{round(100 * share, 6):g} %"
