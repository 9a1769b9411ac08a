import pytest
import torch

from tinyforge.diffusion.backbone import Backbone, tiny_backbone


@pytest.fixture(scope="session")
def tiny() -> Backbone:
    """A random Stable Diffusion of the real classes."""
    return tiny_backbone(seed=0)


@pytest.fixture(scope="session")
def tiny64() -> Backbone:
    """The same in double precision, where 'equal to rounding' can be told from 'nearly equal'."""
    return tiny_backbone(seed=0, dtype="float64")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(7))
