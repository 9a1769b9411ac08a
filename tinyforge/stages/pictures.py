"""Images between numpy, torch and PNG files, for the stages that draw."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tinyforge.device.preprocess import resize
from tinyforge.device.spec import InputSpec


def as_batch(images: Iterable[np.ndarray], size: int) -> Any:
    """uint8 (H, W, 3) images of any sizes -> a float32 torch tensor (B, 3, size, size) in [0, 1]."""
    import torch

    spec = InputSpec((size, size), resize="bicubic")
    pixels = np.stack([resize(rgb, spec) for rgb in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def as_pixels(batch: Any) -> np.ndarray:
    """A tensor (B, 3, H, W) in [0, 1] -> uint8 (B, H, W, 3), rounded."""
    return (batch.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def png(rgb: np.ndarray) -> bytes:
    """uint8 (H, W, 3) -> an encoded PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG")
    return buffer.getvalue()


def shrink(rgb: np.ndarray, like: tuple[int, int]) -> np.ndarray:
    """``rgb`` at the resolution ``like`` (H, W) where that is smaller; unchanged where it is not.

    A synthetic image of a small support then has the support's resolution, and passes the same enlargement before the
    student sees it.
    """
    height, width = (min(a, b) for a, b in zip(rgb.shape[:2], like, strict=True))
    return rgb if (height, width) == rgb.shape[:2] else resize(rgb, InputSpec((height, width), resize="bicubic"))


def sheet(rows: Sequence[Sequence[np.ndarray]], tile: int = 64, gap: int = 2) -> np.ndarray:
    """Rows of uint8 (H, W, 3) images of any sizes as one picture of square tiles on white."""
    height, width = len(rows), max(map(len, rows))
    canvas = np.full((height * (tile + gap), width * (tile + gap), 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, rgb in enumerate(row):
            top, left = y * (tile + gap), x * (tile + gap)
            canvas[top : top + tile, left : left + tile] = resize(rgb, InputSpec((tile, tile), resize="bicubic"))
    return canvas
