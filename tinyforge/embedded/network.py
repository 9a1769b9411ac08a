"""The small embedding network of the embedded teacher, and the loader of a teacher folder.

Legend: B batch, D embedding width. Input: normalised RGB (B, 3, 32, 32); output: features (B, D), not normalised.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def _unit(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out))


class Residual(nn.Module):
    """conv-BN-ReLU-conv-BN plus shortcut, ReLU. Source: He et al. 2015, arXiv 1512.03385."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _unit(channels_in, channels_out, stride), _unit(channels_out, channels_out)
        same = channels_in == channels_out and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
                nn.Conv2d(channels_in, channels_out, 1, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class GlyphNet(nn.Module):
    """A ResNet that works at half resolution from the first convolution on: glyphs are drawn with 8 … 16 px of detail.

    The features are the average over positions of the last stage, and of its 2 x 2 quadrants when `quadrants`: where a
    stroke is matters for characters.
    """

    def __init__(self, widths: tuple[int, ...] = (48, 96, 192), depth: int = 2, embedding_dim: int = 256) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for i in range(depth):
                blocks.append(Residual(before, width, 2 if stage and not i else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before * 4, embedding_dim)
        self.embedding_dim = embedding_dim

    def maps(self, x: Tensor) -> list[Tensor]:
        """What comes out of every residual block, (B, C, h, w) each."""
        found, x = [], self.stem(x)
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.maps(x)[-1], 2).flatten(1))


ARCHITECTURES: dict[str, type[nn.Module]] = {"GlyphNet": GlyphNet}


def build(architecture: str, kwargs: dict[str, Any]) -> nn.Module:
    """ "embedded:<ClassName>" or "timm:<model>" → a network giving (B, D) features."""
    kind, _, name = architecture.partition(":")
    if kind == "embedded" and name in ARCHITECTURES:
        return ARCHITECTURES[name](**kwargs)
    if kind == "timm":
        import timm

        return timm.create_model(name, **kwargs)
    raise ValueError(f"unknown architecture {architecture!r}: use timm:<model> or embedded:{'|'.join(ARCHITECTURES)}")


def load_teacher_network(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A teacher folder (config.json, model.safetensors) → the network in eval mode, float32, and its config."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    network = build(config["architecture"], config.get("kwargs", {}))
    weights = {
        name: value.float() if value.is_floating_point() else value
        for name, value in load_file(folder / "model.safetensors").items()
    }
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False), config
