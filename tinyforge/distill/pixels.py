"""Images between numpy, torch and a model: bytes -> [0, 1] -> standardised, bit-equal to ``device.preprocess``.

Legend: B batch, C=3 channels, H W pixels of any image, h w of a model's input.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tinyforge.device.preprocess import resize
from tinyforge.device.spec import InputSpec

CHUNK = 256  # images of a forward pass without gradient
CPU_CHUNK = 32  # the same on a processor, where what a layer makes should stay in the cache


def pack(images: Iterable[np.ndarray], spec: InputSpec) -> Tensor:
    """uint8 (H, W, 3) images of any sizes -> uint8 (B, 3, h, w) at the spec's size; (0, 3, h, w) for none."""
    resized = [resize(rgb, spec) for rgb in images]
    if not resized:
        return torch.empty((0, 3, *spec.size), dtype=torch.uint8)
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255.0


def standardise(x: Tensor, spec: InputSpec) -> Tensor:
    """[0, 1] (B, 3, h, w) -> (x - mean) / std, NCHW whatever the spec's layout says: layout is the exported model's
    business.
    """
    mean = torch.tensor(spec.mean, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(spec.std, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x - mean) / std


def parts(x: Tensor) -> Iterator[Tensor]:
    """(M, 3, h, w) -> parts for forward passes without gradient, channels last, of a size that suits x's device."""
    for part in x.split(CPU_CHUNK if x.device.type == "cpu" else CHUNK):
        yield part.contiguous(memory_format=torch.channels_last)


def fit_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """[0, 1] (B, 3, H, W) -> (B, 3, h, w), antialiased; the whole image, nothing cropped. The same tensor when the
    size fits.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
