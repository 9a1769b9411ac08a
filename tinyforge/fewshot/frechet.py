"""Fréchet distance between two sets of images in a feature space of one's choice.

Source: Heusel et al. 2017, arXiv 1706.08500; torchmetrics' FrechetInceptionDistance does the arithmetic.
"""

import torch
from torch import Tensor, nn


class Given(nn.Module):
    """Stands where torchmetrics wants a feature extractor: the features were computed before, once for all metrics."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, synthetic: Tensor) -> float | None:
    """Between Gaussians fitted to features (n, D) and (m, D); None where either has fewer than two.

    It is biased upwards when n or m is not far above D: compare values of equal n and m only.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(real), len(synthetic)) < 2:
        return None
    metric = FrechetInceptionDistance(feature=Given(real.shape[1]))
    metric.update(real.to(torch.float64), real=True)
    metric.update(synthetic.to(torch.float64), real=False)
    return float(metric.compute())
