"""A task for TINT, and our way through it: all classes at once, each stage timed.

The batches of a stage run side by side on the cores of a CPU, as they do in a build; with one thread, one by one.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Took, took
from torch import Tensor

from tinyforge.diffusion.backbone import load_backbone
from tinyforge.diffusion.null_text import NullText, null_text_invert
from tinyforge.diffusion.parts import even_parts
from tinyforge.diffusion.sample import blend, draw_noise, generate
from tinyforge.diffusion.seeding import item_generator
from tinyforge.diffusion.textual_inversion import Concept, learn_concepts
from tinyforge.images import ImageSet
from tinyforge.recipe import Invert
from tinyforge.stages.crew import Crew, crew
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
    engine: str = "eager"

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
    stages = (
        lambda hands: load_backbone(task.source, device=task.device, dtype=task.dtype, engine=task.engine),
        lambda hands: learn(task, done, hands, vectors),
        lambda hands: invert(task, done, hands),
        lambda hands: make(task, done, hands),
    )
    times = {}
    with crew(True, task.device) as hands:
        for name, stage in zip(STAGES, stages, strict=True):
            times[name] = took(lambda name=name, stage=stage: done.update({name: stage(hands)}), task.device)
    inverted = done["null-text inversion"]
    rows = done["textual inversion"].embeddings[:, 0]
    return Made(rows, inverted.z_T, inverted.null_embeddings, done["generation"], times)


def learn(task: Task, done: dict[str, Any], hands: Crew, vectors: Tensor | None) -> Concept:
    """The classes' vectors, learned unless given, from latents that the next stage needs too."""
    backbone, names = done["load"], task.supports.classes
    done["z0"] = torch.cat([backbone.encode(part) for part in task.images.split(task.batch)])
    if vectors is not None:
        return as_concept(vectors, names)
    arguments = backbone, done["z0"], task.labels, list(names), task.settings, task.seed
    return learn_concepts(*arguments, batch_size=task.batch, each=hands.each)[0]


def invert(task: Task, done: dict[str, Any], hands: Crew) -> NullText:
    done["cond"] = done["textual inversion"].conditions(done["load"], task.settings.prompt)
    own = done["cond"][task.labels]

    def run(rows: range) -> NullText:
        part = slice(rows.start, rows.stop)
        return null_text_invert(done["load"], done["z0"][part], own[part], task.settings, batch_size=len(rows))

    return NullText.concatenate(hands.each(run, even_parts(len(own), task.batch)))


def make(task: Task, done: dict[str, Any], hands: Crew) -> Tensor:
    """The planned images (n, 3, H, W), a batch at a time."""
    backbone, inverted = done["load"], done["null-text inversion"]

    def run(part: range) -> Tensor:
        chosen = task.planned[part.start : part.stop]
        rows, names = [one.support for one in chosen], [task.supports.classes[one.label] for one in chosen]
        pairs = zip(chosen, names, strict=True)
        noise = torch.stack([draw_noise(backbone, task.seed, name, one.index) for one, name in pairs])
        z = blend(inverted.z_T[rows], noise, torch.tensor([one.alpha for one in chosen], device=noise.device))
        null, own = inverted.null_embeddings[rows], done["cond"][[one.label for one in chosen]]
        return generate(backbone, z, own, null, task.settings, batch_size=len(chosen))

    return torch.cat(hands.each(run, even_parts(len(task.planned), task.batch)))


def noise_seed(seed: int, class_name: str, index: int) -> int:
    """Of the generator that ``draw_noise`` uses for this image."""
    return item_generator(seed, "noise", class_name, index).initial_seed()


def as_concept(vectors: Tensor, classes: tuple[str, ...]) -> Concept:
    return Concept(classes, tuple(f"<class-{index:03d}>" for index in range(len(classes))), vectors[:, None])
