import os
import signal
from itertools import count, cycle

import numpy as np
import pytest

from tinyforge.device.__main__ import main
from tinyforge.device.bench import (
    MIN_BLOCKS,
    Taken,
    bench_bundle,
    compare_blocks,
    summarise,
    summary,
)
from tinyforge.device.bench_report import bench_text
from tinyforge.device.bundle import load_bundle
from tinyforge.device.machine import usable_cores
from tinyforge.device.runtime import ProcessKilled, RuntimeFault
from tinyforge.device.spec import InputSpec
from tinyforge.device.timing import MAX_WARMUP_WINDOWS, STAGES, record, timed_runs, warm_up
from tinyforge.device.worker import Arm, Worker

from .conftest import bench_model, colour_picture, encode
from .test_bench_conditions import add

SPEC = InputSpec((8, 8))
IMAGES = [encode(colour_picture(label)) for label in range(2)]


class FakeClock:
    """Nanoseconds that pass only when someone works."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class FakeSession:
    """Each run takes the next of ``microseconds``."""

    def __init__(self, clock: FakeClock, microseconds) -> None:
        self.clock, self.microseconds, self.seen = clock, iter(microseconds), []

    def run(self, x):
        self.seen.append(int(x.mean((0, 2, 3)).argmax()))
        self.clock.now += 1000 * next(self.microseconds)
        return np.zeros((1, 3), np.float32)


def measure(microseconds, *, seconds=0.0, min_runs=10, warmup=4):
    clock = FakeClock()
    session = FakeSession(clock, microseconds)
    turns = timed_runs(session, IMAGES, SPEC, clock)
    warmed = warm_up(turns, warmup)
    raw_us = record(turns, seconds, min_runs, clock)
    return {**summarise(raw_us), **warmed, "raw_us": raw_us}, session


def test_steady_latency_settles_after_two_windows():
    report, session = measure(cycle([250]))
    assert (report["warmup_runs"], report["settled"], report["runs"]) == (8, True, 10)
    assert report["raw_us"] == {
        "decode": [0] * 10,
        "preprocess": [0] * 10,
        "infer": [250] * 10,
        "postprocess": [0] * 10,
    }
    assert session.seen == [0, 1] * 9


def test_warm_up_goes_on_while_latency_falls():
    report, _ = measure([1000] * 4 + [800] * 4 + [700] * 4 + [690] * 4 + [690] * 10)
    assert (report["warmup_runs"], report["settled"]) == (16, True)
    assert set(report["raw_us"]["infer"]) == {690}


def test_latency_that_never_settles_is_said_so():
    report, _ = measure(2 ** (i // 4) for i in count())
    assert (report["warmup_runs"], report["settled"]) == (4 * MAX_WARMUP_WINDOWS, False)


def test_minimum_time_and_minimum_runs_both_hold():
    assert measure(cycle([1000]), seconds=0.5)[0]["runs"] == 500
    assert measure(cycle([1000]), seconds=0.001, min_runs=70)[0]["runs"] == 70


@pytest.mark.parametrize(("runs", "claimed"), [(10, []), (63, ["p50"]), (64, ["p50", "p90"]), (661, ["p50", "p90"])])
def test_percentiles_are_claimed_only_with_enough_runs(runs, claimed):
    report = summarise({stage: list(range(runs)) for stage in STAGES})
    assert [name[:3] for name in ("p50_ms", "p90_ms", "p99_ms") if report[name] is not None] == claimed
    assert (report["p90_bound_ms"] is None) == (runs < 64)
    assert report["stages"]["total"]["p99_ms"] is None


def test_summarise_by_hand():
    raw = {"decode": [100] * 700, "preprocess": [10] * 700, "infer": list(range(1, 701)), "postprocess": [5] * 700}
    report = summarise(raw)
    assert [report[name] for name in ("p50_ms", "p90_ms", "p99_ms", "mean_ms")] == [0.35, 0.63, 0.693, 0.35]
    assert report["stages"]["total"]["p50_ms"] == 0.465
    assert report["p90_ms"] < report["p90_bound_ms"] < report["p99_ms"] < report["p99_bound_ms"]


@pytest.mark.parametrize("variant", ["onnx-fp32", "openvino-fp16"])
def test_bundle_is_measured_in_a_fresh_process(built_bundle, variant):
    bundle = load_bundle(built_bundle)
    ballast = np.ones(50_000_000)  # 380 MiB here that must not count there
    report = bench_bundle(bundle, variants=[variant], seconds=0.01, min_runs=64, warmup=5)
    measured = report["variants"][variant]
    assert measured["runs"] >= 64
    assert 0 < measured["p50_ms"] <= measured["p90_ms"]
    assert min(measured[key] for key in ("import_ms", "load_ms", "first_ms")) > 0
    assert 10 < measured["peak_rss_mib"] < ballast.nbytes / 2**20
    assert measured["model_bytes"] == bundle.variants[variant].model_bytes
    assert measured["precision"] == "f32"
    assert summarise(measured["raw_us"]).items() <= summary(measured).items()
    assert report["machine"]["cores"] >= 1


def test_threads_are_at_most_the_cores_and_both_are_told(built_bundle):
    image, model = built_bundle / "selftest/0.png", built_bundle / "model/onnx-fp32.onnx"
    asked = usable_cores() + 2
    report = bench_model(model, [image], SPEC, threads=asked)
    assert (report["threads_asked"], report["threads"]) == (asked, usable_cores())
    assert summary(report)["busy_cores"] is None or summary(report)["busy_cores"] >= 0


def test_faults_of_the_fresh_process_come_back(tmp_path, built_bundle):
    image = built_bundle / "selftest/0.png"
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(RuntimeFault, match=r"bad\.onnx: onnxruntime cannot open it"):
        bench_model(tmp_path / "bad.onnx", [image], SPEC)
    with pytest.raises(RuntimeFault, match="the measuring process ended with code"):
        bench_model(tmp_path / "bad.onnx", [tmp_path / "absent.png"], SPEC)


def test_a_process_that_the_system_ends_is_a_fault_of_the_device(built_bundle, monkeypatch, capsys):
    bundle = load_bundle(built_bundle)
    arm = Arm("m", bundle.model_path(bundle.variant()), "onnxruntime", 1)
    with Worker(arm, [built_bundle / "selftest/0.png"], bundle.spec, 1) as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(ProcessKilled, match="ended by signal 9: too little memory"):
            worker.block(0.0, 1)
    monkeypatch.setattr("tinyforge.device.bench.bench_bundle", killed)
    assert main(["bench", str(built_bundle)]) == 4
    assert "ended by signal 9" in capsys.readouterr().err


def killed(*_, **__):
    raise ProcessKilled("ended by signal 9")


def test_modules_of_the_current_folder_are_not_run(built_bundle, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('mine')")
    monkeypatch.chdir(tmp_path)
    report = bench_bundle(load_bundle(built_bundle), seconds=0, min_runs=8, warmup=1)
    assert report["variants"]["onnx-fp32"]["runs"] >= 8


def test_arms_take_turns_and_are_compared(built_bundle, tmp_path):
    report = bench_bundle(
        load_bundle(built_bundle),
        variants=["onnx-fp32", "openvino-fp16"],
        threads=[1],
        seconds=0.1,
        min_runs=64,
        warmup=2,
        root=tmp_path,
    )
    assert list(report["variants"]) == ["onnx-fp32@1", "openvino-fp16@1"]
    (ratio,) = report["comparisons"]
    assert (ratio["a"], ratio["b"]) == ("onnx-fp32@1", "openvino-fp16@1")
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]  # equal where every round tells the same microseconds
    assert ratio["rounds"] >= MIN_BLOCKS
    assert {len(one["block_p50_us"]) for one in report["variants"].values()} == {ratio["rounds"]}
    assert report["conditions"]["valid"]
    assert all(one["energy"] is None and one["valid"] for one in report["variants"].values())


def test_of_all_models_those_are_measured_whose_runtime_is_here(built_bundle, monkeypatch):
    monkeypatch.setattr("tinyforge.device.bench.find_spec", lambda name: None)
    report = bench_bundle(load_bundle(built_bundle), variants=["all"], seconds=0, min_runs=8, warmup=1)
    assert (list(report["variants"]), report["left_out"]) == (["onnx-fp32"], ["openvino-fp16"])
    assert "not measured: openvino-fp16, whose runtime is not installed here" in bench_text(report)


def test_energy_is_shared_by_all_runs_also_those_that_nobody_times():
    taken = Taken()
    for _ in range(2):
        taken.add({stage: [1000] * 8 for stage in STAGES}, 1.0, 5.0)
    assert taken.energy("a meter", 0.0)["joules_per_run"] == pytest.approx(10 / 20)


def test_a_throttled_run_is_marked_and_energy_is_told(built_bundle, tmp_path):
    add(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": "4"})
    add(tmp_path, {"sys/class/hwmon/hwmon0/name": "ina219", "sys/class/hwmon/hwmon0/power1_input": "3000000"})
    report = bench_bundle(load_bundle(built_bundle), seconds=0, min_runs=8, warmup=1, root=tmp_path)
    measured = report["variants"]["onnx-fp32"]
    assert (measured["valid"], measured["reasons"]) == (False, ["throttled"])
    assert measured["energy"]["source"] == "hwmon ina219"
    assert measured["energy"]["watts"] == pytest.approx(3.0, rel=0.5)  # few samples at the edges of few runs
    assert measured["energy"]["joules_per_run"] > 0
    text = bench_text(report)
    assert "INVALID: throttled" in text
    assert "hwmon ina219" in text
    assert "EMULATED" not in text
    assert "EMULATED" in bench_text({**report, "machine": {**report["machine"], "emulated": True}})


def test_the_ratio_of_blocks_by_hand():
    found = compare_blocks([100, 200, 400], [110, 220, 440])
    assert found == {"ratio": 1.1, "low": 1.1, "high": 1.1, "rounds": 3}
    found = compare_blocks([100, 100], [200, 50])
    assert found["ratio"] == 1.0
    assert found["low"] < 0.1 < 10 < found["high"]
    assert compare_blocks([100], [200]) is None
    assert compare_blocks([0, 100], [100, 100]) is None
