"""Every kind of student passes through export and the ladder of both runtimes."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
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
SETTINGS = Compress(min_agreement=0.0, max_drop=1.0, qat_steps=2)  # the gates are tested elsewhere
RELATIVE_ERROR = {"fp32": 1e-4, "fp16": 1e-2}
STEPS = 50


def settle(student: nn.Module, x: torch.Tensor) -> nn.Module:
    """Batch norms learn the statistics of x (B, 3, h, w), so that activations are of ordinary size."""
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        student.train()(x[:256])
    return student.eval()


def digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (1797, 32, 32, 3) and labels, in a fixed random order."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    grey = np.round(images[order].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return np.repeat(grey.repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3), labels[order]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    smooth = np.random.default_rng(0).normal(size=(12, 32, 32, 3)).cumsum(axis=1).cumsum(axis=2)
    return np.clip(128 + 6 * smooth, 0, 255).astype(np.uint8)


def materials(student: nn.Module, pixels: np.ndarray, scratch, classes: list[str]):
    inputs = Prepared(pixels, SPEC).array()
    logits = torch_logits(student, inputs)
    return prepare_materials(
        student, SPEC, classes, scratch, name="task", opset=18, settings=SETTINGS,
        calibration=Calibration(Prepared(pixels, SPEC), Prepared(pixels[:4], SPEC)),
        validation=Validation(inputs, np.zeros(len(inputs), int), logits), teach=lambda: (inputs, logits),
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in STUDENTS]
)
def test_export_of_a_student_answers_as_torch(name: str, pixels, tmp_path):
    """Beside the same student in float64: of a net with many branches torch's own float32 is farther off than 1e-4."""
    torch.manual_seed(0)
    student = settle(build_student(name, 5, input_size=32), torch.from_numpy(Prepared(pixels, SPEC).array()))
    given = materials(student, pixels[:4], tmp_path, classes=list("abcde"))
    inputs = given.validation.inputs
    with torch.inference_mode():
        exact = deepcopy(student).double()(torch.from_numpy(inputs).double()).numpy()
    own = compare(exact, given.validation.logits).relative_error
    answers = infer(open_session(given.fp32, "onnxruntime", 1), inputs)
    assert own < 1e-3
    assert compare(exact, answers).relative_error < max(RELATIVE_ERROR["fp32"], own)


def taught(name: str, pixels: np.ndarray, labels: np.ndarray) -> nn.Module:
    """A student that has really learned a little: logits of random weights hardly differ between images."""
    torch.manual_seed(0)
    student = build_student(name, 10, input_size=32).train()
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    x, y = torch.from_numpy(Prepared(pixels, SPEC).array()), torch.from_numpy(labels)
    for step in range(STEPS):
        chosen = torch.arange(step * 32, step * 32 + 32) % len(y)
        optimizer.zero_grad()
        nn.functional.cross_entropy(student(x[chosen]), y[chosen]).backward()
        optimizer.step()
    return settle(student, x)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STUDENTS)
def test_every_rung_of_both_runtimes_makes_a_model_of_a_student(name: str, tmp_path):
    """Each rung makes a model that runs; fp32 and fp16 answer as torch does, an int8 model of each runtime nearly."""
    rgb, labels = digits()
    student = taught(name, rgb[64:], labels[64:])
    given = materials(student, rgb[:64], tmp_path, classes=[str(i) for i in range(10)])
    failed, best = {}, {}
    for kind, rungs in LADDERS.items():
        for number, (rung, make) in enumerate(rungs.items()):
            suffix = ".onnx" if kind.startswith("onnx") else ".xml"
            found = attempt(kind, rung, make, given, tmp_path / f"{kind}-{number}{suffix}")
            error = found.parity.relative_error if found.parity else np.nan
            if found.reason or not error <= RELATIVE_ERROR.get(found.precision, np.inf):
                failed[f"{kind}: {rung}"] = found.reason or error
            best[kind] = max(best.get(kind, 0.0), found.parity.agreement)
    assert failed == {}
    assert min(best.values()) >= 0.9, best
