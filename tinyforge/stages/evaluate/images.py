"""The sets of images that students learn from beside the supports, by name: made by the stages of a build."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyforge.fewshot.methods import Method
from tinyforge.stages import advance
from tinyforge.stages.evaluate.gallery import decoded
from tinyforge.stages.evaluate.task import Task
from tinyforge.stages.pictures import as_pixels, shrink
from tinyforge.stages.road import Road
from tinyforge.stages.synthesize import plan

Images = tuple[list[np.ndarray], np.ndarray]  # uint8 (H, W, 3) each, and their labels int64 (n,)


def make_images(task: Task, method: Method) -> Images:
    """The images of a method, none for one that learns from the supports alone."""
    if method.images is None:
        return [], np.empty(0, dtype=np.int64)
    return MAKERS[method.row.images](task, method.value)


def tint(task: Task, alpha: float | None) -> Images:
    """Learned prompt, null-text inversion, the blend at ``alpha``, or at the recipe's alphas."""
    return _synthesized(task.road(synthesize=_at(task, alpha)))


def nti(task: Task, alpha: float | None) -> Images:
    """Null-text inversion under a generic prompt: the word that textual inversion starts from, for every class."""
    generic = {"ti_steps": 0, "initializers": {}}
    return _synthesized(task.road(invert=generic, synthesize=_at(task, alpha)))


def ti(task: Task, alpha: float | None) -> Images:
    """New noise under the learned prompt of TINT, with the ordinary null prompt."""
    import torch

    from tinyforge.diffusion.sample import draw_noise, generate
    from tinyforge.diffusion.textual_inversion import Concept

    road = task.road()
    advance(road, "invert")
    backbone, support, wanted = road.backbone, road.inputs.support, road.recipe.synthesize
    planned = plan(support.labels, len(support.classes), wanted.images_per_class, [1.0])
    labels = np.array([one.label for one in planned], dtype=np.int64)
    if not planned:
        return [], labels
    cond = Concept.load(road.done["invert"].path).conditions(backbone, road.recipe.invert.prompt)
    with torch.no_grad():
        null = backbone.embed([""])
    noise = torch.stack(
        [draw_noise(backbone, road.recipe.seed, support.classes[one.label], one.index) for one in planned]
    )
    steps, batch_size = road.recipe.invert.num_steps, road.batch_size
    pixels = generate(
        backbone, noise, cond[torch.from_numpy(labels)], null[:, None].expand(len(planned), steps, -1, -1),
        road.recipe.invert, batch_size=batch_size,
    )  # fmt: skip
    sizes = [support.items[one.support].rgb.shape[:2] for one in planned]
    return [shrink(rgb, size) for rgb, size in zip(as_pixels(pixels), sizes, strict=True)], labels


def real(task: Task, alpha: float | None) -> Images:
    """The episode's extra images."""
    counts = [len(names) for names in task.episode.extra]
    images = [rgb for names in task.episode.extra for rgb in decoded(task.lab.request.root, names)]
    return images, np.repeat(np.arange(len(counts)), counts)


MAKERS: dict[str, Callable[[Task, float | None], Images]] = {"tint": tint, "nti": nti, "ti": ti, "real": real}


def _at(task: Task, alpha: float | None) -> dict[str, Any]:
    """Synthesis at one alpha, and no more previews than a stage needs."""
    alphas = task.recipe.synthesize.alphas if alpha is None else [alpha]
    return {"alphas": alphas, "preview_alphas": alphas[:1]}


def _synthesized(road: Road) -> Images:
    from tinyforge.stages.distill import synthetic_images

    advance(road, "synthesize")
    return synthetic_images(road.done["synthesize"], road.inputs.support.classes)
