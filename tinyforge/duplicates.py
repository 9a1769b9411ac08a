"""The same picture twice: exact copies, and what is probably one picture."""

import hashlib
import json
from collections import defaultdict

import numpy as np
from PIL import Image

from tinyforge.images import ImageSet


def _pixel_hash(rgb: np.ndarray) -> str:
    return hashlib.sha256(json.dumps(rgb.shape).encode() + np.ascontiguousarray(rgb).tobytes()).hexdigest()


def exact_duplicates(a: ImageSet, b: ImageSet) -> list[tuple[int, int]]:
    """Pairs (index in a, index in b) with equal pixels, however they were encoded."""
    where = defaultdict(list)
    for j, rgb in enumerate(b.rgb):
        where[_pixel_hash(rgb)].append(j)
    return [(i, j) for i, rgb in enumerate(a.rgb) for j in where.get(_pixel_hash(rgb), ())]


def _fingerprint(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(difference hash bool (64,), thumbnail float32 (16*16*3,) in [0, 255])."""
    image = Image.fromarray(rgb)
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).ravel()
    return bits, np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.float32).ravel()


def near_duplicates(
    a: ImageSet, b: ImageSet, *, max_bits: int = 6, max_distance: float = 6.0
) -> list[tuple[int, int, float]]:
    """Triples (index in a, index in b, distance) of probably one picture: re-encoded, resized or slightly retouched.

    Both must agree: at most ``max_bits`` of the 64 bits of the difference hash differ, and 16x16 thumbnails by at most
    ``max_distance`` levels of 255, root mean square. Exact duplicates are among them.
    Source: the hash is Krawetz 2013, 'Kind of Like That'.
    """
    if not len(a) or not len(b):
        return []
    bits_a, thumbs_a = map(np.array, zip(*map(_fingerprint, a.rgb), strict=True))
    bits_b, thumbs_b = map(np.array, zip(*map(_fingerprint, b.rgb), strict=True))
    pairs = []
    for i, (bits, thumb) in enumerate(zip(bits_a, thumbs_a, strict=True)):
        close = np.flatnonzero(np.count_nonzero(bits_b != bits, axis=1) <= max_bits)
        distances = np.sqrt(np.mean((thumbs_b[close] - thumb) ** 2, axis=1))
        pairs += [(i, int(j), float(d)) for j, d in zip(close, distances, strict=True) if d <= max_distance]
    return pairs
