"""synthesize: new images of every class from its inverted supports.

::

    images/<class>/<index>.png     <class> is the class's number, three digits; <index> five digits
    preview/<class>-<column>.png   the first support of each class over the recipe's preview_alphas, one picture per
    alpha
    index.json                     of each image: file, class, support, alpha
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyforge.stages.invert import support_file
from tinyforge.stages.pictures import as_pixels, png, shrink
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
    return {"synthesize": road.recipe.synthesize.model_dump(mode="json"), "seed": road.recipe.seed}


def plan(labels: np.ndarray, num_classes: int, images_per_class: int, alphas: list[float]) -> list[Plan]:
    """Supports in turn within a class, and the next alpha each time all of them have had theirs."""
    made = []
    for label in range(num_classes):
        own = np.flatnonzero(labels == label).tolist()
        for index in range(images_per_class):
            alpha = alphas[index // len(own) % len(alphas)]
            made.append(Plan(f"images/{label:03d}/{index:05d}.png", label, index, own[index % len(own)], alpha))
    return made


def work(road: Road, partial: Partial) -> None:
    import torch

    from tinyforge.diffusion.null_text import load_supports
    from tinyforge.diffusion.sample import alpha_grid, blend, draw_noise, generate
    from tinyforge.diffusion.textual_inversion import Concept

    support, backbone, wanted = road.inputs.support, road.backbone, road.recipe.synthesize
    folder, batch_size = road.done["invert"].path, road.recipe.backbone.batch_size
    saved = load_supports([folder / support_file(i) for i in range(len(support))], backbone.device)
    cond = Concept.load(folder).conditions(backbone, road.recipe.invert.prompt)
    planned = plan(support.labels, len(support.classes), wanted.images_per_class, wanted.alphas)

    def noise(label: int, index: int) -> Any:
        return draw_noise(backbone, road.recipe.seed, support.classes[label], index)

    for start in range(0, len(planned), batch_size):
        batch = planned[start : start + batch_size]
        if not all(partial.has(one.file) for one in batch):
            rows = [one.support for one in batch]
            noises = torch.stack([noise(one.label, one.index) for one in batch])
            z = blend(saved.z_T[rows], noises, torch.tensor([one.alpha for one in batch]))
            images = generate(
                backbone,
                z,
                cond[[one.label for one in batch]],
                saved.null_embeddings[rows],
                road.recipe.invert,
                batch_size=batch_size,
            )
            for one, rgb in zip(batch, as_pixels(images), strict=True):
                partial.write(one.file, png(shrink(rgb, support.items[one.support].rgb.shape[:2])))
        road.progress("synthesize")(min(start + batch_size, len(planned)), len(planned))

    first = [int(np.flatnonzero(support.labels == label)[0]) for label in range(len(support.classes))]
    noises = torch.stack([noise(label, -1) for label in range(len(first))])
    grid = alpha_grid(
        backbone,
        saved.z_T[first],
        cond,
        saved.null_embeddings[first],
        noises,
        list(wanted.preview_alphas),
        road.recipe.invert,
        batch_size=batch_size,
    )
    for label, row in enumerate(grid):
        for column, rgb in enumerate(as_pixels(row)):
            partial.write(f"preview/{label:03d}-{column}.png", png(rgb))
    records = [
        {
            "file": one.file,
            "class": support.classes[one.label],
            "support": support.names[one.support],
            "alpha": one.alpha,
        }
        for one in planned
    ]
    partial.write_json("index.json", records)
