import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from tinyforge.compress.export import clean_onnx, export_onnx
from tinyforge.compress.parity import compare, infer, torch_logits
from tinyforge.device.runtime import open_session
from tinyforge.device.spec import InputSpec
from tinyforge.errors import GateError

OPSET = 18


def test_onnx_answers_as_torch_at_any_batch_size(made, digits, student_logits):
    session = open_session(made.folder / "onnx-fp32.onnx", "onnxruntime", 1)
    inputs = digits.inputs[1000:1050]
    for batch_size in (1, 7, 50):
        parity = compare(student_logits[:50], infer(session, inputs, batch_size))
        assert parity.max_abs_error < 1e-4
        assert parity.agreement == 1.0


def test_openvino_fp16_answers_as_torch(made, digits, student_logits):
    session = open_session(made.folder / "openvino-fp16.xml", "openvino", 1)
    parity = compare(student_logits[:100], infer(session, digits.inputs[1000:1100]))
    assert 0 < parity.relative_error < 5e-3
    assert parity.agreement >= 0.99


def test_onnx_is_one_checked_file_without_a_trace_of_this_machine(made):
    path = made.folder / "onnx-fp32.onnx"
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not [tensor.name for tensor in model.graph.initializer if tensor.HasField("data_location")]
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for name in ("onnx-fp32.onnx", "onnx-int8.onnx", "openvino-fp16.xml", "openvino-int8.xml"):
        content = (made.folder / name).read_bytes()
        for trace in (b"site-packages", os.fsencode(made.folder), b"stack_trace", b'File "'):
            assert trace not in content, (name, trace)


def test_only_the_models_are_left_in_the_folder(made):
    files = [file for variant in made.variants.values() for file in variant.files]
    assert sorted(path.name for path in made.folder.iterdir()) == sorted(files)
    assert {name: one.model_bytes for name, one in made.variants.items()} == {
        name: sum((made.folder / file).stat().st_size for file in one.files) for name, one in made.variants.items()
    }


def test_classes_and_input_are_in_every_model_file(made, classes, spec):
    for variant in made.variants.values():
        found = open_session(made.folder / variant.files[0], variant.runtime, 1).metadata()
        assert json.loads(found["classes"]) == classes
        assert InputSpec.from_json(json.loads(found["input"])) == spec


def test_model_api_keys_are_in_both_formats(made, metadata):
    import openvino

    in_onnx = {entry.key: entry.value for entry in onnx.load(made.folder / "onnx-int8.onnx").metadata_props}
    in_openvino = openvino.Core().read_model(made.folder / "openvino-int8.xml").get_rt_info(["model_info"]).value
    assert in_onnx["model_info model_type"] == str(in_openvino["model_type"]) == "Classification"
    for key, value in metadata["model_info"].items():
        assert in_onnx[f"model_info {key}"] == value
        assert str(in_openvino[key]) == value
    assert metadata["model_info"]["labels"].split() == [*"012345678", "nine_&_<nine>"]
    assert metadata["model_info"]["mean_values"] == "127.5 127.5 127.5"


def test_channels_last_input_gives_the_same_answers(made, student, digits, spec, metadata, tmp_path: Path):
    packed_spec = InputSpec(size=spec.size, layout="NHWC")
    path = export_onnx(student, packed_spec, tmp_path / "nhwc.onnx", opset=OPSET, metadata=metadata)
    images = digits.inputs[:20]
    planar = infer(open_session(made.folder / "onnx-fp32.onnx", "onnxruntime", 1), images)
    packed = infer(open_session(path, "onnxruntime", 1), np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(packed, planar, atol=1e-5)


def test_export_leaves_the_student_as_it_was(student, spec, metadata, tmp_path: Path):
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert student.training
    export_onnx(student, spec, tmp_path / "model.onnx", opset=OPSET, metadata=metadata)
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_an_opset_that_the_exporter_cannot_give_is_an_error(spec, metadata, tmp_path: Path):
    class Newer(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.gelu(images).mean(dim=(2, 3))

    with pytest.raises(GateError, match="opset"):
        export_onnx(Newer(), spec, tmp_path / "model.onnx", opset=99, metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_cleaning_keeps_the_function(made):
    model = onnx.load(made.folder / "onnx-fp32.onnx")
    model.graph.node[0].doc_string = "somewhere.py, line 3"
    model.graph.node[0].metadata_props.add(key="stack_trace", value="x")
    bare = onnx.load(made.folder / "onnx-fp32.onnx")
    for one in (model, bare):
        clean_onnx(one)
    assert model.SerializeToString(deterministic=True) == bare.SerializeToString(deterministic=True)


SCRIPT = """
import runpy, sys, torch, numpy as np
from pathlib import Path
from safetensors.torch import load_file
from tinyforge.compress.calibration import Calibration, Prepared
from tinyforge.compress.ladder import Validation
from tinyforge.compress.variants import make_variants
from tinyforge.recipe import Compress
torch.set_num_threads(1)
shared, folder = runpy.run_path(sys.argv[1]), Path(sys.argv[2])
student = shared["small_network"]()
student.load_state_dict(load_file(folder / "student.safetensors"))
images, supports, inputs, labels, logits = (np.load(folder / f"{n}.npy") for n in range(5))
spec = shared["SPEC"]
make_variants(
    student, spec, shared["CLASSES"], folder / "models", name="digits", opset=18, settings=Compress(),
    calibration=Calibration(Prepared(images, spec), Prepared(supports, spec)),
    validation=Validation(inputs, labels, logits),
)
"""


def test_same_inputs_same_bytes_in_another_process_and_folder(made, student, calibration, validation, tmp_path: Path):
    """A resumed build must end with the same bytes: another hash seed, folder, and counters."""
    save_file(student.state_dict(), tmp_path / "student.safetensors")
    rows = (calibration.inputs.images, calibration.supports.images, validation.inputs, validation.labels)
    for number, array in enumerate((*rows, validation.logits)):
        np.save(tmp_path / f"{number}.npy", array)
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).with_name("conftest.py")), str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    here, there = _bytes(made.folder), _bytes(tmp_path / "models")
    assert [name for name in here if here[name] != there.get(name)] == []
    assert len(here) == len(there) == 6


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_torch_logits_restores_the_mode_and_does_not_depend_on_the_batch(student, digits):
    assert student.training
    few = torch_logits(student, digits.inputs[:10], batch_size=3)
    np.testing.assert_allclose(few, torch_logits(student, digits.inputs[:10]), atol=1e-5)
    assert student.training
