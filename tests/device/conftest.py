"""A small complete bundle, built by hand: the format of ``tinyforge.device.bundle`` by example.

The model is exact: class = the colour channel with the highest mean, so answers are known without training.
"""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import tinyforge.device
from tinyforge.device.bench import Arm, bench_arms
from tinyforge.device.bundle import SCHEMA_VERSION, file_record
from tinyforge.device.card import CERTIFICATE, numbers
from tinyforge.device.claims import claims
from tinyforge.device.runtime import import_runtime
from tinyforge.device.seal import bundle_files, hash_files, record_bytes, sealed
from tinyforge.device.selftest import Model, write_golden
from tinyforge.device.spec import InputSpec

CLASSES = ["red", "green", "blue"]
SPEC = InputSpec(size=(8, 8), resize="bilinear")


def bench_model(model: Path, images: list[Path], spec: InputSpec, *, threads: int = 1, **how) -> dict:
    """The report of one model in ONNX Runtime, measured alone, as short as may be."""
    how = {"seconds": 0, "min_runs": 64, "warmup": 2, **how}
    return bench_arms([Arm("model", model, "onnxruntime", threads)], images, spec, **how)["variants"]["model"]


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def colour_picture(label: int, seed: int = 0, size: tuple[int, int] = (20, 14)) -> Image.Image:
    """Noise in which one channel is brightest."""
    pixels = np.random.default_rng(seed).integers(0, 120, (*size, 3), dtype=np.uint8)
    pixels[..., label] += 100
    return Image.fromarray(pixels)


def write_onnx(
    path: Path, metadata: dict[str, str], *, layout: str = "NCHW", batch: int | str = "batch", factor: float = 10.0
) -> Path:
    """float32 images -> mean of each channel, times ``factor``: logits (B, 3)."""
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    planes = [3, 8, 8] if layout == "NCHW" else [8, 8, 3]
    constants = [numpy_helper.from_array(np.float32(factor), "factor"), numpy_helper.from_array(np.array(axes), "axes")]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0),
            helper.make_node("Mul", ["means", "factor"], ["logits"]),
        ],
        "colour",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *planes])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def write_openvino(onnx_path: Path, path: Path, metadata: dict[str, str]) -> Path:
    ov = import_runtime("openvino")
    model = ov.Core().read_model(str(onnx_path))
    for key, value in metadata.items():
        model.set_rt_info(value, ["tinyforge", key])
    ov.save_model(model, str(path))
    return path


def build_bundle(root: Path, spec: InputSpec = SPEC) -> Path:
    """Every file of a bundle, bundle.json last."""
    metadata = metadata_of(spec)
    (root / "model").mkdir(parents=True)
    write_onnx(root / "model/onnx-fp32.onnx", metadata, layout=spec.layout)
    write_openvino(root / "model/onnx-fp32.onnx", root / "model/openvino-fp16.xml", metadata)
    variants = {
        "onnx-fp32": {
            "runtime": "onnxruntime",
            "precision": "fp32",
            "files": [file_record(root, "model/onnx-fp32.onnx")],
        },
        "openvino-fp16": {
            "runtime": "openvino",
            "precision": "fp16",
            "files": [file_record(root, f"model/openvino-fp16.{end}") for end in ("xml", "bin")],
        },
    }
    source = Path(tinyforge.device.__file__).parent
    shutil.copytree(source, root / "tinyforge_device", ignore=shutil.ignore_patterns("__pycache__"))
    images = {f"{label}.png": encode(colour_picture(label)) for label in range(3)}
    models = {
        name: Model(root / one["files"][0]["path"], one["runtime"], one["precision"], 1)
        for name, one in variants.items()
    }
    write_golden(root, images, spec, models)
    for method, last in (("student", 1), ("onnx-fp32", 2), ("openvino-fp16", 1)):
        write_predictions(root, method, [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, last])
    model = {"chosen": "onnx-fp32", "variants": variants}
    record = {
        "schema_version": SCHEMA_VERSION,
        "name": "colour",
        "target": "generic-cpu",
        "classes": CLASSES,
        "input": spec.to_json(),
        "threads": 1,
        "model": model,
        **claims(root, bundle_files(root), model, len(CLASSES)),
        "provenance": {"seed": 0},
        "licences": [{"name": "colour", "licence": "Apache-2.0"}],
    }
    write_card(root, record)
    (root / "report.html").write_text("<!doctype html><title>colour</title>\n")
    (root / "recipe.lock.toml").write_text('name = "colour"\n')
    (root / "requirements.txt").write_text("numpy>=1.26\nPillow>=10.3\nonnxruntime>=1.20\n")
    write_record(root, {**record, "files": hash_files(root)})
    return root


def write_card(root: Path, record: dict) -> None:
    """README.md, with as much as ``verify`` reads of it."""
    said, *tables = numbers(record, record["model"]["chosen"])
    (root / "README.md").unlink(missing_ok=True)
    (root / "README.md").write_text("\n".join(["A bundle for tests.\n", f"{CERTIFICATE}{said}\n", *tables]) + "\n")


def metadata_of(spec: InputSpec = SPEC) -> dict[str, str]:
    """What a model file says of itself."""
    return {"name": "colour", "classes": json.dumps(CLASSES), "input": json.dumps(spec.to_json())}


def write_predictions(root: Path, method: str, labels: list[int], predicted: list[int]) -> None:
    name = f"predictions/{method}.json"
    (root / "predictions").mkdir(exist_ok=True)
    names = [f"{index}.png" for index in range(len(labels))]
    (root / name).write_text(json.dumps({"names": names, "labels": labels, "predicted": predicted}))


def read_record(root: Path) -> dict:
    return json.loads((root / "bundle.json").read_bytes())


def write_record(root: Path, record: dict, *, seal: bool = True) -> None:
    """bundle.json with a fitting seal, as a careful forger would write it, or with the one in ``record``."""
    (root / "bundle.json").unlink(missing_ok=True)
    (root / "bundle.json").write_bytes(record_bytes(sealed(record) if seal else record))


def change_record(root: Path, **changes) -> None:
    """Edit top-level keys of bundle.json and seal it again; None removes."""
    record = {**read_record(root), **changes}
    write_record(root, {key: value for key, value in record.items() if value is not None})


def edit_record(root: Path, change: Callable[[dict], object], *, seal: bool = True) -> None:
    """bundle.json changed by a function of it."""
    record = read_record(root)
    change(record)
    write_record(root, record, seal=seal)


def rehash(root: Path) -> None:
    """List every file as it is now, and seal."""
    record = read_record(root)
    for variant in record["model"]["variants"].values():
        variant["files"] = [file_record(root, file["path"]) for file in variant["files"]]
    write_record(root, {**record, "files": hash_files(root)})


def reclaim(root: Path) -> None:
    """Work every claim out again from the raw data now there, also in the card, list every file, and seal."""
    rehash(root)
    record = read_record(root)
    record.update(claims(root, record["files"], record["model"], len(record["classes"])))
    write_card(root, record)
    write_record(root, {**record, "files": hash_files(root)})


def run_module(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    """``python -m tinyforge_device`` as on the device: in the bundle's folder, by the copy that travels with it."""
    return subprocess.run(
        [sys.executable, "-m", "tinyforge_device", *arguments], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def built_bundle(tmp_path_factory) -> Path:
    """Read-only."""
    return build_bundle(tmp_path_factory.mktemp("built") / "colour-generic-cpu")


@pytest.fixture
def bundle_path(built_bundle, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(built_bundle, tmp_path / "colour-generic-cpu"))
