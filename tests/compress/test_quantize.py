import hashlib
from pathlib import Path

import onnx
import pytest

from tinyforge.compress.parity import Parity
from tinyforge.compress.quantize import (
    NNCF_METHODS,
    ORT_METHODS,
    Calibration,
    Tried,
    best_method,
    quantize_onnx,
    quantize_openvino,
)
from tinyforge.compress.variants import judge
from tinyforge.errors import GateError
from tinyforge.recipe import Compress


@pytest.mark.parametrize("name", ["onnx-int8", "openvino-int8"])
def test_int8_keeps_the_answers_and_is_smaller(made, digits, student_logits, name: str):
    labels = digits.labels[1000:]
    verdict = judge(
        made.variants[name], made.folder, student_logits, digits.inputs[1000:], Compress(), labels=labels, threads=1
    )
    assert verdict.reason == ""
    assert verdict.parity.agreement >= 0.97
    assert verdict.parity.num_images == verdict.drop.num_images == len(labels)
    assert verdict.drop.low <= verdict.drop.drop <= verdict.drop.high
    assert (verdict.logits.argmax(axis=1) == labels).mean() > 0.85
    weights = made.folder / made.variants[name].files[-1]
    assert weights.stat().st_size < 0.6 * (made.folder / "onnx-fp32.onnx").stat().st_size


def test_int8_onnx_is_quantised_throughout(made):
    model = onnx.load(made.folder / "onnx-int8.onnx")
    kinds = [node.op_type for node in model.graph.node]
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2]
    assert kinds.count("QuantizeLinear") >= 4
    assert weights
    assert all(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights)


@pytest.mark.parametrize(("name", "methods"), [("onnx-int8", ORT_METHODS), ("openvino-int8", NNCF_METHODS)])
def test_everything_tried_is_recorded_and_the_best_is_kept(made, name: str, methods: dict):
    tried = made.variants[name].tried
    assert [one.method for one in tried] == list(methods)
    assert [one.kept for one in tried].count(True) == 1
    kept = next(one for one in tried if one.kept)
    assert kept.supports.agreement == max(one.supports.agreement for one in tried)
    assert kept.supports.num_images == 20
    assert kept.calibration.num_images == 100


def parity(agreement: float, error: float = 0.1) -> Parity:
    return Parity(10, error, error, agreement, 0)


@pytest.mark.parametrize(
    ("tried", "best"),
    [
        ([Tried("a", parity(0.9), parity(1.0)), Tried("b", parity(1.0), parity(0.8))], 1),
        ([Tried("a", parity(1.0), parity(0.8)), Tried("b", parity(1.0), parity(0.9))], 1),
        ([Tried("a", parity(1.0), parity(0.9, 0.2)), Tried("b", parity(1.0), parity(0.9, 0.1))], 1),
        ([Tried("a", failure="no"), Tried("b", parity(0.1), parity(0.1))], 1),
        ([Tried("a", failure="no")], None),
    ],
)
def test_supports_rank_before_calibration_before_error(tried: list[Tried], best: int | None):
    assert best_method(tried) == best


def test_a_method_that_fails_is_recorded_and_the_other_kept(made, calibration, metadata, tmp_path: Path):
    methods = {"broken": {"per_channel": True, "calibration": "NoSuch"}, **ORT_METHODS}
    tried = quantize_onnx(
        made.folder / "onnx-fp32.onnx", tmp_path / "int8.onnx", calibration, metadata, methods=methods
    )
    assert "NoSuch" in tried[0].failure
    assert not tried[0].kept
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def test_when_every_method_fails_it_is_an_error_and_nothing_is_left(made, calibration, metadata, tmp_path: Path):
    with pytest.raises(GateError, match="broken: KeyError"):
        quantize_openvino(
            made.folder / "onnx-fp32.onnx",
            tmp_path / "int8.xml",
            calibration,
            metadata,
            methods={"broken": {"preset": "NoSuch", "fast_bias_correction": True}},
        )
    assert not list(tmp_path.iterdir())


def test_quantisers_write_nothing_on_stdout(
    made, calibration, metadata, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    few = Calibration(calibration.images[:8], calibration.supports[:4])
    methods = {"fast": NNCF_METHODS["mixed, fast bias correction"]}
    quantize_openvino(made.folder / "onnx-fp32.onnx", tmp_path / "int8.xml", few, metadata, methods=methods)
    quantize_onnx(made.folder / "onnx-fp32.onnx", tmp_path / "int8.onnx", few, metadata)
    assert capfd.readouterr().out == ""


def test_calibration_hashes_tell_inputs_apart(calibration):
    hashes = calibration.hashes()
    assert len(hashes) == 100
    assert hashes[3] == hashlib.sha256(calibration.images[3].tobytes()).hexdigest()
    assert Calibration(calibration.images + 1, calibration.supports).hashes()[3] != hashes[3]
