"""What an evaluation found: one record per episode, and the summary over them.

A record holds raw answers, so every number of the summary can be worked out again from the files::

    {"schema_version": 2, "index", "episode": fingerprint, "supports": hash of their pixels, "classes": [...],
     "queries": [count per class],
     "methods": {name: {"settings": {part: hash}, "predicted": [label per query], "seconds"}},
     "images": {set: {"count", "kept", "teacher_agreement", "frechet"}}, "seconds": {"images", "learn", "queries"}}
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.device.report import table
from tinyforge.device.stats import mean_interval
from tinyforge.errors import DataError, UsageError
from tinyforge.fewshot.methods import REFERENCE
from tinyforge.fewshot.variance import components, episodes_needed, optimal_queries

SCHEMA_VERSION = 2
TEACHER = "teacher"


def record_file(out: Path, index: int) -> Path:
    return out / "episodes" / f"{index:05d}.json"


def read_record(out: Path, index: int) -> dict[str, Any] | None:
    """The record of one episode, None where there is none yet. Raises DataError for a damaged one."""
    file = record_file(out, index)
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_bytes())
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError("another schema_version")
    except (ValueError, KeyError, TypeError) as fault:
        raise DataError(f"{file}: not the record of an episode ({fault}); remove it to measure it again") from fault
    return record


def read_records(out: Path) -> list[dict[str, Any]]:
    """All records of a results folder, in the order of the episodes."""
    indices = sorted(int(file.stem) for file in (out / "episodes").glob("*.json") if file.stem.isdigit())
    return [record for record in (read_record(out, index) for index in indices) if record is not None]


def labels_of(record: dict[str, Any]) -> np.ndarray:
    """int64 (M,): the queries stand class after class."""
    return np.repeat(np.arange(len(record["queries"])), record["queries"])


def right(record: dict[str, Any], method: str) -> np.ndarray:
    """float (M,): 1 where the method was right."""
    return (np.array(record["methods"][method]["predicted"]) == labels_of(record)).astype(np.float64)


def summarise(records: Sequence[dict[str, Any]], reference: str = REFERENCE) -> dict[str, Any]:
    """{'episodes', 'reference', 'methods': {name: statistics}, 'images': {set: means}, 'seconds_per_episode'}."""
    names = list(dict.fromkeys(name for record in records for name in record["methods"]))
    sets = list(dict.fromkeys(name for record in records for name in record["images"]))
    return {
        "episodes": len(records),
        "reference": reference,
        "methods": {name: method_summary(records, name, reference) for name in names},
        "images": {name: image_summary(records, name) for name in sets},
        "seconds_per_episode": float(np.mean([sum(record["seconds"].values()) for record in records])),
    }


def method_summary(records: Sequence[dict[str, Any]], name: str, reference: str) -> dict[str, Any]:
    """Accuracy with its interval and variances, the paired difference to the reference, agreement with the teacher,
    accuracy per class.
    """
    own = [record for record in records if name in record["methods"]]
    paired = [record for record in own if reference in record["methods"]] if name != reference else []
    taught = [record for record in own if TEACHER in record["methods"]] if name != TEACHER else []
    return {
        **statistics([right(record, name) for record in own]),
        "minus_reference": statistics([right(r, name) - right(r, reference) for r in paired]) if paired else None,
        "teacher_agreement": agreement(taught, name) if taught else None,
        "per_class": per_class(own, name),
        "seconds": float(np.mean([record["methods"][name]["seconds"] for record in own])),
    }


def statistics(values: Sequence[np.ndarray]) -> dict[str, Any]:
    """Of query values, one array (M_i,) per episode: mean, 95 % t-interval over episodes, variance components."""
    parts = components(values)
    _, low, high = mean_interval([float(one.mean()) for one in values]) if len(values) > 1 else (None, None, None)
    return {
        "mean": parts.mean, "low": low, "high": high, "episodes": parts.num_episodes,
        "queries": sum(map(len, values)), "queries_per_episode": parts.num_queries,
        "between_variance": parts.between, "within_variance": parts.within,
    }  # fmt: skip


def agreement(records: Sequence[dict[str, Any]], name: str) -> float:
    """Share of queries that a method and the teacher's prototypes answer alike."""
    alike = [
        np.mean(np.equal(record["methods"][name]["predicted"], record["methods"][TEACHER]["predicted"]))
        for record in records
    ]
    return float(np.mean(alike))


def per_class(records: Sequence[dict[str, Any]], name: str) -> dict[str, dict[str, float]]:
    """Class -> {'accuracy' over all its queries, 'queries'}."""
    hits: dict[str, list[float]] = {}
    for record in records:
        values, labels = right(record, name), labels_of(record)
        for label, title in enumerate(record["classes"]):
            hits.setdefault(title, []).extend(values[labels == label])
    return {t: {"accuracy": float(np.mean(found)), "queries": len(found)} for t, found in sorted(hits.items())}


def image_summary(records: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Means over the episodes that have this set of images."""
    own = [record["images"][name] for record in records if name in record["images"]]
    return {
        "episodes": len(own),
        **{key: _mean(one[key] for one in own) for key in ("count", "kept", "teacher_agreement", "frechet")},
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def summary_text(summary: dict[str, Any]) -> str:
    """Tables for a terminal; accuracies and differences in points."""
    head = ["method", "episodes", "accuracy %", "95 % interval", "sd between", "sd within"]
    head += [f"minus {summary['reference']}", "95 % interval", "as teacher %"]
    rows = [[name, *_row(one)] for name, one in summary["methods"].items()]
    parts = [table(head, rows)]
    if summary["images"]:
        images = [
            [name, round(one["count"]), round(one["kept"]), _points(one["teacher_agreement"]), _number(one["frechet"])]
            for name, one in summary["images"].items()
        ]
        parts.append(table(["images", "per episode", "kept", "teacher agrees %", "Fréchet distance"], images))
    return "\n\n".join([*parts, f"{summary['episodes']} episodes, {summary['seconds_per_episode']:.1f} s each"])


def _row(one: dict[str, Any]) -> list[Any]:
    gain = one["minus_reference"] or {"mean": None, "low": None, "high": None}
    spread = [_points(_root(one["between_variance"])), _points(_root(one["within_variance"]))]
    return [
        one["episodes"], _points(one["mean"]), _interval(one), *spread,
        _points(gain["mean"], "+"), _interval(gain, "+"), _points(one["teacher_agreement"]),
    ]  # fmt: skip


def _points(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _interval(one: dict[str, Any], sign: str = "") -> str:
    return "-" if one["low"] is None else f"{_points(one['low'], sign)} to {_points(one['high'], sign)}"


def _root(value: float | None) -> float | None:
    return None if value is None else math.sqrt(value)


def plan(records: Sequence[dict[str, Any]], wanted: float, reference: str = REFERENCE) -> list[dict[str, Any]]:
    """From a pilot: per method the episodes needed for +-``wanted`` (a share), for its accuracy and for its difference
    to the reference, with all of the pilot's queries and with the number that is cheapest.

    Raises UsageError for a pilot of fewer than 3 episodes.
    """
    if len(records) < 3:
        raise UsageError(f"a plan needs a pilot of 3 or more episodes, better 10; there are {len(records)}")
    summary = summarise(records, reference)
    most = min(sum(record["queries"]) for record in records)
    queries_s = float(np.mean([record["seconds"]["queries"] for record in records]))
    query_cost = max(queries_s / most, 1e-9)
    episode_cost = max(summary["seconds_per_episode"] - queries_s, 1e-9)
    rows = []
    for name, one in summary["methods"].items():
        for what, found in (("accuracy", one), (f"minus {reference}", one["minus_reference"])):
            if found and found["between_variance"] is not None:
                rows.append({"method": name, "of": what, **_needs(found, wanted, most, episode_cost, query_cost)})
    return rows


def _needs(found: dict[str, Any], wanted: float, most: int, episode_cost: float, query_cost: float) -> dict[str, Any]:
    between, within = found["between_variance"], found["within_variance"]
    best = max(1, min(most, round(min(optimal_queries(between, within, episode_cost, query_cost), most))))
    result: dict[str, Any] = {"sd_between": math.sqrt(between), "sd_within": math.sqrt(within)}
    for label, queries in (("all", most), ("cheapest", best)):
        count = episodes_needed(between, within, queries, wanted)
        hours = count * (episode_cost + queries * query_cost) / 3600
        result[label] = {"queries": queries, "episodes": count, "hours": hours}
    return result


def plan_text(rows: Sequence[dict[str, Any]], wanted: float) -> str:
    """The plan as a table."""
    head = ["method", "of", "sd between", "sd within", "episodes", "queries each", "hours"]
    head += ["episodes, cheapest", "queries each", "hours"]
    lines = []
    for row in rows:
        line = [row["method"], row["of"], _points(row["sd_between"]), _points(row["sd_within"])]
        for label in ("all", "cheapest"):
            one = row[label]
            line += [one["episodes"], one["queries"], f"{one['hours']:.2f}"]
        lines.append(line)
    title = f"episodes for a 95 % interval of ±{100 * wanted:g} points, from a pilot; hours on one worker"
    return f"{title}\n\n{table(head, lines)}"
