"""What a candidate must keep, and what kept all of them from it. Pure functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MIB = 2**20
FLAGS = {"max_ms": "max-ms", "max_mib": "max-mib", "min_accuracy": "min-accuracy"}
BEST = {"max_ms": "the fastest", "max_mib": "the smallest", "min_accuracy": "the most accurate"}
CLEAR_MS, CLEAR_MIB = 1.25, 1.05
"""Untrained, a candidate is dropped when its median latency or its size misses a limit by more than this factor. A
trained twin has that size within a few percent; the median, since what else runs on the machine moves it far less than
the p90, which is limited."""


@dataclass(frozen=True)
class Row:
    """A candidate with what was measured of it, None where nothing was.

    accuracy, latency: what a certificate would claim of it, see ``device.claims``. p90_ms: (p90, low, high).
    p50_ms: the median. right: for each test image. raced: whether it was trained; else why says why not.
    """

    student: str
    input_size: int
    model: str
    threads: int
    runtime: str = ""
    precision: str = ""
    model_bytes: int | None = None
    peak_rss_mib: float | None = None
    p90_ms: tuple[float, float, float] | None = None
    p50_ms: float | None = None
    latency: Mapping[str, Any] | None = None
    accuracy: Mapping[str, Any] | None = None
    right: tuple[bool, ...] | None = field(default=None, repr=False)
    raced: bool = True
    why: str = ""

    @property
    def name(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.student} {self.input_size} px {self.model} {threads}"

    @property
    def net(self) -> tuple[str, int]:
        return self.student, self.input_size


Value = Callable[[Row], float | None]
VALUES: dict[str, Value] = {
    "max_ms": lambda row: row.latency and row.latency["at_most_ms"],
    "max_mib": lambda row: row.model_bytes and row.model_bytes / MIB,
    "min_accuracy": lambda row: row.accuracy and row.accuracy["at_least"],
}


def keeps(row: Row, limit: str, allowed: float) -> bool:
    """What could not be measured, or cannot be claimed, keeps no limit."""
    value = VALUES[limit](row)
    return value is not None and (value >= allowed if limit == "min_accuracy" else value <= allowed)


def missed(row: Row, limits: Mapping[str, float]) -> list[str]:
    """The limits that a candidate does not keep."""
    return [limit for limit, allowed in limits.items() if not keeps(row, limit, allowed)]


def clearly_misses(row: Row, limits: Mapping[str, float]) -> list[str]:
    """Of an untrained model: the limits that its trained twin cannot keep either."""
    slow = "max_ms" in limits and row.p50_ms is not None and row.p50_ms > CLEAR_MS * limits["max_ms"]
    large = (
        "max_mib" in limits and row.model_bytes is not None and row.model_bytes > CLEAR_MIB * MIB * limits["max_mib"]
    )
    return [*(["max_ms"] if slow else []), *(["max_mib"] if large else [])]


def best(rows: Sequence[Row], limit: str) -> Row | None:
    """The row that comes nearest to one limit."""
    known = [row for row in rows if VALUES[limit](row) is not None]
    sign = -1 if limit == "min_accuracy" else 1
    return min(known, key=lambda row: sign * VALUES[limit](row), default=None)


def binding(rows: Sequence[Row], limits: Mapping[str, float]) -> list[str]:
    """Why no candidate keeps all limits: those that none keeps at all, else those that none keeps beside the others.

    Each names the candidate that comes nearest, and how near. Accuracy is left aside when no candidate was trained.
    """
    if not any(row.accuracy for row in rows) and len(limits) > 1:
        limits = {limit: allowed for limit, allowed in limits.items() if limit != "min_accuracy"}
    alone = [limit for limit, allowed in limits.items() if not any(keeps(row, limit, allowed) for row in rows)]
    if alone:
        return [_told(limit, limits[limit], rows, f"{BEST[limit]} candidate") for limit in alone]
    found = []
    for limit, allowed in limits.items():
        others = {name: value for name, value in limits.items() if name != limit}
        rest = [row for row in rows if not missed(row, others)]
        kept = " and ".join(f"{FLAGS[name]} {value:g}" for name, value in others.items())
        found += [_told(limit, allowed, rest, f"of the candidates within {kept}, {BEST[limit]}")] if rest else []
    return found or [f"each of {', '.join(FLAGS[name] for name in limits)} can be kept, but no two of them together"]


def _told(limit: str, allowed: float, rows: Sequence[Row], who: str) -> str:
    nearest = best(rows, limit)
    if nearest is None:
        return f"{FLAGS[limit]} {allowed:g}: {_unknown(limit, rows)}"
    return f"{FLAGS[limit]} {allowed:g}: {who}, {nearest.name}, {_value_text(limit, nearest)}"


def _value_text(limit: str, row: Row) -> str:
    value = VALUES[limit](row)
    if limit == "max_ms":
        return (
            f"takes up to {value:.3g} ms (p90 {row.p90_ms[0]:.3g} ms; upper bound at 99 %, {row.latency['runs']} runs)"
        )
    if limit == "max_mib":
        return f"has {value:.3g} MiB"
    return f"is right in {100 * value:.1f} % or more ({row.accuracy['correct']} of {row.accuracy['n']}; bound at 95 %)"


def _unknown(limit: str, rows: Sequence[Row]) -> str:
    """Why no row has a value for this limit."""
    if limit == "max_ms":
        reasons = {row.latency["reason"] for row in rows if row.latency} - {""}
        return f"no latency can be claimed: {'; '.join(sorted(reasons)) or 'none was measured'}"
    return "no model could be made"
