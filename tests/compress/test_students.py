"""Every kind of student passes through export and the ladder of both runtimes."""

import numpy as np
import pytest
import torch
from torch import nn

from tinyforge.compress.calibration import Calibration, Prepared
from tinyforge.compress.ladder import LADDERS, Validation, attempt
from tinyforge.compress.parity import compare, infer, torch_logits
from tinyforge.compress.variants import prepare_materials
from tinyforge.device.runtime import open_session
from tinyforge.device.spec import InputSpec
from tinyforge.distill.students import build_student
from tinyforge.recipe import Compress

STUDENTS = (
    "conv4", "resnet12", "timm:mobilenetv3_small_050", "timm:mobilenetv4_conv_small_050", "timm:lcnet_050",
    "timm:tinynet_e", "timm:efficientvit_b0", "timm:repghostnet_050", "timm:mobileone_s0", "timm:resnet10t",
    "timm:edgenext_xx_small", "timm:ghostnet_050",
)  # fmt: skip
FAST = ("conv4", "resnet12", "timm:mobilenetv4_conv_small_050", "timm:tinynet_e", "timm:resnet10t", "timm:ghostnet_050")
SPEC = InputSpec(size=(32, 32))
SETTINGS = Compress(min_agreement=0.0, max_drop=1.0, qat_steps=2)  # random weights: an int8 flip says nothing
RELATIVE_ERROR = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.9}


def settled(name: str, pixels: np.ndarray) -> nn.Module:
    """A student of random weights whose batch norms know the images, so that its activations are of ordinary size."""
    torch.manual_seed(0)
    student = build_student(name, 5, input_size=32)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        student.train()(torch.from_numpy(Prepared(pixels, SPEC).array()))
    return student.eval()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    smooth = np.random.default_rng(0).normal(size=(12, 32, 32, 3)).cumsum(axis=1).cumsum(axis=2)
    return np.clip(128 + 6 * smooth, 0, 255).astype(np.uint8)


def materials_of(name: str, pixels: np.ndarray, scratch):
    student, inputs = settled(name, pixels), Prepared(pixels, SPEC).array()
    logits = torch_logits(student, inputs)
    return prepare_materials(
        student, SPEC, list("abcde"), scratch, name="task", opset=18, settings=SETTINGS,
        calibration=Calibration(Prepared(pixels, SPEC), Prepared(pixels[:4], SPEC)),
        validation=Validation(inputs, np.zeros(len(inputs), int), logits), teach=lambda: (inputs, logits),
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in STUDENTS]
)
def test_export_of_a_student_answers_as_torch(name: str, pixels, tmp_path):
    given = materials_of(name, pixels[:4], tmp_path)
    answers = infer(open_session(given.fp32, "onnxruntime", 1), given.validation.inputs)
    assert compare(given.validation.logits, answers).relative_error < RELATIVE_ERROR["fp32"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STUDENTS)
def test_every_rung_of_both_runtimes_makes_a_model_of_a_student(name: str, pixels, tmp_path):
    given, failed = materials_of(name, pixels, tmp_path), {}
    for kind, rungs in LADDERS.items():
        for number, (rung, make) in enumerate(rungs.items()):
            suffix = ".onnx" if kind.startswith("onnx") else ".xml"
            found = attempt(kind, rung, make, given, tmp_path / f"{kind}-{number}{suffix}")
            if found.reason or found.parity.relative_error > RELATIVE_ERROR[found.precision]:
                failed[f"{kind}: {rung}"] = found.reason or found.parity.relative_error
    assert failed == {}
