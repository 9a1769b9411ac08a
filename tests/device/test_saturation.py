"""An int8 model whose sums do not fit 16 bits, on a processor without VNNI: a real one, emulated instruction by
instruction (QEMU's Haswell), which runs ONNX Runtime's own kernels for it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinyforge.device.bundle import file_record, load_bundle
from tinyforge.device.selftest import GOLDEN_JSON, Model, run_selftest, write_golden

from .conftest import SPEC, metadata_of, read_record, reclaim, rehash, write_record

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
NAME = "onnx-int8"


def write_int8(path: Path, weight: int) -> None:
    """(B, 3, 8, 8) -> logits (B, 3): how much of each channel, by one int8 matrix product in QDQ form.

    Inputs in [-1, 1] become 0 to 255, so two products with weight 127 add up to at most 64,770; 32,767 fit 16 bits.
    """
    weights = np.zeros((192, 3), np.int8)
    for channel in range(3):
        weights[64 * channel : 64 * (channel + 1), channel] = weight
    arrays = {
        "flat": np.array([0, 192]),
        "x_scale": np.float32(2 / 255),
        "x_zero": np.uint8(0),
        "one": np.float32(1),
        "w": weights,
        "w_scale": np.float32(1 / weight),
        "w_zero": np.int8(0),
        "y_scale": np.float32(1),
        "y_zero": np.uint8(0),
    }
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Add", ["images", "one"], ["positive"]),
            node("Reshape", ["positive", "flat"], ["rows"]),
            node("QuantizeLinear", ["rows", "x_scale", "x_zero"], ["x8"]),
            node("DequantizeLinear", ["x8", "x_scale", "x_zero"], ["x"]),
            node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["weights"]),
            node("MatMul", ["x", "weights"], ["y"]),
            node("QuantizeLinear", ["y", "y_scale", "y_zero"], ["y8"]),
            node("DequantizeLinear", ["y8", "y_scale", "y_zero"], ["logits"]),
        ],
        "sums",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata_of())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def with_int8(root: Path, weight: int) -> Path:
    """The bundle at ``root`` shipping an int8 model, with golden vectors from here."""
    write_int8(root / f"model/{NAME}.onnx", weight)
    record = read_record(root)
    one = {"runtime": "onnxruntime", "precision": "int8", "files": [file_record(root, f"model/{NAME}.onnx")]}
    fp32 = record["model"]["variants"]["onnx-fp32"]
    write_record(root, {**record, "model": {"chosen": NAME, "variants": {NAME: one, "onnx-fp32": fp32}}})
    models = {
        name: Model(root / variant["files"][0]["path"], "onnxruntime", variant["precision"], 1)
        for name, variant in ((NAME, one), ("onnx-fp32", fp32))
    }
    images = {path.name: path.read_bytes() for path in sorted((root / "selftest").glob("*.png"))}
    write_golden(root, images, SPEC, models)
    reclaim(root)
    return root


def on_haswell(root: Path) -> tuple[int, dict]:
    """(exit code, outcome) of the bundle's own self-test on an emulated processor with AVX2 and no VNNI."""
    command = [QEMU, "-cpu", "Haswell", sys.executable, "-m", "tinyforge_device", "selftest", ".", "--json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="needs qemu-x86_64 (Debian: qemu-user-static)")
def test_saturation_is_named_on_a_processor_without_vnni(bundle_path):
    root = with_int8(bundle_path, 127)
    if json.loads((root / GOLDEN_JSON).read_text())["saturated"][NAME]:
        pytest.skip("this processor saturates itself")
    assert run_selftest(load_bundle(root)).ok
    code, outcome = on_haswell(root)
    assert code == 1
    assert [(fault["check"], fault["where"]) for fault in outcome["faults"]] == [("saturation", NAME)]
    assert "sums of int8 products saturate on this processor" in outcome["faults"][0]["message"]


@pytest.mark.slow
@pytest.mark.skipif(QEMU is None, reason="needs qemu-x86_64 (Debian: qemu-user-static)")
def test_weights_of_seven_bits_do_not_saturate_there(bundle_path):
    code, outcome = on_haswell(with_int8(bundle_path, 63))
    assert (code, outcome["faults"]) == (0, [])


def test_other_scales_are_found_as_the_models_own_fault(bundle_path):
    """Weights halved at an unchanged scale answer as a saturating sum would, yet nothing saturates in exact mode."""
    root = with_int8(bundle_path, 60)
    write_int8(root / f"model/{NAME}.onnx", 30)
    model = onnx.load(root / f"model/{NAME}.onnx")
    (scale,) = (one for one in model.graph.initializer if one.name == "w_scale")
    scale.CopyFrom(numpy_helper.from_array(np.asarray(np.float32(1 / 60)), "w_scale"))
    onnx.save(model, root / f"model/{NAME}.onnx")
    rehash(root)
    (fault,) = run_selftest(load_bundle(root)).faults
    assert (fault["check"], fault["where"]) == ("model", NAME)


def test_golden_answers_that_saturated_where_the_bundle_was_made(bundle_path):
    root = with_int8(bundle_path, 60)
    record = json.loads((root / GOLDEN_JSON).read_text())
    record["saturated"][NAME] = True
    (root / GOLDEN_JSON).write_text(json.dumps(record))
    path = root / "selftest/golden.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **{**arrays, f"logits_{NAME}": arrays[f"logits_{NAME}"] / 2})
    rehash(root)
    (fault,) = run_selftest(load_bundle(root)).faults
    assert fault["check"] == "saturation"
    assert "they saturated where the bundle was made" in fault["message"]
