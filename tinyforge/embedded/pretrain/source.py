"""What the training loops need to know of a domain: class words and a way to draw fresh images of classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import fonts, glyphs, omniglot
from .origin import keep_origin, origin_of

HELD_OUT = ("hebrew", "osmanya", "omniglottagalog", "omniglotearlyaramaic")
"""Scripts no part is trained on: the teacher is chosen, and all measures are taken, on these."""


@dataclass(frozen=True)
class Source:
    """A domain: C class words; draw(labels (B,), generator, part) → (B, 3, S, S) in [0, 1].

    weights (C,): how often a class is drawn, 0 = held out; counts (C,): its number of originals. endless: also for
    "held_out" an original is drawn as another image each time; otherwise as it is, and a class's originals come once
    each in a call before any comes again.
    """

    names: tuple[str, ...]
    characters: tuple[str, ...]
    size: int
    weights: Tensor
    counts: Tensor
    draw: Callable[[Tensor, torch.Generator, str], Tensor]
    endless: bool = False

    @property
    def held_out(self) -> list[int]:
        """The classes never trained on."""
        return torch.nonzero(self.weights == 0).flatten().tolist()

    def frequent(self, least: int = 66) -> list[int]:
        """The trained classes with enough originals for the diffusion model."""
        return torch.nonzero((self.weights > 0) & (self.counts >= least)).flatten().tolist()


STYLES = {
    "autoencoder": {},
    "unet": {"strength": 0.8, "dark_share": 0.2, "noise": 0.02},
    "teacher": {"dark_share": 0.15},
    "held_out": {"low_share": 1.0, "dark_share": 0.0},
}
"""How instances are drawn for each part; held_out: always light on dark at 8 … 16 px."""


def glyph_source(pool: glyphs.Pool, held_out: tuple[str, ...] = HELD_OUT) -> Source:
    """Glyph classes weighted by the square root of their number of originals (at most 80)."""
    rows = pool.rows_by_class()
    counts = torch.tensor([len(r) for r in rows])
    first = counts.cumsum(0) - counts
    order = torch.cat(rows)
    weights = counts.clamp(max=80).float().sqrt()
    weights[[i for i, name in enumerate(pool.names) if name.startswith(held_out)]] = 0

    def draw(labels: Tensor, gen: torch.Generator, part: str) -> Tensor:
        place = (torch.rand(len(labels), generator=gen) * counts[labels]).long()
        drawn = glyphs.instances(pool, order[first[labels] + place], gen, **STYLES[part])  # type: ignore[arg-type]
        return drawn.expand(-1, 3, -1, -1)

    return Source(pool.names, pool.characters, 32, weights, counts, draw, endless=True)


def glyph_origin(roots: list[Path], drawings: list[Path]) -> dict[str, object]:
    """See ``origin``. Raises ValueError for a folder that is not there, or without fonts."""
    files = [("font", file) for file in fonts.font_files(roots, 0)]
    return origin_of([*files, *(("drawings", file) for file in omniglot.archives(drawings))])


def load_glyphs(cache: Path, roots: list[Path], drawings: list[Path], seed: int) -> Source:
    """The glyph domain from its cache, built on the first call (minutes). Raises ValueError without fonts."""
    if not (cache / "classes.json").is_file():
        pool = glyphs.build_pool(roots, drawings, seed=seed)
        keep_origin(cache, glyph_origin(roots, drawings))
        glyphs.save_pool(pool, cache)
    return glyph_source(glyphs.load_pool(cache))
