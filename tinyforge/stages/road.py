"""What the stages share: the job, the images, the models, and how far the build has come."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tinyforge import embedded
from tinyforge.errors import MissingError, RecipeError
from tinyforge.images import content_hash
from tinyforge.recipe import Recipe, with_defaults
from tinyforge.stages.inputs import Inputs, gather
from tinyforge.target import Target

DINO = "timm:vit_small_patch16_224.dino"


@dataclass(frozen=True)
class Job:
    """What ``forge`` was asked to do, and whom to tell."""

    recipe: Recipe
    target: Target
    out: Path
    offline: bool = False
    overwrite: bool = False
    resume: bool = True
    log: Callable[[str], None] = print
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its key and its folder."""

    key: str
    path: Path

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Choice:
    """A model that was chosen: where it comes from, and why that one."""

    source: str
    reason: str


@dataclass
class Road:
    """A build under way. ``job.recipe`` is complete: what the recipe left open has been filled in."""

    job: Job
    inputs: Inputs
    backbone_choice: Choice
    teacher_choice: Choice
    done: dict[str, Artifact] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.job.recipe

    @property
    def bundle_path(self) -> Path:
        return self.job.out / f"{self.recipe.name}-{self.job.target.name}"

    @cached_property
    def support_hash(self) -> str:
        return content_hash(self.inputs.support)

    @cached_property
    def backbone(self) -> Any:
        """The loaded diffusion model, once per build."""
        from tinyforge.diffusion.backbone import load_backbone

        wanted = self.recipe.backbone
        return load_backbone(
            self.backbone_choice.source, device=wanted.device, dtype=wanted.dtype, offline=self.job.offline
        )

    @cached_property
    def extractor(self) -> Any:
        """The loaded teacher network, once per build."""
        from tinyforge.distill.teacher import load_teacher

        return load_teacher(self.teacher_choice.source, offline=self.job.offline)

    @cached_property
    def device(self) -> str:
        """Where torch works: the backbone's device, 'cpu' or 'cuda'."""
        return str(self.backbone.device)

    def variant(self, recipe: Recipe, inputs: Inputs, out: Path) -> "Road":
        """Another build with the models of this one, loaded once for both. ``recipe`` must be complete."""
        other = Road(replace(self.job, recipe=recipe, out=out), inputs, self.backbone_choice, self.teacher_choice)
        for name in ("backbone", "extractor"):  # what cached_property keeps
            if name in vars(self):
                setattr(other, name, getattr(self, name))
        return other

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self.job.log(f"warning: {text}")

    def progress(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.job.progress(stage, done, total)

    def choices(self) -> dict[str, Any]:
        return {
            "backbone": vars(self.backbone_choice),
            "teacher": vars(self.teacher_choice),
            "data": self.inputs.describe(),
        }


def start(job: Job) -> Road:
    """Read the images, choose the models, complete the recipe, and say so."""
    return equip(job, gather(job.recipe.data, job.recipe.distill.unlabelled, job.recipe.seed))


def equip(job: Job, inputs: Inputs) -> Road:
    """Choose the models for images that are already there, complete the recipe, and say so."""
    from tinyforge.diffusion.sources import choose_backbone

    backbone = Choice(
        *choose_backbone(
            job.recipe.backbone.name, domain_folder=embedded.path("glyphs", "backbone"), offline=job.offline
        )
    )
    teacher = choose_teacher(job.recipe.teacher.name)
    road = Road(replace(job, recipe=complete(job.recipe, backbone.source, teacher.source)), inputs, backbone, teacher)
    for note in (
        *inputs.notes,
        f"backbone: {backbone.source} ({backbone.reason})",
        f"teacher: {teacher.source} ({teacher.reason})",
    ):
        job.log(note)
    for warning in inputs.warnings:
        road.warn(warning)
    return road


def choose_teacher(name: str) -> Choice:
    """What ``teacher.name`` stands for. 'auto': DINO where there is a GPU and its weights are in the hub cache, else
    the embedded teacher.
    """
    import torch

    from tinyforge.distill.timm_models import find_weights

    own = str(embedded.path("glyphs", "teacher"))
    if name != "auto":
        return (
            Choice(own, "the embedded teacher, as asked")
            if name in ("embedded", "glyphs")
            else Choice(name, "as asked")
        )
    if not torch.cuda.is_available():
        return Choice(own, "the embedded teacher: this machine has no CUDA device")
    try:
        find_weights(DINO.removeprefix("timm:"), offline=True)
    except MissingError:
        return Choice(
            own,
            f"the embedded teacher: a GPU is here, but {DINO} is not in the hub cache (--teacher {DINO} downloads it)",
        )
    return Choice(DINO, "a GPU is here and the weights are in the hub cache")


def complete(recipe: Recipe, backbone: str, teacher: str) -> Recipe:
    """Fill what the recipe left open from the ``tinyforge.json`` of the backbone's folder ([invert], [synthesize],
    [distill]) and of the
    teacher's ([teacher]), where there is one: {section: {key: value}}.
    """
    for file in (Path(source) / "tinyforge.json" for source in (backbone, teacher)):
        if file.is_file():
            try:
                own = json.loads(file.read_text(encoding="utf-8"))
                filled = {name: with_defaults(getattr(recipe, name), values) for name, values in own.items()}
            except (AttributeError, TypeError, ValueError) as fault:
                raise RecipeError(f"{file}: {fault}; it must hold {{section: {{key: value}}}} of a recipe") from fault
            recipe = recipe.model_copy(update=filled)
    return recipe
