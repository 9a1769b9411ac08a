"""Every student through every rung of the quantisation ladder, in both runtimes, on the sample task with real labels.

    python benchmarks/students.py --out results/students

A student learns from 50 real images per class, without synthetic images and without a teacher; ranges are calibrated on
a part of those, the gate is held on random views of them, and everything is measured on the other 1,297 images. ONNX
Runtime's int8 sums are exact, as on Arm and with VNNI, whatever processor this runs on; OpenVINO's are its own. Weights
and one JSON per student are kept, so an interrupted run goes on where it stopped. Latency: batch 1, one thread, the
model and its fp32 twin in turns within one process.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tinyforge.compress.calibration import Calibration, Prepared
from tinyforge.compress.coverage import coverage
from tinyforge.compress.ladder import LADDERS, RUNTIMES, Materials, Validation, attempt
from tinyforge.compress.parity import accuracy_drop, compare, infer, torch_logits
from tinyforge.compress.saturation import saturation
from tinyforge.compress.variants import prepare_materials
from tinyforge.device.machine import describe_machine
from tinyforge.device.report import table
from tinyforge.device.runtime import open_session
from tinyforge.device.stats import score
from tinyforge.distill.pixels import pack
from tinyforge.distill.students import build_student, default_spec
from tinyforge.distill.train import methods, seeded_student, train_student, training_set
from tinyforge.images import ImageSet, read_images
from tinyforge.recipe import Compress, Distill
from tinyforge.splits import k_shot_split
from tinyforge.stages.compress import support_views
from tinyforge.store import write_atomic

EPOCHS = {
    "conv4": 20, "timm:mobilenetv3_small_050": 20, "timm:lcnet_050": 20, "timm:tinynet_e": 20,
    "timm:mobilenetv4_conv_small_050": 20, "timm:repghostnet_050": 20, "timm:resnet10t": 10,
    "timm:edgenext_xx_small": 20, "timm:efficientvit_b0": 20, "timm:mobileone_s0": 10, "timm:ghostnet_050": 20,
    "resnet12": 8,
}  # fmt: skip
"""Student -> epochs of 20 batches of 64: fewer where a batch takes long."""
SIZE, SHOTS, SEED, CALIBRATION, VIEWS = 32, 50, 0, 100, 500
SETTINGS = Compress(qat_steps=100)
FP32 = {"onnx": "onnx-fp32", "openvino": "openvino-fp16"}  # OpenVINO computes either in fp32
ROUNDS, RUNS = 8, 25


def trained(name: str, support: ImageSet, out: Path) -> Any:
    """The student, trained on the supports by class labels alone, and its input; from ``out`` if it is there."""
    spec, file = default_spec(name, SIZE), out / "weights" / f"{short(name)}.safetensors"
    if not file.is_file():
        settings = Distill(student=name, epochs=EPOCHS[name], augment="light")
        student = seeded_student(settings, len(support.classes), SIZE, SEED)
        data = training_set(pack(support.rgb, spec), support.labels)
        train_student(
            student, spec, data, methods(settings)[0], settings, seed=SEED, checkpoint=out / "checkpoints" / short(name)
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(student.state_dict(), file)
    student = build_student(name, len(support.classes), input_size=SIZE)
    student.load_state_dict(load_file(file))
    return student.eval(), spec


def measure(name: str, support: ImageSet, test: ImageSet, out: Path) -> dict[str, Any]:
    """Every rung of every model kind of one student."""
    student, spec = trained(name, support, out)
    supports, inputs = Prepared(support.rgb, spec), Prepared(test.rgb, spec).array()
    views, labels = support_views(support, spec, VIEWS, seed=SEED, flip=False)
    held_out, lesson = Prepared(views, spec).array(), supports.array()
    chosen = [support.items[i].rgb for i in range(0, len(support), len(support) // CALIBRATION)]
    expected = torch_logits(student, inputs)
    with tempfile.TemporaryDirectory() as scratch:
        materials = prepare_materials(
            student, spec, support.classes, Path(scratch), name="students", opset=18, settings=SETTINGS, seed=SEED,
            calibration=Calibration(supports.like(chosen), supports),
            validation=Validation(held_out, labels, torch_logits(student, held_out)),
            teach=lambda: (lesson, torch_logits(student, lesson)), exact_int8=True,
        )  # fmt: skip
        rows = ladder_rows(materials, Path(scratch), inputs, expected, test.labels)
    return {
        "student": name,
        "parameters": sum(value.numel() for value in student.parameters()),
        "epochs": EPOCHS[name],
        "accuracy": score(int((expected.argmax(axis=1) == test.labels).sum()), len(test)),
        "machine": describe_machine(),
        "rows": rows,
    }


def ladder_rows(
    materials: Materials, folder: Path, inputs: np.ndarray, expected: np.ndarray, labels: np.ndarray
) -> list[dict[str, Any]]:
    rows = []
    for kind in sorted(LADDERS, key=lambda kind: (kind not in FP32.values(), kind)):  # what others are timed by first
        for number, (rung, make) in enumerate(LADDERS[kind].items()):
            path, started = (
                folder / f"{kind}-{number}{'.onnx' if kind.startswith('onnx') else '.xml'}",
                time.monotonic(),
            )
            gate = attempt(kind, rung, make, materials, path)
            row = {"kind": kind, **gate.to_json(), "seconds": round(time.monotonic() - started, 1)}
            if gate.parity is not None:
                row |= on_test(kind, path, folder, inputs, expected, labels)
            if kind.endswith("int8") and gate.parity is not None:
                row["coverage"] = coverage(path, materials.calibration.supports).to_json()
            if kind == "onnx-int8" and gate.parity is not None:
                row["saturation"] = saturation(path, inputs[:300]).to_json()
            rows.append(row)
            print(f"  {kind}, {rung}: {row.get('test', {}).get('drop')} {gate.reason}", flush=True)
    return rows


def on_test(
    kind: str, path: Path, folder: Path, inputs: np.ndarray, expected: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Accuracy, paired drop, agreement on the test images, and latency over that of the fp32 twin."""
    family = kind.split("-")[0]
    session = open_session(path, RUNTIMES[family], 1, exact_int8=True)
    twin_path = next(folder.glob(f"{FP32[family]}-0.*[lx]"))
    logits = infer(session, inputs, 32)
    hits = int((logits.argmax(axis=1) == labels).sum())
    ms, twin_ms = interleaved([session, open_session(twin_path, RUNTIMES[family], 1)], inputs[:1])
    return {
        "test": {
            **score(hits, len(labels)),
            "drop": accuracy_drop(expected, logits, labels).to_json(),
            "agreement": compare(expected, logits).agreement,
        },
        "p50_ms": ms,
        "ratio_to_fp32": ms / twin_ms,
    }


def interleaved(sessions: list[Any], x: np.ndarray) -> list[float]:
    """Median milliseconds of each session, in turns of RUNS runs."""
    found: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, times in zip(sessions, found, strict=True):
            for _ in range(RUNS):
                started = time.perf_counter_ns()
                session.run(x)
                times.append((time.perf_counter_ns() - started) / 1e6)
    return [float(np.median(times)) for times in found]


def kept(run: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The first row of a kind that passed its gate: what a build would ship."""
    return next((row for row in run["rows"] if row["kind"] == kind and not row["reason"]), None)


def summary(runs: list[dict[str, Any]]) -> str:
    """What a build would keep of every student, and the range of drops over all rungs."""
    rows = []
    for run in runs:
        fp32 = run["accuracy"]
        for kind in ("onnx-int8", "openvino-int8", "onnx-fp16", "openvino-fp16"):
            row, tried = kept(run, kind), [one for one in run["rows"] if one["kind"] == kind]
            drops = [100 * one["test"]["drop"]["drop"] for one in tried if "test" in one]
            spread = f"{min(drops):+.2f} to {max(drops):+.2f}" if drops else "none was made"
            ending = [f"{sum('test' in one for one in tried)} of {len(tried)}", spread]
            if row is None:
                rows.append([short(run["student"]), kind, "no rung passed", "", "", "", "", "", *ending])
                continue
            test, drop = row["test"], row["test"]["drop"]
            name, before, after = (
                short(run["student"]),
                f"{100 * fp32['accuracy']:.2f}",
                f"{100 * test['accuracy']:.2f}",
            )
            interval = f"{100 * drop['drop']:+.2f} ({100 * drop['low']:+.2f} to {100 * drop['high']:+.2f})"
            found = [interval, f"{100 * test['agreement']:.2f}", f"{row['ratio_to_fp32']:.2f}", *ending]
            rows.append([name, kind, row["rung"], before, after, *found])
    head = ["student", "kind", "rung kept", "fp32 %", "accuracy %", "drop (95 %)", "same %", "latency / fp32", "made",
            "drops of all rungs"]  # fmt: skip
    return f"n = {runs[0]['accuracy']['n']} test images\n{table(head, rows)}"


def short(name: str) -> str:
    return name.removeprefix("timm:")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--out", type=Path, default=Path("results/students"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    support, test = k_shot_split(read_images("digits"), SHOTS, SEED)
    runs = []
    for name in options.students:
        file = options.out / f"{short(name)}.json"
        if not file.is_file():
            print(name, flush=True)
            write_atomic(file, (json.dumps(measure(name, support, test, options.out), indent=1) + "\n").encode())
        runs.append(json.loads(file.read_bytes()))
    print(summary(runs))


if __name__ == "__main__":
    main()
