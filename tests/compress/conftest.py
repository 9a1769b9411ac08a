"""A small network with batch norm, really trained on real digits, and every model made of it, once per session."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from tinyforge.compress.calibration import Calibration, Prepared
from tinyforge.compress.ladder import Materials, Validation
from tinyforge.compress.metadata import model_metadata
from tinyforge.compress.parity import torch_logits
from tinyforge.compress.variants import Variant, make_variants, prepare_materials
from tinyforge.device.preprocess import normalise, resize
from tinyforge.device.spec import InputSpec
from tinyforge.recipe import Compress

CLASSES = [*"012345678", "nine & <nine>"]
SPEC = InputSpec(size=(16, 16))
OPSET = 18


@dataclass(frozen=True)
class Digits:
    """rgb: uint8 (n, 16, 16, 3). inputs: (n, 3, 16, 16) as the student sees them. labels: (n,)."""

    rgb: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray

    def png(self, index: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(self.rgb[index]).save(stream, "PNG")
        return stream.getvalue()


@dataclass(frozen=True)
class Made:
    folder: Path
    variants: dict[str, Variant]


@pytest.fixture(scope="session")
def classes() -> list[str]:
    return CLASSES


@pytest.fixture(scope="session")
def spec() -> InputSpec:
    return SPEC


@pytest.fixture(scope="session")
def metadata() -> dict[str, dict[str, str]]:
    return model_metadata("digits", CLASSES, SPEC)


@pytest.fixture(scope="session")
def untrained() -> nn.Module:
    return small_network()


@pytest.fixture(scope="session")
def digits() -> Digits:
    data = load_digits()
    grey = np.repeat((data.images * 255 / 16).round().astype(np.uint8)[..., None], 3, axis=3)
    rgb = np.stack([resize(image, SPEC) for image in grey])
    return Digits(rgb, normalise(rgb, SPEC), data.target)


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    blocks = [_block(*channels) for channels in ((3, 16), (16, 24), (24, 24))]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(24 * 2 * 2, 10))


def _block(channels_in: int, channels_out: int) -> nn.Module:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU(), nn.MaxPool2d(2))


@pytest.fixture(scope="session")
def student(digits: Digits) -> nn.Module:
    """Trained on the first 1,000 digits; left in training mode, as a training loop leaves it."""
    network = small_network()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.from_numpy(digits.inputs), torch.from_numpy(digits.labels)
    for _ in range(120):
        chosen = torch.randint(1000, (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()
    return network


@pytest.fixture(scope="session")
def calibration(digits: Digits) -> Calibration:
    return Calibration(Prepared(digits.rgb[:60], SPEC), Prepared(digits.rgb[:20], SPEC))


@pytest.fixture(scope="session")
def validation(student: nn.Module, digits: Digits) -> Validation:
    return Validation(digits.inputs[800:1000], digits.labels[800:1000], torch_logits(student, digits.inputs[800:1000]))


@pytest.fixture(scope="session")
def materials(student, calibration, validation, tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """What every rung may use, in a folder of its own; the gate is Compress's default."""
    scratch = tmp_path_factory.mktemp("scratch")
    images = calibration.inputs.array()
    return prepare_materials(
        student, SPEC, CLASSES, scratch, name="digits", opset=OPSET, calibration=calibration, validation=validation,
        settings=Compress(qat_steps=20), teach=lambda: (images, torch_logits(student, images)),
    )  # fmt: skip


@pytest.fixture(scope="session")
def student_logits(student: nn.Module, digits: Digits) -> np.ndarray:
    return torch_logits(student, digits.inputs[1000:])


@pytest.fixture(scope="session")
def made(student, calibration, validation, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("models")
    variants = make_variants(
        student, SPEC, CLASSES, folder, name="digits", opset=OPSET,
        calibration=calibration, validation=validation, settings=Compress(),
    )  # fmt: skip
    return Made(folder, {one.name: one for one in variants})
