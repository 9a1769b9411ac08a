"""Random views of images, a whole batch at once on [0, 1] tensors (B, 3, H, W), every draw from a given CPU generator.

Each function returns a new tensor of the same shape within [0, 1]. Equal generators give equal views on every device.
Sources: Simard et al. 2003 (elastic); DeVries & Taylor 2017, arXiv 1708.04552 (cutout); Zhao et al. 2020, arXiv
2006.10738 (DiffAugment), with the strengths of P>M>F (Hu et al. 2022, arXiv 2204.07305).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Strength:
    """Half-widths of uniform draws. rotate: degrees. scale, shear, brightness, contrast, saturation: relative. shift:
    share of the side. elastic: share of the side. blur, cutout: probability. cutout_side: largest share of the side.
    """

    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    blur: float = 0.0
    cutout: float = 0.0
    cutout_side: float = 0.35


STRENGTHS = {
    "none": Strength(),
    "light": Strength(rotate=8, scale=0.08, shift=0.06, brightness=0.1, contrast=0.1),
    "strong": Strength(
        rotate=20, scale=0.2, shear=0.2, shift=0.1, elastic=0.06,
        brightness=0.35, contrast=0.6, saturation=0.3, blur=0.5, cutout=0.3,
    ),
}  # fmt: skip


class Drawn:
    """A source of uniform numbers that keeps what it gives, so that one image's share can be given again."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.kept: list[Tensor] = []

    def rand(self, *shape: int) -> Tensor:
        self.kept.append(torch.rand(*shape, generator=self.generator))
        return self.kept[-1]

    def row(self, index: int) -> "Row":
        return Row([one[index : index + 1] for one in self.kept])


class Row:
    """What was drawn for one image of a batch, in the same order."""

    def __init__(self, kept: Iterable[Tensor]):
        self.left = iter(kept)

    def rand(self, *shape: int) -> Tensor:
        return next(self.left)


Source = torch.Generator | Drawn | Row


def augment(x: Tensor, strength: Strength, generator: Source, flip: bool = False) -> Tensor:
    """One random view per image: geometry, light, blur, cutout, in this order. The input itself when nothing is
    asked.
    """
    if flip:
        x = random_flip(x, generator)
    if max(strength.rotate, strength.scale, strength.shear, strength.shift, strength.elastic) > 0:
        x = random_warp(x, strength, generator)
    if max(strength.brightness, strength.contrast, strength.saturation) > 0:
        x = random_colour(x, strength.brightness, strength.contrast, strength.saturation, generator)
    if strength.blur > 0:
        x = random_blur(x, strength.blur, generator)
    if strength.cutout > 0:
        x = random_cutout(x, strength.cutout, strength.cutout_side, generator)
    return x


def random_warp(x: Tensor, s: Strength, generator: Source) -> Tensor:
    """Rotation, scale, shear, shift and a smooth displacement in one bilinear sampling; edges continue outwards."""
    batch, _, height, width = x.shape
    theta = affine_matrices(batch, s, generator).to(x.device)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    if s.elastic > 0:
        reach = 2 * s.elastic  # the side spans 2 in the grid's units
        coarse = (_rand(generator, batch, 2, 4, 4) * 2 - 1) * reach
        smooth = F.interpolate(coarse.to(x.device), size=(height, width), mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp(0, 1)


def affine_matrices(batch: int, s: Strength, generator: Source) -> Tensor:
    """(B, 2, 3) maps from output to input coordinates, each in [-1, 1]."""
    angle = _uniform(batch, s.rotate * math.pi / 180, generator)
    scale = torch.exp(_uniform(batch, math.log1p(s.scale), generator))
    aspect = torch.exp(_uniform(batch, math.log1p(s.scale) / 2, generator))
    shear = _uniform(batch, s.shear, generator)
    shift_x, shift_y = (_uniform(batch, 2 * s.shift, generator) for _ in range(2))
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [cos * scale * aspect, (cos * shear - sin) * scale / aspect, shift_x]
    rows += [sin * scale * aspect, (sin * shear + cos) * scale / aspect, shift_y]
    return torch.stack(rows, dim=1).view(batch, 2, 3)


def random_colour(x: Tensor, brightness: float, contrast: float, saturation: float, generator: Source) -> Tensor:
    """Added brightness, contrast about the image's mean, saturation about each pixel's grey."""
    batch = x.shape[0]
    shift, gain, colour = (
        _uniform(batch, half, generator).view(-1, 1, 1, 1).to(x.device) for half in (brightness, contrast, saturation)
    )
    if saturation > 0:
        grey = x.mean(dim=1, keepdim=True)
        x = grey + (x - grey) * (1 + colour)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return ((x - mean) * (1 + gain) + mean + shift).clamp(0, 1)


def random_blur(x: Tensor, probability: float, generator: Source) -> Tensor:
    """With this probability, a random mix of the image and its 3x3 binomial blur."""
    mix = _rand(generator, x.shape[0]) * _chosen(x.shape[0], probability, generator)
    row = torch.tensor([0.25, 0.5, 0.25], device=x.device)
    kernel = (row[:, None] * row[None, :]).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    return torch.lerp(x, blurred, mix.view(-1, 1, 1, 1).to(x.device)).clamp(0, 1)


def random_cutout(x: Tensor, probability: float, largest_side: float, generator: Source) -> Tensor:
    """With this probability, a random rectangle becomes the image's mean colour."""
    batch, _, height, width = x.shape
    inside_y = _span(batch, height, largest_side, generator)
    inside_x = _span(batch, width, largest_side, generator)
    chosen = _chosen(batch, probability, generator).bool()
    hole = (inside_y[:, None, :, None] & inside_x[:, None, None, :] & chosen.view(-1, 1, 1, 1)).to(x.device)
    return torch.where(hole, x.mean(dim=(2, 3), keepdim=True), x)


def random_flip(x: Tensor, generator: Source) -> Tensor:
    """Half of the images mirrored left-right."""
    mirrored = _chosen(x.shape[0], 0.5, generator).bool().view(-1, 1, 1, 1).to(x.device)
    return torch.where(mirrored, x.flip(3), x)


def diff_augment(x: Tensor, generator: Source, *, flip: bool = False, probability: float = 0.9) -> Tensor:
    """P>M>F's view of the support set: flip (if asked), colour, translation by up to 12.5 % with black behind, per
    image.

    Differs: drawn per image rather than per batch; pixels stay within [0, 1], so its brightness of +-0.5, meant for
    standardised pixels of a standard deviation near 0.22, is +-0.11.
    """
    batch, _, height, width = x.shape
    changed = _chosen(batch, probability, generator).bool().view(-1, 1, 1, 1).to(x.device)
    view = random_flip(x, generator) if flip else x
    view = random_colour(view, 0.11, 0.5, 1.0, generator)
    steps_y = (_uniform(batch, 0.125, generator) * height).round().long()
    steps_x = (_uniform(batch, 0.125, generator) * width).round().long()
    return torch.where(changed, translate(view, steps_y, steps_x), x)


def translate(x: Tensor, steps_y: Tensor, steps_x: Tensor) -> Tensor:
    """Moves image b down by steps_y[b] and right by steps_x[b] whole pixels; what comes in is 0."""
    batch, _, height, width = x.shape
    rows = torch.arange(height)[None, :] - steps_y[:, None]
    columns = torch.arange(width)[None, :] - steps_x[:, None]
    visible = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1).to(x.device), columns.clamp(0, width - 1).to(x.device)
    each = torch.arange(batch, device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return moved * visible[:, None].to(x)


def _rand(source: Source, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=source) if isinstance(source, torch.Generator) else source.rand(*shape)


def _uniform(batch: int, half_width: float, generator: Source) -> Tensor:
    """(B,) in [-half_width, half_width)."""
    return (_rand(generator, batch) * 2 - 1) * half_width


def _chosen(batch: int, probability: float, generator: Source) -> Tensor:
    """(B,) of 0.0 and 1.0."""
    return (_rand(generator, batch) < probability).to(torch.float32)


def _span(batch: int, length: int, largest_share: float, generator: Source) -> Tensor:
    """(B, length) bool: a random run of positions, its centre anywhere."""
    half = _rand(generator, batch) * largest_share * length / 2
    centre = _rand(generator, batch) * length
    return (torch.arange(length)[None, :] + 0.5 - centre[:, None]).abs() <= half[:, None]
