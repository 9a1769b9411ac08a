"""Latency, load time and memory, measured so that the numbers can be checked: raw latencies are kept.

``bench_session`` is the measurement itself; ``bench_model`` runs it in a fresh process, so that loading is cold and
nothing else counts as memory; ``bench_bundle`` does that for the models of a bundle.
Batches are of one image; images are decoded anew in every run, as on a camera's path. Times are wall-clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .bundle import Bundle, locate, need, read_json
from .machine import describe_machine, peak_rss_mib
from .preprocess import DecodeFault, decode, prepare
from .runtime import MissingRuntime, RuntimeFault, Session, import_runtime, open_session
from .spec import InputSpec
from .stats import percentile, percentile_bound, runs_needed

STAGES = ("decode", "preprocess", "infer")
PERCENTILES = {"p50_ms": 0.50, "p90_ms": 0.90, "p99_ms": 0.99}
MAX_DRIFT = 0.05
MAX_WARMUP_WINDOWS = 10


def bench_session(
    session: Session,
    images: Sequence[bytes],
    spec: InputSpec,
    *,
    seconds: float,
    min_runs: int,
    warmup: int,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Any]:
    """Time encoded ``images`` in turn for at least ``seconds`` and at least ``min_runs`` runs, after a warm-up.

    Returns ``summarise(raw_us)`` with the session's ``info()``, warmup_runs, settled (whether the warm-up ended because
    latency stood still) and raw_us (per stage, whole microseconds). ``clock`` counts nanoseconds.
    """
    if not images or min_runs < 1 or warmup < 1 or seconds < 0:
        raise ValueError("a measurement needs images, at least one run and one warm-up run, and no negative time")
    turns = _timed_runs(session, images, spec, clock)
    warmup_runs, settled = _warm_up(turns, warmup)
    rows: list[tuple[int, ...]] = []
    start = clock()
    while len(rows) < min_runs or clock() - start < seconds * 1e9:
        rows.append(next(turns))
    raw_us = {stage: [round(row[i] / 1000) for row in rows] for i, stage in enumerate(STAGES)}
    measured = {**summarise(raw_us), **session.info()}
    return {**measured, "warmup_runs": warmup_runs, "settled": settled, "raw_us": raw_us}


def _timed_runs(
    session: Session, images: Sequence[bytes], spec: InputSpec, clock: Callable[[], int]
) -> Iterator[tuple[int, ...]]:
    """Endless runs over the images in turn: nanoseconds of (decode, preprocess, infer)."""
    while True:
        for encoded in images:
            start = clock()
            rgb = decode(encoded)
            decoded = clock()
            x = prepare(rgb, spec)
            prepared = clock()
            session.run(x)
            yield decoded - start, prepared - decoded, clock() - prepared


def _warm_up(turns: Iterator[tuple[int, ...]], window: int) -> tuple[int, bool]:
    """Run windows until the median inference of two in a row differs by less than ``MAX_DRIFT``: (runs, settled)."""
    before = None
    for number in range(1, MAX_WARMUP_WINDOWS + 1):
        median = percentile([next(turns)[-1] for _ in range(window)], 0.5)
        if before is not None and abs(median - before) < MAX_DRIFT * before:
            return number * window, True
        before = median
    return MAX_WARMUP_WINDOWS * window, False


def summarise(raw_us: dict[str, list[int]]) -> dict[str, Any]:
    """Every latency number that follows from raw latencies; ``verify`` recomputes them with this same function.

    runs; p50/p90/p99_ms and mean_ms of inference; p90_bound_ms, p99_bound_ms: not exceeded by the true percentile, at
    99 % confidence; stages: the same percentiles of decode, preprocess, infer and their total. None: too few runs.
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


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """A variant's report without its raw latencies: what bundle.json holds."""
    return {key: value for key, value in report.items() if key != "raw_us"}


def bench_model(
    model_path: str | Path,
    runtime: str,
    threads: int,
    images: Sequence[str | Path],
    spec: InputSpec,
    *,
    seconds: float = 1.0,
    min_runs: int = 662,
    warmup: int = 20,
) -> dict[str, Any]:
    """``bench_session`` of a model in a fresh process, on the image files given.

    Adds import_ms (of the runtime), load_ms (of the model), first_ms (the first inference), peak_rss_mib of that
    process, and model_bytes. Raises MissingRuntime or RuntimeFault, also when the process is killed.
    """
    job = {
        "model": str(Path(model_path).resolve()),
        "runtime": runtime,
        "threads": threads,
        "images": [str(Path(path).resolve()) for path in images],
        "spec": spec.to_json(),
        "options": {"seconds": seconds, "min_runs": min_runs, "warmup": warmup},
    }
    home = str(Path(__file__).resolve().parents[len(__package__.split("."))])
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.bench"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))},
    )
    return _answer(done)


def _answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeFault(f"the measuring process ended with code {done.returncode}: {last}") from None
    if "fault" in answer:
        raise (MissingRuntime if answer["missing"] else RuntimeFault)(answer["fault"])
    return answer


def _measure(job: dict[str, Any]) -> dict[str, Any]:
    """In the fresh process: load, first inference, ``bench_session``."""
    spec = InputSpec.from_json(job["spec"])
    images = [Path(path).read_bytes() for path in job["images"]]
    first = prepare(decode(images[0]), spec)
    start = time.perf_counter_ns()
    import_runtime(job["runtime"])
    imported = time.perf_counter_ns()
    session = open_session(job["model"], job["runtime"], job["threads"])
    loaded = time.perf_counter_ns()
    session.run(first)
    answered = time.perf_counter_ns()
    report = bench_session(session, images, spec, **job["options"])
    steps = {"import_ms": imported - start, "load_ms": loaded - imported, "first_ms": answered - loaded}
    return {
        **{name: round(nanoseconds / 1e6, 3) for name, nanoseconds in steps.items()},
        "peak_rss_mib": peak_rss_mib(),
        "model_bytes": model_bytes(Path(job["model"])),
        **report,
    }


def model_bytes(path: Path) -> int:
    """Size of a model: its file, and the weights beside an OpenVINO .xml."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0)


def bench_bundle(
    bundle: Bundle,
    *,
    variants: Sequence[str] | None = None,
    images: Sequence[str | Path] | None = None,
    seconds: float = 1.0,
    min_runs: int = 662,
    warmup: int = 20,
) -> dict[str, Any]:
    """Measure ``variants`` (default: the chosen one) on ``images`` (default: those of the self-test).

    Returns {schema_version, bundle, target, machine, variants: {name: report of ``bench_model``}}.
    """
    paths = list(images or selftest_images(bundle))
    for path in paths:
        _check_decodable(Path(path))
    reports = {}
    for variant in [bundle.variant(name) for name in variants or [bundle.chosen]]:
        reports[variant.name] = bench_model(
            bundle.model_path(variant),
            variant.runtime,
            bundle.threads,
            paths,
            bundle.spec,
            seconds=seconds,
            min_runs=min_runs,
            warmup=warmup,
        )
    head = {"schema_version": 1, "bundle": bundle.name, "target": bundle.target}
    return {**head, "machine": describe_machine(), "variants": reports}


def _check_decodable(path: Path) -> None:
    try:
        decode(path)
    except DecodeFault as fault:
        raise DecodeFault(f"{path}: {fault}") from fault


def selftest_images(bundle: Bundle) -> list[Path]:
    """The encoded images that travel with the bundle. Raises BundleFault."""
    entries = need(read_json(bundle.root, "selftest/golden.json"), "images", list, "selftest/golden.json")
    return [locate(bundle.root, need(entry, "path", str, "selftest/golden.json")) for entry in entries]


def main() -> None:
    """The fresh process: a job on stdin, a report or {fault, missing} as the last line of stdout."""
    try:
        answer = _measure(json.load(sys.stdin))
    except MissingRuntime as fault:
        answer = {"fault": str(fault), "missing": True}
    except (RuntimeFault, ValueError) as fault:
        answer = {"fault": str(fault), "missing": False}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
