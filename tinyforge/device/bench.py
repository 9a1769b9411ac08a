"""Latency, load time, memory and energy, measured so that the numbers can be checked: raw latencies are kept.

Every arm (a model with a number of threads) runs in a process of its own, and the arms take turns in short blocks, in
the opposite order every other round: what drifts, drifts for all of them, and their ratio has an interval.
The machine's state is read before, between blocks, and after; a run that was throttled is marked invalid.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .accuracy import bench_accuracy
from .bundle import Bundle
from .certificate import certificate
from .conditions import ROOT, busy_cores, judge, read_conditions, summarise_conditions
from .energy import open_meter
from .folder import locate, need, read_json
from .machine import describe_machine
from .preprocess import DecodeFault, decode
from .spec import InputSpec
from .stats import mean_interval, percentile
from .timing import PERCENTILES, STAGES, summarise
from .worker import UNTIMED_RUNS, Arm, Worker

__all__ = [
    "PERCENTILES",
    "STAGES",
    "Arm",
    "bench_arms",
    "bench_bundle",
    "summarise",
    "summary",
]

BLOCK_SECONDS = 0.5
MIN_BLOCKS = 8
SAMPLE_SECONDS = 1.0
KEPT_APART = ("raw_us", "block_p50_us", "samples")


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """An arm's report without its raw latencies: what bundle.json holds."""
    return {key: value for key, value in report.items() if key not in KEPT_APART}


def bench_arms(
    arms: Sequence[Arm],
    images: Sequence[Path],
    spec: InputSpec,
    *,
    seconds: float,
    min_runs: int,
    warmup: int,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Measure ``arms`` in turns on image files, each for at least ``seconds`` and ``min_runs`` runs.

    Returns {variants: {arm's name: report}, comparisons: of the others with the first, conditions}. A report holds
    ``summarise(raw_us)``, ``Worker.ready`` (threads: those used, at most the cores there are), threads_asked,
    busy_cores (others' work, before), energy, valid, reasons, notes (``judge`` of the samples), samples (of the
    machine's state: before, about every second, after), block_p50_us and raw_us.
    Raises MissingRuntime or RuntimeFault, also when a process is killed. ``root``: see ``conditions``.
    """
    if not arms or not images or min_runs < 1 or warmup < 1 or not 0 <= seconds < math.inf:
        raise ValueError("a measurement needs models, images, at least one run and one warm-up, and a time that ends")
    samples = [{**read_conditions(root), "busy_cores": busy_cores(root)}]
    with ExitStack() as stack:
        meter = open_meter(root)
        if meter:
            stack.callback(meter.close)
        idle_watts = _idle_watts(meter)
        workers = [stack.enter_context(Worker(arm, images, spec, warmup)) for arm in arms]
        taken = _take_turns(workers, seconds, min_runs, meter, samples, root)
    samples.append(read_conditions(root))
    conditions = summarise_conditions(samples)
    reports = {}
    for worker, one in zip(workers, taken):
        raw_us = {stage: list(values) for stage, values in one.raw_us.items()}
        reports[worker.arm.name] = {
            **summarise(raw_us),
            **worker.ready,
            "threads_asked": worker.arm.threads,
            "busy_cores": samples[0]["busy_cores"],
            "energy": one.energy(meter.source, idle_watts) if meter else None,
            **judge(samples),
            "samples": samples,
            "block_p50_us": one.block_p50_us,
            "raw_us": raw_us,
        }
    return {"variants": reports, "comparisons": _comparisons(reports), "conditions": conditions}


class Taken:
    """What one arm's blocks gave so far."""

    def __init__(self) -> None:
        self.raw_us = {stage: array("I") for stage in STAGES}
        self.block_p50_us: list[int] = []
        self.seconds = self.joules = 0.0

    def add(self, block: dict[str, list[int]], seconds: float, joules: float) -> None:
        for stage, values in block.items():
            self.raw_us[stage].extend(values)
        self.block_p50_us.append(int(percentile(block["infer"], 0.5)))
        self.seconds += seconds
        self.joules += joules

    def energy(self, source: str, idle_watts: float) -> dict[str, Any]:
        """Of whole runs, decoding to answer, idle power included; also of those before each block that nobody times."""
        untimed = UNTIMED_RUNS * len(self.block_p50_us)
        return {
            "source": source,
            "joules_per_run": round(self.joules / (len(self.raw_us["infer"]) + untimed), 6),
            "watts": round(self.joules / self.seconds, 3),
            "idle_watts": round(idle_watts, 3),
        }


def _take_turns(
    workers: Sequence[Worker], seconds: float, min_runs: int, meter: Any, samples: list[dict[str, Any]], root: Path
) -> list[Taken]:
    """Rounds of blocks, MIN_BLOCKS or more, until each arm has its time and its runs; appends to ``samples``."""
    taken = [Taken() for _ in workers]
    block_seconds, block_runs = min(BLOCK_SECONDS, seconds / MIN_BLOCKS), math.ceil(min_runs / MIN_BLOCKS)
    order, sampled = list(range(len(workers))), time.monotonic()

    def wants_more(one: Taken) -> bool:
        return one.seconds < seconds or len(one.raw_us["infer"]) < min_runs or len(one.block_p50_us) < MIN_BLOCKS

    while any(map(wants_more, taken)):
        for index in order:
            before, start = meter.joules() if meter else 0.0, time.monotonic()
            block = workers[index].block(block_seconds, block_runs)
            elapsed = time.monotonic() - start
            taken[index].add(block, elapsed, meter.joules() - before if meter else 0.0)
            if time.monotonic() - sampled >= SAMPLE_SECONDS:
                samples.append(read_conditions(root))
                sampled = time.monotonic()
        order.reverse()
    return taken


def _idle_watts(meter: Any) -> float:
    """Power of a second of rest, before any model is loaded."""
    if not meter:
        return 0.0
    before, start = meter.joules(), time.monotonic()
    time.sleep(1.0)
    return (meter.joules() - before) / (time.monotonic() - start)


def _comparisons(reports: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every arm with the first: {a, b, ratio...}."""
    (first, base), *others = reports.items()
    found = ((name, compare_blocks(base["block_p50_us"], one["block_p50_us"])) for name, one in others)
    return [{"a": first, "b": name, **ratio} for name, ratio in found if ratio]


def compare_blocks(a_us: Sequence[float], b_us: Sequence[float]) -> dict[str, Any] | None:
    """How many times a's latency b takes: {ratio, low, high (95 %), rounds}, from medians of blocks run in turns.

    Student's t over the logarithms of the rounds' ratios; None with fewer than two rounds or a latency of 0 µs.
    """
    if min(len(a_us), len(b_us)) < 2 or not all([*a_us, *b_us]):
        return None
    logs = [math.log(b / a) for a, b in zip(a_us, b_us)]
    ratio, low, high = (round(math.exp(value), 4) for value in mean_interval(logs))
    return {"ratio": ratio, "low": low, "high": high, "rounds": len(logs)}


def bench_bundle(
    bundle: Bundle,
    *,
    variants: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    images: Sequence[str | Path] | None = None,
    test: str | Path | None = None,
    seconds: float = 1.0,
    min_runs: int = 662,
    warmup: int = 20,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Measure ``variants`` on ``images`` (default: those of the self-test).

    variants: default the chosen one; with 'all' among them every one whose runtime is installed, and the chosen one.

    threads: of inference, each in turn, arms named 'onnx-int8@2' (default: the bundle's, arms named by variant).
    test: labelled images, see ``accuracy``.
    Returns {schema_version, bundle, target, machine, left_out: of 'all', those that cannot run here}, what
    ``bench_arms`` does, and accuracy where there is a ``test``.
    Each arm's report has a certificate: what may be claimed of it on this machine.
    """
    paths = [Path(path) for path in images or selftest_images(bundle)]
    for path in paths:
        _check_decodable(path)
    wanted = list(dict.fromkeys(threads or [bundle.threads]))
    everything = "all" in (variants or ())
    asked = bundle.variants if everything else variants or [bundle.chosen]
    left_out = [name for name in asked if everything and not _runs_here(bundle, name)]
    models = {name: bundle.variant(name) for name in dict.fromkeys(asked) if name not in left_out}
    arms = [
        Arm(
            name if not threads else f"{name}@{count}",
            bundle.model_path(one),
            one.runtime,
            count,
            one.providers,
            one.exact_int8,
        )
        for name, one in models.items()
        for count in wanted
    ]
    head: dict[str, Any] = {"schema_version": 1, "bundle": bundle.name, "target": bundle.target}
    head |= {"machine": describe_machine(root), "left_out": left_out}
    accuracy = {"accuracy": bench_accuracy(bundle, test, list(models))} if test else {}
    options: dict[str, Any] = {"seconds": seconds, "min_runs": min_runs, "warmup": warmup, "root": root}
    measured = bench_arms(arms, paths, bundle.spec, **options)
    for arm in arms:
        report = measured["variants"][arm.name]
        found = accuracy["accuracy"]["predictions"][arm.name.partition("@")[0]] if test else None
        answers = {arm.name: list(zip(found["names"], found["labels"], found["predicted"]))} if found else {}
        here = {arm.name: {**report, "machine": head["machine"]}}
        report["certificate"] = certificate(arm.name, answers, here)["statement"]
    return {**head, **measured, **accuracy}


def _runs_here(bundle: Bundle, name: str) -> bool:
    """Whether a model's runtime is installed; the chosen one must be."""
    return name == bundle.chosen or find_spec(bundle.variant(name).runtime) is not None


def _check_decodable(path: Path) -> None:
    try:
        decode(path)
    except DecodeFault as fault:
        raise DecodeFault(f"{path}: {fault}") from fault


def selftest_images(bundle: Bundle) -> list[Path]:
    """The encoded images that travel with the bundle. Raises BundleFault."""
    entries = need(read_json(bundle.root, "selftest/golden.json"), "images", list, "selftest/golden.json")
    return [locate(bundle.root, need(entry, "path", str, "selftest/golden.json")) for entry in entries]
