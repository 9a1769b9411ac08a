"""Quantisation-aware training: the student learns from soft labels while its weights and activations are rounded.

Batch norm keeps its statistics, so rounding a convolution's weight per output channel is rounding the folded one: what
the runtimes' quantisers do with the exported student afterwards.
Source: Jacob et al. 2018, arXiv 1712.05877; Bengio et al. 2013, arXiv 1308.3432 (straight-through gradient).
Differs: activation ranges are calibrated once and stay.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

LAYERS = (nn.Conv2d, nn.Linear)
LR, BATCH_SIZE, TEMPERATURE = 2e-4, 32, 2.0


def round_to(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """x rounded to (q - zero) * scale with whole q in [low, high]; the gradient passes through inside that range."""
    levels = x / scale + zero
    inside = levels.clamp(low, high)
    return (inside + (inside.round() - inside).detach() - zero) * scale


class RoundedWeight(nn.Module):
    """int8 per output channel, symmetric: scale = max |w| / 127."""

    def forward(self, weight: Tensor) -> Tensor:
        peak = weight.detach().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
        return round_to(weight, (peak / 127).clamp_min(1e-12), torch.zeros(()), -127, 127)


def tune(student: nn.Module, inputs: np.ndarray, soft: np.ndarray, *, steps: int, seed: int) -> nn.Module:
    """A copy of ``student`` whose answers survive int8, in eval mode.

    inputs: (n, 3, h, w) float32, prepared support and synthetic images. soft: (n, N) float32 logits of the teacher.
    """
    network = copy.deepcopy(student).to("cpu", torch.float32).eval()
    images, targets = torch.from_numpy(inputs), F.softmax(torch.from_numpy(soft) / TEMPERATURE, dim=1)
    generator = torch.Generator().manual_seed(seed)
    with rounded(network, images):
        optimizer = torch.optim.Adam(network.parameters(), LR)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        for _ in range(steps):
            chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
            answers = F.log_softmax(network(images[chosen]) / TEMPERATURE, dim=1)
            loss = F.kl_div(answers, targets[chosen], reduction="batchmean") * TEMPERATURE**2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network


@contextmanager
def rounded(network: nn.Module, images: Tensor) -> Iterator[None]:
    """While open, every layer of LAYERS sees rounded weights and a rounded input, in the ranges of ``images``."""
    layers = [module for module in network.modules() if isinstance(module, LAYERS)]
    ranges = input_ranges(network, layers, images)
    hooks = []
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", RoundedWeight())
        if layer in ranges:
            hooks.append(layer.register_forward_pre_hook(_rounding(*ranges[layer])))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


@torch.no_grad()
def input_ranges(network: nn.Module, layers: list[nn.Module], images: Tensor) -> dict[nn.Module, tuple[float, float]]:
    """(low, high) of each layer's input over the images, 0 included; layers that never ran are left out."""
    found: dict[nn.Module, tuple[float, float]] = {}

    def watch(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        low, high = found.get(layer, (0.0, 0.0))
        found[layer] = (min(low, float(given[0].min())), max(high, float(given[0].max())))

    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    for part in images.split(64):
        network(part)
    for hook in hooks:
        hook.remove()
    return found


def _rounding(low: float, high: float):
    scale = torch.tensor(max(high - low, 1e-12) / 255)
    zero = torch.round(-low / scale)

    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (round_to(given[0], scale, zero, 0, 255), *given[1:])

    return hook
