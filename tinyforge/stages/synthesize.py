"""synthesize: new images of every class from its inverted supports.

::

    images/<class>/<index>.png     <class> is the class's number, three digits; <index> five digits
    preview/<class>-<column>.png   the first support of each class over the recipe's preview_alphas, one picture per
    alpha
    index.json                     of each image: file, class, support, alpha
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyforge.images import ImageSet
from tinyforge.stages.crew import Crew, crew
from tinyforge.stages.invert import support_file
from tinyforge.stages.pictures import as_pixels, write_picture
from tinyforge.stages.road import Road
from tinyforge.store import Partial


@dataclass(frozen=True)
class Plan:
    """One image to be made. support: index into the support set."""

    file: str
    label: int
    index: int
    support: int
    alpha: float


def settings(road: Road) -> dict[str, Any]:
    return {
        "synthesize": road.recipe.synthesize.model_dump(mode="json"),
        "speed": road.recipe.speed.model_dump(mode="json"),
        "seed": road.recipe.seed,
    }


def plan(labels: np.ndarray, num_classes: int, images_per_class: int, alphas: list[float]) -> list[Plan]:
    """Supports in turn within a class, and alphas in turn, shifted by one whenever their pairs would come again."""
    made = []
    for label in range(num_classes):
        own = np.flatnonzero(labels == label).tolist()
        for index in range(images_per_class):
            alpha = alphas[(index + index // math.lcm(len(own), len(alphas))) % len(alphas)]
            made.append(Plan(f"images/{label:03d}/{index:05d}.png", label, index, own[index % len(own)], alpha))
    return made


def work(road: Road, partial: Partial) -> None:
    from tinyforge.diffusion.null_text import load_supports
    from tinyforge.diffusion.parts import even_parts
    from tinyforge.diffusion.textual_inversion import Concept

    support, wanted, folder = road.inputs.support, road.recipe.synthesize, road.done["invert"].path
    planned = plan(support.labels, len(support.classes), wanted.images_per_class, wanted.alphas)
    with crew(road.recipe.speed.side_by_side, road.device) as hands:
        saved = load_supports([folder / support_file(i) for i in range(len(support))])
        cond = Concept.load(folder).conditions(road.backbone, road.recipe.invert.prompt)
        progress, done = hands.watched(road.progress("synthesize")), itertools.count(1)
        batches = [planned[part.start : part.stop] for part in even_parts(len(planned), road.batch_size)]

        def draw(batch: list[Plan]) -> None:
            if not all(partial.has(one.file) for one in batch):
                draw_batch(road, partial, saved, cond, batch, hands)
            progress(next(done), len(batches))

        shown = hands.ask(draw_preview, road, partial, saved, cond, hands)
        hands.each(draw, batches)
        shown.result()
    partial.write_json("index.json", [record(one, support) for one in planned])


def record(one: Plan, support: ImageSet) -> dict[str, Any]:
    name, source = support.classes[one.label], support.names[one.support]
    return {"file": one.file, "class": name, "support": source, "alpha": one.alpha}


def noise(road: Road, label: int, index: int) -> Any:
    from tinyforge.diffusion.sample import draw_noise

    return draw_noise(road.backbone, road.recipe.seed, road.inputs.support.classes[label], index)


def draw_batch(road: Road, partial: Partial, saved: Any, cond: Any, batch: list[Plan], hands: Crew) -> None:
    """Make the images of one batch, and have them written."""
    import torch

    from tinyforge.diffusion.sample import blend, generate

    rows, device = [one.support for one in batch], road.backbone.device
    noises = torch.stack([noise(road, one.label, one.index) for one in batch])
    images = generate(
        road.backbone,
        blend(saved.z_T[rows].to(device), noises, torch.tensor([one.alpha for one in batch])),
        cond[[one.label for one in batch]], saved.null_embeddings[rows].to(device), road.recipe.invert,
        batch_size=len(batch), stacked=road.recipe.speed.stack_guidance,
    )  # fmt: skip
    for one, rgb in zip(batch, as_pixels(images), strict=True):
        hands.later(write_picture, partial, one.file, rgb, road.inputs.support.items[one.support].rgb.shape[:2])


def draw_preview(road: Road, partial: Partial, saved: Any, cond: Any, hands: Crew) -> None:
    """The first support of each class, blended at each of the preview's alphas."""
    import torch

    from tinyforge.diffusion.sample import alpha_grid

    device, labels, alphas = road.backbone.device, road.inputs.support.labels, road.recipe.synthesize.preview_alphas
    first = [int(np.flatnonzero(labels == label)[0]) for label in range(len(cond))]
    noises = torch.stack([noise(road, label, -1) for label in range(len(first))])
    grid = alpha_grid(
        road.backbone, saved.z_T[first].to(device), cond, saved.null_embeddings[first].to(device), noises, list(alphas),
        road.recipe.invert, batch_size=road.batch_size, stacked=road.recipe.speed.stack_guidance,
    )  # fmt: skip
    for label, row in enumerate(grid):
        for column, rgb in enumerate(as_pixels(row)):
            hands.later(write_picture, partial, f"preview/{label:03d}-{column}.png", rgb)
