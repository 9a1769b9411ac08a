"""What the stages share: the job, the images, the models, and how far the build has come."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from tinyforge import embedded
from tinyforge.errors import MissingError, RecipeError
from tinyforge.images import content_hash
from tinyforge.recipe import PRESETS, Backbone, Recipe, with_defaults
from tinyforge.stages.crew import crew
from tinyforge.stages.domain import choose_domain
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

    @property
    def upscaler(self) -> Path | None:
        """The super-resolution checkpoint, None where the recipe has none."""
        wanted = self.recipe.invert.upscale
        return None if wanted is None else Path(wanted).expanduser()

    @cached_property
    def backbone(self) -> Any:
        """The loaded diffusion model, once per build."""
        from tinyforge.diffusion.backbone import load_backbone
        from tinyforge.diffusion.memory import Plan

        wanted, speed = self.recipe.backbone, self.recipe.speed
        plan = None if speed.fit_memory and speed.inversion == "fast" else Plan()
        with crew(speed.side_by_side, "cuda" if uses_gpu(wanted) else "cpu"):  # an engine is tried as it will be asked
            return load_backbone(
                self.backbone_choice.source, device=wanted.device, dtype=wanted.dtype, offline=self.job.offline,
                plan=plan, engine=speed.engine, memory=self.job.out / "engines.json",
            )  # fmt: skip

    @property
    def batch_size(self) -> int:
        """At most so many images in a forward pass of the backbone."""
        return self.recipe.backbone.batch_size or self.backbone.plan.batch_size

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
    backbone = backbone_choice(job.recipe.backbone, inputs.support.rgb, job.offline)
    teacher = teacher_choice(job.recipe.teacher.name, backbone, inputs.support.rgb)
    recipe = settled(complete(job.recipe, backbone.source, teacher.source))
    road = Road(replace(job, recipe=recipe), inputs, backbone, teacher)
    for note in (
        *inputs.notes,
        f"backbone: {short_name(backbone.source)} ({backbone.reason})",
        f"teacher: {short_name(teacher.source)} ({teacher.reason})",
    ):
        job.log(note)
    for warning in inputs.warnings:
        road.warn(warning)
    if recipe.speed.engine == "auto":
        settle_engine(road)
    return road


def settle_engine(road: Road) -> None:
    """Put the engine that was found to be the fastest here into the recipe, so that it enters the keys and the lock."""
    engine = road.backbone.engine
    took = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in engine.seconds.items())
    lost = "".join(f"; {name} does not work here: {why}" for name, why in engine.failed.items())
    road.job.log(f"engine: {engine.name} (a forward pass: {took}{lost})")
    speed = road.recipe.speed.model_copy(update={"engine": engine.name})
    road.job = replace(road.job, recipe=road.recipe.model_copy(update={"speed": speed}))


def short_name(source: str) -> str:
    """'photos/teacher' for what ships in the package; the source itself for anything else."""
    return str(Path(source).relative_to(embedded.HERE)) if Path(source).is_relative_to(embedded.HERE) else source


def backbone_choice(wanted: Backbone, images: Sequence[np.ndarray], offline: bool) -> Choice:
    """What ``backbone.name`` stands for; the embedded one is that of the domain that fits the images."""
    from tinyforge.diffusion.sources import choose_backbone

    name, domains = wanted.name, embedded.domains()
    if name not in ("auto", "embedded", *domains):
        folder = embedded.path("glyphs", "backbone")
        return Choice(*choose_backbone(name, domain_folder=folder, offline=offline, domains=domains))
    domain, why = choose_domain(name, images)
    folder = embedded.path(domain, "backbone")
    source, reason = choose_backbone(name, domain_folder=folder, offline=offline, auto_folder=wanted.auto_folder)
    return Choice(source, f"{reason}; {why}" if source == str(folder) else reason)


def teacher_choice(name: str, backbone: Choice, images: Sequence[np.ndarray]) -> Choice:
    """What ``teacher.name`` stands for. 'auto': DINO where there is a GPU and its weights are in the hub cache, else
    the embedded teacher, of the backbone's domain where that is embedded too.
    """
    import torch

    domains = embedded.domains()
    if name not in ("auto", "embedded", *domains):
        return Choice(name, "as asked")
    if name in domains or name == "embedded":
        return Choice(_own_teacher(name, backbone, images), "the embedded teacher, as asked")
    reason = "this machine has no CUDA device"
    if torch.cuda.is_available():
        from tinyforge.distill.timm_models import find_weights

        try:
            find_weights(DINO.removeprefix("timm:"), offline=True)
        except MissingError:
            reason = f"a GPU is here, but {DINO} is not in the hub cache (--teacher {DINO} downloads it)"
        else:
            return Choice(DINO, "a GPU is here and the weights are in the hub cache")
    return Choice(_own_teacher(name, backbone, images), f"the embedded teacher: {reason}")


def _own_teacher(name: str, backbone: Choice, images: Sequence[np.ndarray]) -> str:
    """The embedded teacher's folder: of the domain asked for, else of the backbone's, else of the one that fits."""
    domains = embedded.domains()
    of_backbone = [domain for domain in domains if str(embedded.path(domain, "backbone")) == backbone.source]
    domain = name if name in domains else of_backbone[0] if of_backbone else choose_domain(name, images)[0]
    return str(embedded.path(domain, "teacher"))


def complete(recipe: Recipe, backbone: str, teacher: str) -> Recipe:
    """Fill what the recipe left open: from its preset, then from the ``tinyforge.json`` of the backbone's folder and of
    the teacher's, where there is one: {section: {key: value}}.
    """
    recipe = _filled(recipe, PRESETS[recipe.preset] if recipe.preset else {})
    for file in (Path(source) / "tinyforge.json" for source in (backbone, teacher)):
        if file.is_file():
            try:
                own = json.loads(file.read_text(encoding="utf-8"))
                recipe = _filled(recipe, own)
            except ValidationError as error:
                told = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False))
                raise RecipeError("\n".join(f"{file}: {text}" for text in told)) from error
            except (AttributeError, TypeError, ValueError) as fault:
                raise RecipeError(f"{file}: {fault}; it must hold {{section: {{key: value}}}} of a recipe") from fault
    return recipe


def settled(recipe: Recipe) -> Recipe:
    """``recipe`` with the arithmetic of this machine where it says 'auto', so that another machine's is another key."""
    from tinyforge.distill.arithmetic import settled_dtype

    device = "cuda" if uses_gpu(recipe.backbone) else "cpu"
    sections = {name: getattr(recipe, name) for name in ("teacher", "distill")}
    return recipe.model_copy(
        update={
            name: section.model_copy(update={"dtype": settled_dtype(section.dtype, device)})
            for name, section in sections.items()
        }
    )


def uses_gpu(wanted: Backbone) -> bool:
    import torch

    return wanted.device != "cpu" and torch.cuda.is_available()


def _filled(recipe: Recipe, values: dict[str, dict[str, Any]]) -> Recipe:
    return recipe.model_copy(
        update={name: with_defaults(getattr(recipe, name), section) for name, section in values.items()}
    )
