from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tinyforge.compress.embed import embed, embedded_onnx, pixel_spec, table
from tinyforge.compress.export import convert_openvino, export_onnx, save_openvino
from tinyforge.compress.metadata import model_metadata
from tinyforge.device.preprocess import normalise
from tinyforge.device.runtime import RuntimeFault, open_session
from tinyforge.device.spec import InputSpec

SPEC = InputSpec(size=(16, 16), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
EVERY_VALUE = np.arange(3 * 256, dtype=np.int64).astype(np.uint8).reshape(1, 16, 16, 3)


def identity(path: Path, shape: list) -> Path:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name in ("images", "logits")
    ]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["logits"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_graph_normalises_bit_for_bit(tmp_path: Path, runtime: str, layout: str):
    spec = replace(SPEC, layout=layout)
    metadata = model_metadata("identity", ["a", "b"], pixel_spec(spec))
    path = identity(tmp_path / "model.onnx", [3, 16, 16] if layout == "NCHW" else [16, 16, 3])
    if runtime == "openvino":
        path = save_openvino(convert_openvino(path), tmp_path / "model.xml", fp16=True, metadata=metadata)
    embed(path, spec, metadata)
    np.testing.assert_array_equal(open_session(path, runtime, 1).run(EVERY_VALUE), normalise(EVERY_VALUE, spec))


def test_the_table_holds_every_pixel_value():
    found = table(SPEC).reshape(3, 256)
    np.testing.assert_array_equal(found[1], normalise(np.full((1, 1, 256, 3), np.arange(256, dtype=np.uint8)[:, None]),
                                                      replace(SPEC, layout="NHWC"))[0, 0, :, 1])  # fmt: skip


@pytest.mark.parametrize("kind", ["onnx-int8", "openvino-int8", "openvino-fp16"])
def test_embedded_models_answer_as_before_and_refuse_floats(made, digits, spec, classes, tmp_path: Path, kind: str):
    variant = made.variants[kind]
    for file in variant.files:
        (tmp_path / file).write_bytes((made.folder / file).read_bytes())
    path = tmp_path / variant.files[0]
    embed(path, spec, model_metadata("digits", classes, pixel_spec(spec)))
    before, after = (open_session(folder / path.name, variant.runtime, 1) for folder in (made.folder, tmp_path))
    np.testing.assert_array_equal(after.run(digits.rgb[1000:1010]), before.run(digits.inputs[1000:1010]))
    with pytest.raises(RuntimeFault, match="uint8"):
        after.run(digits.inputs[:1])
    assert '"dtype": "uint8"' in after.metadata()["input"]


def test_the_model_api_is_not_told_to_normalise_again(classes):
    inside = model_metadata("digits", classes, pixel_spec(SPEC))["model_info"]
    assert "mean_values" not in inside
    assert "mean_values" in model_metadata("digits", classes, SPEC)["model_info"]


def test_device_preprocessing_hands_pixels_through(digits, spec):
    assert normalise(digits.rgb[:2], pixel_spec(spec)) is not None
    np.testing.assert_array_equal(normalise(digits.rgb[:2], pixel_spec(spec)), digits.rgb[:2])
    with pytest.raises(ValueError, match="uint8 needs layout NHWC"):
        InputSpec(size=(8, 8), dtype="uint8")


def test_an_embedded_graph_is_still_checked(student, spec, metadata, tmp_path: Path):
    path = export_onnx(student, spec, tmp_path / "m.onnx", opset=18, metadata=metadata)
    onnx.checker.check_model(embedded_onnx(onnx.load(path), spec), full_check=True)
