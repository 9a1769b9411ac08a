"""What int8 sums that saturate cost the answers of a bundle, and what exact ones cost in time, on this processor.

    tinyforge build --recipe raspi && python benchmarks/exact_int8.py forge/raspi-raspi4

For an ONNX int8 model of the sample task, on a processor whose kernels saturate (x86-64 without VNNI); on any other the
two are the same. Answers on the test images of the bundle's predictions; latency of one image, one thread, in turns.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from tinyforge.compress.parity import infer
from tinyforge.compress.saturation import saturation
from tinyforge.device.bundle import load_bundle
from tinyforge.device.preprocess import prepare
from tinyforge.device.report import table
from tinyforge.device.runtime import open_session
from tinyforge.images import read_images

ROUNDS, RUNS = 60, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    bundle = load_bundle(parser.parse_args().bundle)
    tested = json.loads((bundle.root / "predictions/onnx-int8.json").read_bytes())
    images = {item.name: item.rgb for item in read_images("digits").items}
    inputs = np.concatenate([prepare(images[name], bundle.spec) for name in tested["names"]])
    labels, model = np.array(tested["labels"]), bundle.model_path(bundle.variant("onnx-int8"))
    sessions = {
        "int8, as the processor adds": open_session(model, "onnxruntime"),
        "int8, exact": open_session(model, "onnxruntime", exact_int8=True),
        "fp32": open_session(bundle.model_path(bundle.variant("onnx-fp32")), "onnxruntime"),
    }
    answers = {name: infer(session, inputs).argmax(axis=1) for name, session in sessions.items()}
    took: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            for _ in range(RUNS):
                started = time.perf_counter()
                session.run(inputs[:1])
                took[name].append(1000 * (time.perf_counter() - started))
    rows = [
        [name, str(int((found == labels).sum())), f"{np.median(took[name]):.3f}"] for name, found in answers.items()
    ]
    host, exact, _ = answers.values()
    differ = np.flatnonzero(host != exact)
    twin = saturation(model, inputs).flips
    print(table(["model", f"right of {len(labels)}", "p50 ms"], rows))
    print(
        f"{len(differ)} answers differ; the twin names {len(twin)}, {len(set(twin) & set(differ.tolist()))} in common"
    )


if __name__ == "__main__":
    main()
