"""A picture of a task: per class two supports, their reconstructions, and one support's synthetic images over alpha.

python benchmarks/picture.py --recipe raspi --out forge --to docs/grid.png
python benchmarks/picture.py -o data.path=folders/cifar5 --out forge --to docs/photos.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from tinyforge.loading import load_recipe_and_target
from tinyforge.stages import Job, advance, start
from tinyforge.stages.telling import pictures

TILE, GAP, SHOWN = 40, 2, 2


def tile(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).resize((TILE, TILE), Image.Resampling.BICUBIC))


def grid(columns: list[list[np.ndarray]]) -> np.ndarray:
    """Columns of tiles, classes from left to right, on white."""
    height, width = len(columns[0]), len(columns)
    canvas = np.full((height * (TILE + GAP), width * (TILE + GAP), 3), 255, np.uint8)
    for x, column in enumerate(columns):
        for y, rgb in enumerate(column):
            top, left = y * (TILE + GAP), x * (TILE + GAP)
            canvas[top : top + TILE, left : left + TILE] = tile(rgb)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="raspi")
    parser.add_argument("--out", type=Path, default=Path("forge"))
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("-o", "--override", action="append", default=[])
    options = parser.parse_args()
    recipe, target = load_recipe_and_target(options.recipe, options.override)
    road = start(Job(recipe, target, options.out))
    advance(road, "synthesize")
    columns = [
        [*row.supports[:SHOWN], *row.reconstructions[:SHOWN], *(images[0] for images in row.synthetic)]
        for row in pictures(road)
    ]
    Image.fromarray(grid(columns)).save(options.to, optimize=True)


if __name__ == "__main__":
    main()
