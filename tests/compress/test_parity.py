import re
from dataclasses import replace

import numpy as np
import pytest

from tinyforge.compress.parity import Drop, Parity, accuracy_drop, compare, gate, require_fp32, torch_logits
from tinyforge.compress.variants import measure
from tinyforge.device.spec import InputSpec
from tinyforge.errors import GateError
from tinyforge.recipe import Compress

SPEC = InputSpec(size=(16, 16))
SETTINGS = Compress(max_drop=0.01, min_agreement=0.95, max_abs_error=1e-3)
GOOD = Parity(num_images=200, max_abs_error=1e-5, relative_error=1e-5, agreement=1.0, worst_image=0)


def test_equal_logits_have_no_error():
    logits = np.random.default_rng(0).normal(size=(5, 3))
    assert compare(logits, logits) == Parity(5, 0.0, 0.0, 1.0, 0)


def test_error_agreement_and_worst_image():
    reference = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    answers = reference.copy()
    answers[2] = [0.0, 3.0]
    found = compare(reference, answers)
    assert (found.max_abs_error, found.agreement, found.worst_image) == (3.0, 0.75, 2)
    assert found.relative_error == pytest.approx(np.sqrt(18 / 8) / reference.std())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-int8", "openvino-fp16"])
def test_answers_that_are_not_finite_fail_every_gate(value: float, name: str):
    reference = np.eye(3)
    answers = reference.copy()
    answers[1, 1] = value
    found = compare(reference, answers)
    assert found.max_abs_error == np.inf
    assert gate(name, found, None, SETTINGS)


def test_logits_that_cannot_be_compared():
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(np.zeros((0, 3)), np.zeros((0, 3)))


def test_accuracy_drop_is_paired():
    labels = np.array([0, 1, 0, 1] * 25)
    reference = np.eye(2)[labels]
    answers = reference.copy()
    answers[:3] = answers[:3, ::-1]
    found = accuracy_drop(reference, answers, labels)
    assert (found.num_images, found.drop) == (100, 0.03)
    assert -0.02 < found.low < 0.03 < found.high < 0.12
    assert accuracy_drop(answers, reference, labels).drop == -0.03


@pytest.mark.parametrize(
    ("name", "parity", "drop", "reason"),
    [
        ("onnx-fp32", GOOD, None, ""),
        ("onnx-fp32", replace(GOOD, max_abs_error=2e-3), None, "logit error"),
        ("openvino-fp16", replace(GOOD, max_abs_error=2e-3), None, ""),
        ("openvino-fp16", replace(GOOD, agreement=0.94), None, "agrees with the student on 94.0% of 200"),
        ("onnx-int8", replace(GOOD, agreement=0.95), Drop(200, 0.01, -0.01, 0.03), ""),
        ("onnx-int8", GOOD, Drop(200, 0.015, -0.01, 0.04), r"loses 1.5% accuracy \[-1.0%, 4.0%\] on 200 images"),
        ("onnx-int8", GOOD, Drop(200, -0.5, -0.6, -0.4), ""),
    ],
)
def test_gates(name: str, parity: Parity, drop: Drop | None, reason: str):
    assert re.fullmatch(f".*{reason}.*" if reason else "", gate(name, parity, drop, SETTINGS))


def test_only_the_fp32_export_must_pass():
    require_fp32("onnx-int8", "some reason")
    require_fp32("onnx-fp32", "")
    with pytest.raises(GateError, match="onnx-fp32: the export does not answer"):
        require_fp32("onnx-fp32", "some reason")


def test_a_wrong_fp32_export_is_an_error_and_a_wrong_int8_is_measured(made, digits, untrained):
    pixels, labels = digits.rgb[1000:1040], digits.labels[1000:1040]
    other = torch_logits(untrained, digits.inputs[1000:1040])
    with pytest.raises(GateError, match="onnx-fp32"):
        measure(made.variants["onnx-fp32"], made.folder, other, pixels, SPEC, SETTINGS, labels=labels, threads=1)
    found = measure(made.variants["onnx-int8"], made.folder, other, pixels, SPEC, SETTINGS, labels=labels, threads=1)
    assert found.parity.agreement < 0.5
    assert found.drop.drop < -0.3  # the quantised, trained student is better than the untrained one
    assert found.to_json()["parity"]["num_images"] == 40


def test_a_variant_that_could_not_be_made_keeps_its_reason(made, digits):
    failed = replace(made.variants["onnx-int8"], failure="no rung passed", files=())
    found = measure(failed, made.folder, np.zeros((1, 10)), digits.rgb[:1], SPEC, SETTINGS, labels=None, threads=1)
    assert (found.reason, found.parity, found.logits) == ("no rung passed", None, None)
