"""The few-shot teacher: a cosine classifier over all classes, then ProtoNet episodes; chosen on held-out classes.

Source: Snell et al. 2017, arXiv 1703.05175 (prototypes); Gidaris & Komodakis 2018, arXiv 1804.09458 and
Chen et al. 2020, arXiv 2003.04390 (cosine classifier, then episodes with logits = scale * cos).
Legend: B batch, N ways, K shots, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Class indices (B,) → fresh images (B, 3, S, S) in [0, 1]."""


class CosineClassifier(nn.Module):
    """network and one learned unit vector per class; logits = scale * cos."""

    def __init__(self, network: nn.Module, num_classes: int, width: int, scale: float = 20.0) -> None:
        super().__init__()
        self.network = network
        self.weight = nn.Parameter(torch.randn(num_classes, width) * 0.05)
        self.log_scale = nn.Parameter(torch.tensor(scale).log())

    def forward(self, x: Tensor) -> Tensor:
        features = F.normalize(self.network(x).float(), dim=-1)
        return self.log_scale.exp() * features @ F.normalize(self.weight, dim=-1).T


def prototype_logits(support: Tensor, query: Tensor, scale: float = 10.0) -> Tensor:
    """support (N, K, D), query (Q, D) → (Q, N): scale * cos(query, mean of the unit supports)."""
    prototypes = F.normalize(F.normalize(support, dim=-1).mean(1), dim=-1)
    return scale * F.normalize(query, dim=-1) @ prototypes.T


@dataclass(frozen=True)
class Stage:
    """Which steps are episodes: all but the first `supervised`, which are classification."""

    supervised: int
    batch: int = 128
    ways: int = 20
    queries: int = 4


def classification_loss(model: CosineClassifier, images: Tensor, labels: Tensor, smoothing: float = 0.05) -> Tensor:
    """Cross-entropy over all base classes."""
    return F.cross_entropy(model(images), labels, label_smoothing=smoothing)


def episode_loss(model: CosineClassifier, images: Tensor, ways: int, shots: int, scale: float = 10.0) -> Tensor:
    """images (ways * (shots + queries), 3, S, S), class by class → cross-entropy of the queries."""
    features = model.network(images).float()
    features = features.reshape(ways, -1, features.shape[-1])
    query = features[:, shots:].flatten(0, 1)
    labels = torch.arange(ways, device=images.device).repeat_interleave(features.shape[1] - shots)
    return F.cross_entropy(prototype_logits(features[:, :shots], query, scale), labels)


def loss_function(
    draw: Draw, weights: Tensor, stage: Stage, normalise: Callable[[Tensor], Tensor], device: str = "cpu"
) -> Callable[[nn.Module, int, torch.Generator], Tensor]:
    """The loss of a step, for loop.train. weights (C,): how often each class is drawn."""

    def loss_of(model: nn.Module, step: int, gen: torch.Generator) -> Tensor:
        episodic = step >= stage.supervised
        if not episodic:
            labels = torch.multinomial(weights, stage.batch, replacement=True, generator=gen)
            return classification_loss(model, normalise(draw(labels, gen)).to(device), labels.to(device))
        shots = 1 if torch.rand((), generator=gen) < 0.6 else 5
        per = shots + stage.queries
        ways = max(2, stage.batch // per) if shots == 1 else stage.ways
        chosen = torch.multinomial(weights, min(ways, int((weights > 0).sum())), generator=gen)
        labels = chosen.repeat_interleave(per)
        images = normalise(draw(labels, gen)).to(device)
        return episode_loss(model, images, len(chosen), shots)

    return loss_of


@torch.no_grad()
def few_shot(
    network: nn.Module,
    images: Sequence[Tensor],
    normalise: Callable[[Tensor], Tensor],
    *,
    ways: int,
    shots: int,
    episodes: int,
    queries: int,
    seed: int,
) -> Tensor:
    """Held-out classes as image stacks → accuracy of each episode (episodes,); one seed, one list of episodes."""
    gen = torch.Generator().manual_seed(seed)
    network.eval()
    features = [torch.cat([network(normalise(part)) for part in stack.split(256)]) for stack in images]
    scores = []
    for _ in range(episodes):
        chosen = torch.randperm(len(features), generator=gen)[:ways].tolist()
        picks = [torch.randperm(len(features[c]), generator=gen)[: shots + queries] for c in chosen]
        support = torch.stack([features[c][p[:shots]] for c, p in zip(chosen, picks, strict=True)])
        query = torch.cat([features[c][p[shots:]] for c, p in zip(chosen, picks, strict=True)])
        labels = torch.arange(ways).repeat_interleave(queries)
        scores.append((prototype_logits(support, query).argmax(1) == labels).float().mean())
    return torch.stack(scores)
