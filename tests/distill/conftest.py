"""A toy task that small networks learn in a second: coloured bars, and an extractor that sees colour."""

import numpy as np
import pytest
import torch
from torch import nn

from tinyforge.device.spec import InputSpec
from tinyforge.distill.extractor import as_extractor

COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]])
SPEC = InputSpec(size=(16, 16))


def toy_images(per_class: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """3 classes by colour of a bar at a random height on noise; uint8 (16, 16, 3)."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for label, colour in enumerate(COLOURS):
        for _ in range(per_class):
            rgb = rng.integers(90, 160, (16, 16, 3))
            top = rng.integers(2, 8)
            rgb[top : top + 6] = colour + rng.integers(-25, 25, (6, 16, 3))
            images.append(rgb.astype(np.uint8))
            labels.append(label)
    return images, np.array(labels)


class TinyExtractor(nn.Module):
    """Convolution, batch norm, mean over space: (B, 3, h, w) -> (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean(dim=(2, 3))


@pytest.fixture
def extractor():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return as_extractor(TinyExtractor(), SPEC, "tiny")
