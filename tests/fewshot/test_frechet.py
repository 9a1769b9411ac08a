"""The Fréchet distance against its closed form."""

import pytest
import torch

from tinyforge.fewshot.frechet import frechet_distance


def draws(seed: int, count: int = 20_000) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_set_is_no_distance_from_itself():
    assert frechet_distance(draws(0), draws(0)) == pytest.approx(0.0, abs=1e-6)


def test_gaussians_have_their_known_distance():
    """|mean difference|^2 + sum of (sd - sd')^2 for axis-aligned Gaussians."""
    scale, shift = torch.tensor([1.0, 2.0, 0.5, 1.0]), torch.tensor([1.0, 0.0, 0.0, -1.0])
    assert frechet_distance(draws(0), draws(1) * scale + shift) == pytest.approx(2 + 1 + 0.25, rel=0.05)


def test_a_single_image_has_no_distribution():
    assert frechet_distance(draws(0, 1), draws(1)) is None
