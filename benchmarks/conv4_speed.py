"""An int8 Conv4 through the bundle's own runtime beside the same student in PyTorch, eager, fp32: one interleaved run.

    python benchmarks/conv4_speed.py --out benchmarks/results/conv4_speed.json

Batch 1, one thread each, 32 px, in turns of 50 runs within one process. Prints the median of each and its ratio to
PyTorch's; every block's ratio is within the range printed beside it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tinyforge.compress.calibration import Calibration, Prepared
from tinyforge.compress.ladder import LADDERS, RUNTIMES, Validation, attempt
from tinyforge.compress.parity import torch_logits
from tinyforge.compress.variants import prepare_materials
from tinyforge.device.machine import describe_machine
from tinyforge.device.report import table
from tinyforge.device.runtime import open_session
from tinyforge.device.spec import InputSpec
from tinyforge.distill.students import build_student
from tinyforge.images import read_images
from tinyforge.recipe import Compress

KINDS = ("onnx-fp32", "onnx-int8", "openvino-fp16", "openvino-int8")
BLOCK = 50


def timed(run: Callable[[], object]) -> list[float]:
    """Milliseconds of BLOCK runs."""
    times = []
    for _ in range(BLOCK):
        started = time.perf_counter_ns()
        run()
        times.append((time.perf_counter_ns() - started) / 1e6)
    return times


def runners(size: int, folder: Path) -> tuple[dict[str, Callable[[], object]], np.ndarray]:
    """Name -> one inference of the same image."""
    torch.manual_seed(0)
    student, spec = build_student("conv4", 10, input_size=size).eval(), InputSpec(size=(size, size))
    images = Prepared(read_images("digits").rgb[:64], spec)
    inputs = images.array()
    logits = torch_logits(student, inputs)
    materials = prepare_materials(
        student, spec, [str(n) for n in range(10)], folder, name="conv4", opset=18, settings=Compress(),
        calibration=Calibration(images, images), validation=Validation(inputs, logits.argmax(axis=1), logits),
    )  # fmt: skip
    x, tensor = inputs[:1], torch.from_numpy(inputs[:1])
    found: dict[str, Callable[[], object]] = {"PyTorch eager, fp32": lambda: eager(student, tensor)}
    for kind in KINDS:
        path = folder / f"{kind}{'.onnx' if kind.startswith('onnx') else '.xml'}"
        rung, make = next(iter(LADDERS[kind].items()))
        attempt(kind, rung, make, materials, path)
        session = open_session(path, RUNTIMES[kind.split("-")[0]], 1)
        found[kind] = lambda session=session: session.run(x)
    return found, x


@torch.inference_mode()
def eager(student: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return student(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--out", type=Path, help="a JSON file, for every block's median")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run, _ = runners(options.size, Path(folder))
        for one in run.values():
            timed(one)  # warm-up
        blocks = [{name: np.median(timed(one)) for name, one in run.items()} for _ in range(options.blocks)]
    first = next(iter(run))
    rows = []
    for name in run:
        ratios = sorted(block[first] / block[name] for block in blocks)
        times = np.median([block[name] for block in blocks])
        rows.append([name, f"{times:.3f}", f"{np.median(ratios):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}"])
    if options.out:
        medians = {name: [round(float(block[name]), 4) for block in blocks] for name in run}
        record = {"machine": describe_machine(), "torch": torch.__version__, "size": options.size, "p50_ms": medians}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(describe_machine())
    print(table(["model", "p50 ms", "times as fast", "over the blocks"], rows))


if __name__ == "__main__":
    main()
