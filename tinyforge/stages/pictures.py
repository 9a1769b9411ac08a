"""Images between numpy, torch and image files, for the stages that draw."""

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tinyforge.device.preprocess import decode, resize
from tinyforge.device.spec import InputSpec
from tinyforge.images import Item
from tinyforge.store import Partial

TRAVELLING_PIXELS = 2_000_000
JPEG_START, START_OF_SCAN, END, ORIENTATION = b"\xff\xd8", 0xDA, 0xD9, 0x0112
MARKER, AFTER_SCAN = re.compile(rb"\xff+[^\xff\0]"), re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
DROPPED = frozenset((0xFE, *range(0xE1, 0xEE), 0xEF))  # comments, APP1 to APP13, APP15


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


def write_picture(partial: Partial, file: str, rgb: np.ndarray, size: tuple[int, int] | None = None) -> None:
    """uint8 (H, W, 3) as PNG; larger ones at ``size``, (height, width), where it is given."""
    partial.write(file, png(rgb if size is None else shrink(rgb, size)))


def travelling(item: Item) -> bytes:
    """An image's file as it goes into a bundle: a JPEG as it is, less what tells of its author and place; the pixels as
    PNG where it is another kind of file, or none.

    More than TRAVELLING_PIXELS are scaled down, so that a bundle of camera photos stays small and quick to measure.
    """
    encoded, rgb = item.encoded, item.rgb
    is_jpeg, factor = encoded.startswith(JPEG_START), (TRAVELLING_PIXELS / (rgb.shape[0] * rgb.shape[1])) ** 0.5
    if factor >= 1:
        return (bare_jpeg(encoded) if is_jpeg else b"") or png(rgb)
    small = resize(rgb, InputSpec(tuple(max(1, int(side * factor)) for side in rgb.shape[:2]), resize="bicubic"))
    if not is_jpeg:
        return png(small)
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def bare_jpeg(encoded: bytes) -> bytes:
    """A JPEG that decodes to the same pixels without comments, application segments and what follows its end: no place,
    no author, no thumbnail, no film. b"" where that fails.

    Kept are JFIF's and Adobe's segments, which say how colours are coded, and of EXIF the orientation.
    Source: ITU-T T.81, annex B.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        orientation = image.getexif().get(ORIENTATION, 1)
    kept, place = [JPEG_START], len(JPEG_START)
    if orientation != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        told = exif.tobytes()
        kept.append(b"\xff\xe1" + (len(told) + 2).to_bytes(2, "big") + told)
    while found := MARKER.match(encoded, place):
        marker = encoded[found.end() - 1]
        if marker == END:
            bare = b"".join([*kept, b"\xff\xd9"])
            return bare if np.array_equal(decode(bare), decode(encoded)) else b""
        end = found.end() + int.from_bytes(encoded[found.end() : found.end() + 2], "big")
        if marker == START_OF_SCAN:  # the coded pixels follow, up to the next marker that is not of theirs
            following = AFTER_SCAN.search(encoded, end)
            end = following.start() if following else len(encoded)
        if marker not in DROPPED:
            kept.append(encoded[found.start() : end])
        place = end
    return b""


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
