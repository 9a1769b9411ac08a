"""The glyph domain: distance fields of font glyphs and pen drawings, turned into endless 32 x 32 instances.

Each glyph is kept as two distance fields (outline and pen line, see `distance_fields`): thresholding a warped field
draws it with any stroke width, so one glyph gives many hands. Legend: B batch, N glyphs, 48 field pixels.
"""

from __future__ import annotations

import itertools
import json
import string
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import fonts, omniglot

FIELD = 48
SCALE = 8.0
"""Fields are uint8: 128 + SCALE * signed distance in field pixels, clipped."""


@dataclass(frozen=True)
class Pool:
    """fields (N, 2, 48, 48) uint8 (outline, pen line); has_outline (N,) bool; label (N,) into names."""

    fields: torch.Tensor
    has_outline: torch.Tensor
    label: torch.Tensor
    names: tuple[str, ...]
    characters: tuple[str, ...]

    def rows_by_class(self) -> list[torch.Tensor]:
        """The glyph indices of each class."""
        order = torch.argsort(self.label, stable=True)
        return list(torch.split(order, torch.bincount(self.label, minlength=len(self.names)).tolist()))


def skeleton(binary: np.ndarray) -> np.ndarray:
    """(N, H, W) bool → one-pixel pen lines. Source: Zhang & Suen 1984, two sub-iterations through a 256-entry table."""
    shifts = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]  # P2 … P9, clockwise from north
    codes = np.arange(256)
    p = [(codes >> i) & 1 for i in range(8)]
    around, steps = sum(p), sum((p[i] == 0) & (p[(i + 1) % 8] == 1) for i in range(8))
    base = (around >= 2) & (around <= 6) & (steps == 1)
    tables = (
        base & (p[0] * p[2] * p[4] == 0) & (p[2] * p[4] * p[6] == 0),
        base & (p[0] * p[2] * p[6] == 0) & (p[0] * p[4] * p[6] == 0),
    )
    image = np.pad(binary, ((0, 0), (1, 1), (1, 1)))
    for _ in range(binary.shape[1]):
        before = image.sum()
        for table in tables:
            code = np.zeros(image.shape, np.uint8)
            for bit, (dy, dx) in enumerate(shifts):
                code |= np.roll(image, (-dy, -dx), (1, 2)).astype(np.uint8) << bit
            image = image & ~table[code]
        if image.sum() == before:
            break
    return image[:, 1:-1, 1:-1]


def distance_fields(bitmap: np.ndarray, line: np.ndarray | None) -> np.ndarray:
    """(96, 96) uint8 glyph and its pen line (48, 48) bool → (2, 48, 48) uint8.

    Channel 0: signed distance to the outline (negative inside); channel 1: distance to the pen line. line None: the
    bitmap is itself a pen line at 96 px, and the outline channel repeats it.
    """
    from scipy.ndimage import distance_transform_edt as edt

    ink = bitmap > 100
    if line is None:
        pen = edt(~ink).reshape(FIELD, 2, FIELD, 2).mean((1, 3)) / 2
        outline = pen
    else:
        pen = edt(~line)
        outline = ((edt(~ink) - edt(ink)) / 2).reshape(FIELD, 2, FIELD, 2).mean((1, 3))
    return np.clip(128 + SCALE * np.stack([outline, pen]), 0, 255).astype(np.uint8)


def class_name(char: str) -> str:
    """A single word for the caption: "latinsmalllettera"."""
    name = unicodedata.name(char, f"sign{ord(char):x}") if len(char) == 1 else char
    return "".join(c for c in name.lower() if c.isascii() and c.isalpha()) or "sign"


def build_pool(roots: list[Path], drawings: list[Path], *, per_class: int = 80, hands: int = 4, seed: int = 0) -> Pool:
    """Render, filter, merge look-alikes and take distance fields."""
    glyphs = fonts.render(roots, per_class=per_class, seed=seed)
    keep = fonts.faithful(glyphs)
    glyphs = fonts.Glyphs(glyphs.bitmaps[keep], glyphs.label[keep], glyphs.font[keep], glyphs.characters)
    parent = fonts.merged(glyphs)
    lines = np.concatenate(
        [
            skeleton(b.reshape(-1, 48, 2, 48, 2).mean((2, 4)) > 100)
            for b in np.array_split(glyphs.bitmaps, max(1, len(glyphs.bitmaps) // 2000))
        ]
    )
    fields = [distance_fields(b, s) for b, s in zip(glyphs.bitmaps, lines, strict=True)]
    names = [glyphs.characters[parent[i]] for i in glyphs.label]
    outline = [True] * len(fields)
    rng = np.random.default_rng(seed)
    for key, drawn in omniglot.read(drawings).items():
        char = omniglot.name_of(key)
        char = glyphs.characters[parent[glyphs.characters.index(char)]] if char in glyphs.characters else char
        for strokes in drawn:
            for hand in range(hands):
                bitmap = omniglot.draw(omniglot.another_hand(strokes, rng, strength=float(hand > 0)))
                fields.append(distance_fields(bitmap, None))
                names.append(char)
                outline.append(False)
    return _pool(np.stack(fields), outline, names)


def _unused(name: str, taken: list[str]) -> str:
    """The name, or the name with the first letters that make it new: ideographs share theirs but for the number."""
    for suffix in itertools.chain([""], map("".join, itertools.product(string.ascii_lowercase, repeat=2))):
        if name + suffix not in taken:
            return name + suffix
    raise ValueError(f"more than 677 characters are named {name!r}")


def _pool(fields: np.ndarray, outline: list[bool], chars: list[str], least: int = 2) -> Pool:
    """Number the classes that have at least `least` glyphs; names are unique words."""
    unique, inverse, counts = np.unique(np.array(chars), return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts >= least)
    number = np.full(len(unique), -1)
    number[kept] = np.arange(len(kept))
    rows = np.flatnonzero(number[inverse] >= 0)
    names: list[str] = []
    for char in unique[kept]:
        names.append(_unused(class_name(str(char)), names))
    return Pool(
        torch.from_numpy(fields[rows]),
        torch.tensor(outline)[rows],
        torch.from_numpy(number[inverse][rows]),
        tuple(names),
        tuple(str(c) for c in unique[kept]),
    )


def save_pool(pool: Pool, folder: Path) -> None:
    """Cache as npy (no pickle) and JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("fields", "has_outline", "label"):
        np.save(folder / f"{name}.npy", getattr(pool, name).numpy(), allow_pickle=False)
    (folder / "classes.json").write_text(json.dumps({"names": pool.names, "characters": pool.characters}))


def load_pool(folder: Path) -> Pool:
    """The inverse of save_pool."""
    arrays = {n: torch.from_numpy(np.load(folder / f"{n}.npy")) for n in ("fields", "has_outline", "label")}
    words = json.loads((folder / "classes.json").read_text())
    return Pool(**arrays, names=tuple(words["names"]), characters=tuple(words["characters"]))


def _uniform(shape: tuple[int, ...], low: float, high: float, gen: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=gen) * (high - low) + low


def warp_grid(batch: int, strength: float, gen: torch.Generator) -> torch.Tensor:
    """(B, 48, 48, 2) sampling grid: rotation, slant, aspect, perspective and elastic, each drawn per image."""
    angle = torch.randn(batch, generator=gen) * 0.13 * strength
    slant = torch.randn(batch, generator=gen) * 0.22 * strength
    stretch = torch.exp(torch.randn(batch, generator=gen) * 0.18 * strength)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack(
        [torch.stack([cos * stretch, cos * slant - sin], -1), torch.stack([sin * stretch, sin * slant + cos], -1)], -2
    )
    axis = torch.linspace(-1, 1, FIELD)
    base = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(1, -1, 2) * 1.12
    grid = base @ matrix.transpose(1, 2)
    tilt = torch.randn(batch, 1, 2, generator=gen) * 0.1 * strength
    grid = grid / (1 + (grid * tilt).sum(-1, keepdim=True)).clamp(0.5, 2)
    elastic = torch.zeros(batch, 2, FIELD, FIELD)
    for cells, most in ((4, 0.22), (7, 0.10)):
        size = _uniform((batch, 1, 1, 1), 0, most * strength, gen)
        rough = torch.randn(batch, 2, cells, cells, generator=gen) * size
        elastic += F.interpolate(rough, size=(FIELD, FIELD), mode="bicubic", align_corners=True)
    return grid.reshape(batch, FIELD, FIELD, 2) + elastic.permute(0, 2, 3, 1)


def ink(fields: torch.Tensor, has_outline: torch.Tensor, gen: torch.Generator, strength: float) -> torch.Tensor:
    """(B, 2, 48, 48) warped distances in field pixels → (B, 1, 48, 48) ink in [0, 1] with a random stroke width.

    The pen is thinner for glyphs with much line, so that dense characters don't fill up.
    """
    batch = len(fields)
    length = (fields[:, 1] < 0.7).float().sum((1, 2)).clamp(min=30)
    widest = (0.24 * 40 * 40 / length).clamp(1.7, 4.8)
    pen = 1.4 + (widest - 1.4) * torch.rand(batch, generator=gen)
    grow = _uniform((batch,), -0.6, 0.9, gen) * strength
    outline = has_outline & (torch.rand(batch, generator=gen) < 0.45)
    offset = torch.where(outline, grow, pen)[:, None, None]
    field = torch.where(outline[:, None, None], fields[:, 0], fields[:, 1])
    uneven = torch.randn(batch, 1, 3, 3, generator=gen) * 0.3 * strength
    offset = offset + F.interpolate(uneven, size=(FIELD, FIELD), mode="bicubic", align_corners=True)[:, 0]
    return torch.sigmoid(2.5 * (offset - field))[:, None]


def crop_grid(image: torch.Tensor, size: int, gen: torch.Generator) -> torch.Tensor:
    """(B, size, size, 2): the ink's bounding box fills the frame, aspect kept (70 %) or partly squared."""
    batch = len(image)
    on = image[:, 0] > 0.4
    axis = torch.linspace(-1, 1, FIELD)
    bounds = []
    for dim in (1, 2):  # columns then rows: x from any over rows, y from any over columns
        used = on.any(dim)
        low = torch.where(used, axis, 9.0).amin(1).clamp(max=0.9)
        high = torch.where(used, axis, -9.0).amax(1).clamp(min=-0.9)
        bounds.append(((low + high) / 2, ((high - low) / 2 + 0.02).clamp(min=0.05)))
    (cx, hx), (cy, hy) = bounds
    longest = torch.maximum(hx, hy)
    squared = (torch.rand(batch, generator=gen) < 0.3) * _uniform((batch,), 0.2, 1.0, gen)
    tight = torch.rand(batch, generator=gen) < 0.75
    margin = torch.where(tight, _uniform((batch,), 0.98, 1.1, gen), _uniform((batch,), 1.0, 1.5, gen))
    half = [longest * (h / longest) ** squared * margin for h in (hx, hy)]
    shift = torch.randn(2, batch, generator=gen) * 0.035
    centre = [c + s * longest for c, s in zip((cx, cy), shift, strict=True)]
    pixel = (torch.arange(size) + 0.5) / size * 2 - 1
    gx = centre[0][:, None] + half[0][:, None] * pixel
    gy = centre[1][:, None] + half[1][:, None] * pixel
    return torch.stack([gx[:, None, :].expand(-1, size, -1), gy[:, :, None].expand(-1, -1, size)], -1)


def coarsen(image: torch.Tensor, gen: torch.Generator, low_share: float) -> torch.Tensor:
    """(B, 1, S, S) at random effective resolution: low_share of it reduced to 8 … 16 px by areas, then bicubic back."""
    size = image.shape[-1]
    pick = torch.rand(len(image), generator=gen)
    sizes = [(8, 0.5), (9, 0.06), (10, 0.12), (12, 0.14), (14, 0.08), (16, 0.10)]
    done, out = 0.0, image.clone()
    for side, share in sizes:
        rows = (pick >= done) & (pick < done + share * low_share)
        done += share * low_share
        if rows.any() and side < size:
            part = image[rows]
            small = (
                F.avg_pool2d(part, size // side)
                if size % side == 0
                else F.interpolate(part, size=(side, side), mode="bilinear", antialias=True)
            )
            levels = 16.0 if side < 10 else 255.0
            small = (small * levels).round() / levels
            out[rows] = F.interpolate(small, size=(size, size), mode="bicubic", antialias=True)
    return out.clamp(0, 1)


def instances(
    pool: Pool,
    rows: torch.Tensor,
    gen: torch.Generator,
    *,
    size: int = 32,
    strength: float = 1.0,
    low_share: float = 0.65,
    dark_share: float = 0.25,
    noise: float = 0.03,
) -> torch.Tensor:
    """(B,) glyph indices → (B, 1, size, size) in [0, 1]: each a new instance in another hand."""
    fields = (pool.fields[rows].float() - 128) / SCALE
    grid = warp_grid(len(rows), strength, gen)
    warped = F.grid_sample(fields, grid, padding_mode="border", align_corners=True)
    drawn = ink(warped, pool.has_outline[rows], gen, strength)
    image = F.grid_sample(drawn, crop_grid(drawn, size, gen), padding_mode="zeros", align_corners=True)
    level = torch.where(
        torch.rand(len(rows), generator=gen) < 0.6, torch.ones(()), _uniform((len(rows),), 0.6, 1.0, gen)
    )
    image = coarsen(image, gen, low_share)
    peak = torch.where(torch.rand(len(rows), generator=gen) < 0.7, image.amax((1, 2, 3)).clamp(min=0.3), torch.ones(()))
    image = image * (level / peak)[:, None, None, None]
    amount = (torch.rand(len(rows), 1, 1, 1, generator=gen) - 0.5).clamp(min=0) * 2 * noise
    image = image + torch.randn(image.shape, generator=gen) * amount
    dark = torch.rand(len(rows), generator=gen) < dark_share
    return torch.where(dark[:, None, None, None], 1 - image, image).clamp(0, 1)
