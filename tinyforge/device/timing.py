"""Latency of one opened model: timed runs, the warm-up before them, and every number that follows from them.

Batches are of one image; images are decoded anew in every run, as on a camera's path. Times are wall-clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .predict import best_classes
from .preprocess import decode, prepare
from .runtime import Session
from .spec import InputSpec
from .stats import percentile, percentile_bound, runs_needed

STAGES = ("decode", "preprocess", "infer", "postprocess")
INFER = STAGES.index("infer")
PERCENTILES = {"p50_ms": 0.50, "p90_ms": 0.90, "p99_ms": 0.99}
MAX_DRIFT = 0.05
MAX_WARMUP_WINDOWS = 10
Turns = Iterator["tuple[int, ...]"]


def timed_runs(session: Session, images: Sequence[bytes], spec: InputSpec, clock: Callable[[], int]) -> Turns:
    """Endless runs over the images in turn: nanoseconds of (decode, preprocess, infer, postprocess)."""
    while True:
        for encoded in images:
            start = clock()
            rgb = decode(encoded)
            decoded = clock()
            x = prepare(rgb, spec)
            prepared = clock()
            logits = session.run(x)
            inferred = clock()
            best_classes(logits[0], 1)
            yield decoded - start, prepared - decoded, inferred - prepared, clock() - inferred


def warm_up(turns: Turns, window: int) -> dict[str, Any]:
    """Run windows until the median inference of two in a row differs by less than ``MAX_DRIFT``.

    {warmup_runs, settled: whether that came to pass within ``MAX_WARMUP_WINDOWS``}.
    """
    before = None
    for number in range(1, MAX_WARMUP_WINDOWS + 1):
        median = percentile([next(turns)[INFER] for _ in range(window)], 0.5)
        if before is not None and abs(median - before) < MAX_DRIFT * before:
            return {"warmup_runs": number * window, "settled": True}
        before = median
    return {"warmup_runs": MAX_WARMUP_WINDOWS * window, "settled": False}


def record(turns: Turns, seconds: float, min_runs: int, clock: Callable[[], int]) -> dict[str, list[int]]:
    """Whole microseconds per stage of runs for at least ``seconds`` and at least ``min_runs``."""
    raw_us: dict[str, list[int]] = {stage: [] for stage in STAGES}
    start, runs = clock(), 0
    while runs < min_runs or clock() - start < seconds * 1e9:
        for values, nanoseconds in zip(raw_us.values(), next(turns)):
            values.append(round(nanoseconds / 1000))
        runs += 1
    return raw_us


def summarise(raw_us: dict[str, list[int]]) -> dict[str, Any]:
    """Every latency number that follows from raw latencies; ``verify`` recomputes them with this same function.

    runs; p50/p90/p99_ms and mean_ms of inference; p90_bound_ms, p99_bound_ms: not exceeded by the true percentile, at
    99 % confidence; stages: the same percentiles of every stage and their total. None: too few runs.
    """
    infer = raw_us["infer"]
    total = [sum(run) for run in zip(*(raw_us[stage] for stage in STAGES))]
    bounds = {f"{name[:3]}_bound_ms": percentile_bound(infer, PERCENTILES[name]) for name in ("p90_ms", "p99_ms")}
    return {
        "runs": len(infer),
        **_percentiles(infer),
        "mean_ms": round(sum(infer) / len(infer) / 1000, 3),
        **{name: None if bound is None else bound / 1000 for name, bound in bounds.items()},
        "stages": {**{stage: _percentiles(raw_us[stage]) for stage in STAGES}, "total": _percentiles(total)},
    }


def _percentiles(microseconds: list[int]) -> dict[str, float | None]:
    enough = {name: len(microseconds) >= runs_needed(share) for name, share in PERCENTILES.items()}
    return {n: percentile(microseconds, p) / 1000 if enough[n] else None for n, p in PERCENTILES.items()}
