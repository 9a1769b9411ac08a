"""A measurement as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .plain import plain
from .report import percent, table

COLUMNS = ("p50_ms", "p90_ms", "p99_ms", "runs", "load_ms", "peak_rss_mib")


def bench_text(report: dict[str, Any]) -> str:
    """Tables of a ``bench_bundle`` report: a line per arm, then its stages, and what to know about them."""
    return "\n\n".join([_head(report["machine"]), *_tables(report), *_warnings(report)])


def _head(machine: dict[str, Any]) -> str:
    head = f"{plain(machine['cpu'])}, {machine['architecture']}, {machine['cores']} cores"
    warning = "\nEMULATED: these latencies are of an emulator and say nothing of a board"
    return head + warning if machine["emulated"] else head


def _tables(report: dict[str, Any]) -> Iterator[str]:
    arms = report["variants"]
    rows = [
        [name, *(one[key] for key in COLUMNS), round(one["model_bytes"] / 2**10), one["precision"], one["threads"]]
        for name, one in arms.items()
    ]
    yield table(["variant", *COLUMNS, "size_kib", "floats", "threads"], rows)
    stages = [
        [name, stage, *(values[key] for key in COLUMNS[:3])]
        for name, one in arms.items()
        for stage, values in one["stages"].items()
    ]
    yield table(["variant", "stage", *COLUMNS[:3]], stages)
    if report["comparisons"]:
        rows = [[one["b"], one["a"], one["ratio"], one["low"], one["high"]] for one in report["comparisons"]]
        yield table(["latency of", "over that of", "ratio", "low", "high (95 %)"], rows)
    spent = {name: one["energy"] for name, one in arms.items() if one["energy"]}
    if spent:
        keys = ("source", "joules_per_run", "watts", "idle_watts")
        yield table(["variant", *keys], [[name, *(one[key] for key in keys)] for name, one in spent.items()])
    yield "\n".join(f"{name}: {plain(one['certificate'])}" for name, one in arms.items())
    if "accuracy" in report:
        yield from _accuracy_tables(report["accuracy"])


def _accuracy_tables(accuracy: dict[str, Any]) -> Iterator[str]:
    rows = [[name, percent(one)] for name, one in accuracy["variants"].items()]
    yield table(["variant", "accuracy here (95 % interval)"], rows)
    if accuracy["pairs"]:
        keys = ("a", "b", "difference", "low", "high", "p")
        yield table(["a", "b", "a - b", "low", "high", "McNemar p"], [[o[k] for k in keys] for o in accuracy["pairs"]])


def _warnings(report: dict[str, Any]) -> Iterator[str]:
    for name, one in report["variants"].items():
        if not one["settled"]:
            yield f"{name}: latency had not settled after the warm-up"
    left_out = report.get("left_out", ())  # a bundle's own device package may be older than this
    yield from (f"not measured: {name}, whose runtime is not installed here" for name in left_out)
    yield from (f"note: {note}" for note in report["conditions"]["notes"])
    if not report["conditions"]["valid"]:
        yield f"INVALID: {', '.join(report['conditions']['reasons'])}"
