"""A task for TINT, and our way through it: all classes at once, each stage timed."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Took, took
from torch import Tensor

from tinyforge.diffusion.backbone import Backbone, load_backbone
from tinyforge.diffusion.null_text import null_text_invert
from tinyforge.diffusion.sample import blend, draw_noise, generate
from tinyforge.diffusion.seeding import item_generator
from tinyforge.diffusion.textual_inversion import Concept, learn_concepts
from tinyforge.images import ImageSet
from tinyforge.recipe import Invert
from tinyforge.stages.synthesize import Plan

STAGES = ("load", "textual inversion", "null-text inversion", "generation")


@dataclass
class Made:
    """What either program made: vectors (N, D), z_T (B, C, h, w), null embeddings (B, T, L, D), images (n, 3, H, W).

    took: stage -> how long it took.
    """

    vectors: Tensor
    z_T: Tensor
    null_embeddings: Tensor
    images: Tensor
    took: dict[str, Took] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What both programs are given. images: the supports (B, 3, H, W) in [0, 1]; ``planned``: what is to be made."""

    source: Path
    settings: Invert
    supports: ImageSet
    images: Tensor
    planned: list[Plan]
    seed: int
    device: str
    dtype: str
    batch: int

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.supports.labels)

    def members(self, label: int) -> Tensor:
        return (self.labels == label).nonzero()[:, 0]

    def first(self, classes: int) -> "Task":
        """The same with its first classes only."""
        few = self.supports.subset(np.flatnonzero(self.supports.labels < classes))
        planned = [one for one in self.planned if one.label < classes]
        supports = replace(few, classes=few.classes[:classes])
        return replace(self, supports=supports, images=self.images[: len(few)], planned=planned)

    def part(self, made: Made) -> Made:
        """What was made for these classes, when more were asked for."""
        count = len(self.supports)
        rows = made.vectors[: len(self.supports.classes)], made.z_T[:count], made.null_embeddings[:count]
        return Made(*rows, made.images[: len(self.planned)], made.took)


def run_ours(task: Task, vectors: Tensor | None = None) -> Made:
    """All classes, from the supports to the images, each stage timed. ``vectors`` (N, D) are then taken as learned."""
    done: dict[str, Any] = {}

    def load() -> Backbone:
        return load_backbone(task.source, device=task.device, dtype=task.dtype)

    def learn() -> Concept:
        done["z0"] = torch.cat([done["load"].encode(part) for part in task.images.split(task.batch)])
        if vectors is not None:
            return as_concept(vectors, task.supports.classes)
        names = list(task.supports.classes)
        arguments = done["load"], done["z0"], task.labels, names, task.settings, task.seed
        return learn_concepts(*arguments, batch_size=task.batch)[0]

    def invert() -> Any:
        done["cond"] = done["textual inversion"].conditions(done["load"], task.settings.prompt)
        cond = done["cond"][task.labels]
        return null_text_invert(done["load"], done["z0"], cond, task.settings, batch_size=task.batch)

    def make() -> Tensor:
        return make_images(done["load"], task, done["null-text inversion"], done["cond"])

    times = {}
    for name, stage in zip(STAGES, (load, learn, invert, make), strict=True):
        times[name] = took(lambda name=name, stage=stage: done.update({name: stage()}), task.device)
    inverted = done["null-text inversion"]
    rows = done["textual inversion"].embeddings[:, 0]
    return Made(rows, inverted.z_T, inverted.null_embeddings, done["generation"], times)


def make_images(backbone: Backbone, task: Task, inverted: Any, cond: Tensor) -> Tensor:
    """The planned images (n, 3, H, W), a batch at a time."""
    images = []
    for start in range(0, len(task.planned), task.batch):
        chosen = task.planned[start : start + task.batch]
        rows = [one.support for one in chosen]
        noise = torch.stack([
            draw_noise(backbone, task.seed, task.supports.classes[one.label], one.index) for one in chosen
        ])  # fmt: skip
        z = blend(inverted.z_T[rows], noise, torch.tensor([one.alpha for one in chosen], device=noise.device))
        null, own = inverted.null_embeddings[rows], cond[[one.label for one in chosen]]
        images.append(generate(backbone, z, own, null, task.settings, batch_size=task.batch))
    return torch.cat(images)


def noise_seed(seed: int, class_name: str, index: int) -> int:
    """Of the generator that ``draw_noise`` uses for this image."""
    return item_generator(seed, "noise", class_name, index).initial_seed()


def as_concept(vectors: Tensor, classes: tuple[str, ...]) -> Concept:
    return Concept(classes, tuple(f"<class-{index:03d}>" for index in range(len(classes))), vectors[:, None])
