"""What a race tells: budget.json, the plot, the report's section, and what a reader of the bundle must know."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyforge.device.stats import paired_difference, score
from tinyforge.report.plot import Axes, Point, scatter_svg
from tinyforge.stages.budget.limits import FLAGS, MIB, Row
from tinyforge.stages.budget.verdict import Verdict
from tinyforge.stages.road import Road
from tinyforge.stages.telling import notes
from tinyforge.store import write_atomic

RULE = (
    "A candidate is beaten when another has as many or more of the same test images right, a p90 and a size at most "
    "5 % larger, and is clearly better in one: paired accuracy (95 % interval), p90 (99 % intervals more than 5 % "
    "apart) or size (5 %). Of those that keep the limits the most accurate ships, or the fastest that loses no more "
    "than compress.max_drop."
)


def record(
    road: Road, verdict: Verdict, dropped: Sequence[str], machine: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """budget.json. machine: where it was measured; device: its address, '' for this one."""
    numbers = {row.name: number for number, row in enumerate(verdict.rows, 1)}
    return {
        "schema_version": 1,
        "recipe": road.recipe.name,
        "target": road.job.target.name,
        "seed": road.recipe.seed,
        "limits": dict(verdict.limits),
        "device": device or None,
        "machine": dict(machine),
        "rule": RULE,
        "candidates": [row_record(row, verdict, numbers) for row in verdict.rows],
        "dropped": list(dropped),
        "winner": verdict.winner and verdict.winner.name,
        "why": verdict.why,
        "binding": list(verdict.binding),
        "models_compared": verdict.models,
    }


def row_record(row: Row, verdict: Verdict, numbers: Mapping[str, int]) -> dict[str, Any]:
    """A candidate as JSON."""
    p90, low, high = row.p90_ms
    claim = row.accuracy
    accuracy = claim and {**score(claim["correct"], claim["n"]), "at_least": claim["at_least"]}
    return {
        "number": numbers[row.name],
        "name": row.name,
        "student": row.student,
        "input_size": row.input_size,
        "model": row.model,
        "runtime": row.runtime,
        "precision": row.precision,
        "threads": row.threads,
        "model_bytes": row.model_bytes,
        "model_mib": round(row.model_bytes / MIB, 4),
        "peak_rss_mib": row.peak_rss_mib,
        "p50_ms": row.p50_ms,
        "p90_ms": p90,
        "p90_low_ms": low,
        "p90_high_ms": high,
        "latency": dict(row.latency),
        "accuracy": accuracy,
        "trained": row.raced,
        "misses": [FLAGS[limit] for limit in verdict.lost[row.name]],
        "beaten_by": beaten(row, verdict, numbers),
        "outcome": outcome(row, verdict, numbers),
    }


def beaten(row: Row, verdict: Verdict, numbers: Mapping[str, int]) -> dict[str, Any] | None:
    """Who beats it, with the paired difference in accuracy and its 95 % interval."""
    name = verdict.beaten.get(row.name)
    if name is None:
        return None
    other = next(one for one in verdict.rows if one.name == name)
    difference, low, high = paired_difference(other.right, row.right)
    return {
        "number": numbers[name],
        "name": name,
        "accuracy_difference": [round(x, 6) for x in (difference, low, high)],
    }


def outcome(row: Row, verdict: Verdict, numbers: Mapping[str, int]) -> str:
    """One phrase."""
    lost = ", ".join(FLAGS[limit] for limit in verdict.lost[row.name])
    if not row.raced:
        return f"not trained: {row.why}"
    by = verdict.beaten.get(row.name)
    told = f"misses {lost}" if lost else "ships" if row == verdict.winner else "keeps the limits"
    return told + (f", beaten by {numbers[by]}" if by else "")


def plot(verdict: Verdict, *, inside_html: bool = False) -> str:
    """Accuracy over p90 latency, with intervals; size over latency where accuracy is unknown. '' without candidates."""
    shown = [(number, row) for number, row in enumerate(verdict.rows, 1) if row.raced]
    if not shown:
        shown = list(enumerate(verdict.rows, 1))
    if not shown:
        return ""
    known = all(row.accuracy for _, row in shown)
    limits = verdict.limits
    axes = Axes(
        "p90 latency in ms, 99 % intervals",
        "accuracy in %, 95 % intervals" if known else "model size in MiB",
        limits.get("max_ms"),
        limits.get("min_accuracy" if known else "max_mib"),
        percent=known,
    )
    return scatter_svg([_point(number, row, verdict, known) for number, row in shown], axes, inside_html=inside_html)


def _point(number: int, row: Row, verdict: Verdict, known: bool) -> Point:
    if known:
        found = score(row.accuracy["correct"], row.accuracy["n"])
        y, y_low, y_high = found["accuracy"], found["low"], found["high"]
    else:
        y = y_low = y_high = row.model_bytes / MIB
    kept = "beaten" if row.name in verdict.beaten else "kept"
    kind = "chosen" if row == verdict.winner else "missed" if verdict.lost[row.name] else kept
    return Point(str(number), kind, *row.p90_ms, y, y_low, y_high)


def write(folder: Path, found: Mapping[str, Any], svg: str, reports: Mapping[str, Any]) -> dict[str, str]:
    """budget.json, budget.svg, and the raw latencies of each candidate, by number; their paths."""
    files = {"record": folder / "budget.json", "plot": folder / "budget.svg"}
    write_atomic(files["record"], json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")
    if svg:
        write_atomic(files["plot"], svg.encode())
    for old in folder.glob("latency/*.json"):
        old.unlink()
    for one in found["candidates"]:
        raw = json.dumps(reports[one["name"]], sort_keys=True).encode()
        write_atomic(folder / "latency" / f"{one['number']:02d}.json", raw + b"\n")
    return {name: str(path) for name, path in files.items() if path.is_file()}


def remarks(road: Road, verdict: Verdict, machine: Mapping[str, Any], device: str) -> list[str]:
    """What a reader of the winner's numbers must know."""
    limits = ", ".join(f"{FLAGS[limit]} {value:g}" for limit, value in verdict.limits.items())
    told = notes(road, f"Latency was measured on {machine['cpu']}, over ssh." if device else None)
    told.append(f"Chosen in a race within {limits}: {verdict.why}.")
    return told
