"""What all episodes of one process share: the models, the base images, the starting weights."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tinyforge.errors import UsageError
from tinyforge.fewshot.methods import Method
from tinyforge.images import NO_IMAGES, ImageSet
from tinyforge.loading import load_target
from tinyforge.recipe import Recipe
from tinyforge.stages.evaluate.gallery import Gallery, read_set
from tinyforge.stages.evaluate.request import Request
from tinyforge.stages.evaluate.start import start_folder
from tinyforge.stages.inputs import Inputs
from tinyforge.stages.road import Job, Road, equip
from tinyforge.stages.starts import start_fingerprint, start_size


@dataclass(frozen=True)
class Lab:
    """road: carries the loaded models and the complete recipe. start: distill.start.Start, or None."""

    request: Request
    road: Road
    start: Any

    @property
    def recipe(self) -> Recipe:
        return self.road.recipe

    @cached_property
    def device(self) -> str:
        """Where torch works, as the recipe's [backbone] says: 'cpu' or 'cuda'."""
        from tinyforge.distill.arithmetic import device_of

        return device_of(self.recipe.backbone.device)

    @cached_property
    def extractor(self) -> Any:
        extractor = self.road.extractor
        extractor.module.to(self.device)
        return extractor

    @cached_property
    def base(self) -> ImageSet:
        """The base images that the teacher labels."""
        base = self.request.base
        return NO_IMAGES if base is None else read_set(base.root, [""], [base.picked])

    @cached_property
    def gallery(self) -> Gallery:
        episodes = self.request.episodes
        cache, whole = self.request.out / "cache", episodes.protocol.queries is None
        return Gallery(self.request.root, episodes.files, cache, whole)

    @cached_property
    def settings(self) -> dict[str, dict[str, str]]:
        """Method name -> all that its answers depend on, besides the episode: part -> hash."""
        return {
            one.name: {part: _hash(value) for part, value in method_settings(self, one).items()}
            for one in self.request.methods
        }


def equipped(request: Request, log: Callable[[str], None], progress: Callable[[str, int, int], None]) -> Road:
    """The models chosen, the recipe completed by what suits them. 'auto' is chosen as for a build of the first
    episode's supports.
    """
    first, recipe = request.episodes[0], request.recipe
    job = Job(recipe, load_target(recipe.target), request.out, request.offline, log=log, progress=progress)
    return equip(job, Inputs(read_set(request.root, first.classes, first.support), None))


def open_lab(request: Request, progress: Callable[[str, int, int], None] = lambda label, done, total: None) -> Lab:
    """Load what the methods need, and only that; torch gets the request's threads."""
    import torch

    from tinyforge.distill.start import load_start

    torch.set_num_threads(request.threads)
    road = equipped(request, lambda text: None, progress)
    pretrained = any(one.pretrained for one in request.methods)
    start = load_start(start_folder(request), road.recipe.distill.student) if pretrained else None
    lab = Lab(request, road, start)
    if any(one.needs_teacher for one in request.methods):
        lab.extractor.module.requires_grad_(False)
    if any(one.needs_backbone for one in request.methods):
        road.backbone.schedule(1)
    return lab


def method_settings(lab: Lab, method: Method) -> dict[str, Any]:
    """All that a method's answers depend on, besides the episode, as JSON values: of two methods in one results folder
    every part that both have must be the same.
    """
    recipe = lab.recipe
    found: dict[str, Any] = {"seed": lab.request.episodes.seed}
    if method.needs_teacher:
        found["teacher_model"] = [lab.extractor.fingerprint, lab.extractor.spec.to_json()]
        found["scale"] = recipe.teacher.scale
        if method.kind != "teacher":
            found["teacher"] = recipe.teacher.model_dump(mode="json", exclude={"name"})
    if not method.is_teacher:
        size = recipe.distill.input_size or f"at least {start_size(recipe.distill)}"
        unread = {"unlabelled", "labels", "start", "input_size"}
        found["distill"] = [size, recipe.distill.model_dump(mode="json", exclude=unread)]
    if method.is_build:
        found["build"] = [recipe.distill.labels, start_fingerprint(recipe.distill)]
        found["trial"] = recipe.trial.model_dump(mode="json")
    if method.needs_backbone:
        found["invert"] = recipe.invert.model_dump(mode="json")
        found["synthesize"] = recipe.synthesize.model_dump(mode="json", exclude={"alphas", "preview_alphas"})
        if method.value is None:
            found["alphas"] = recipe.synthesize.alphas
        found["backbone"] = recipe.backbone.model_dump(mode="json", exclude={"name", "auto_folder"})
        found["backbone_model"] = lab.road.backbone.fingerprint
        found["speed"] = recipe.speed.model_dump(mode="json")
    if method.base:
        found["base"] = list(lab.request.base.picked)
    if method.pretrained:
        found["start"] = lab.start.fingerprint
    return found


def missing_methods(lab: Lab, index: int, record: dict[str, Any] | None) -> list[Method]:
    """The methods that an episode's record lacks. Raises UsageError when what it has, asked for or not, was measured
    with other settings or models than what is asked for now, or on another episode.
    """
    if record is None:
        return list(lab.request.methods)
    where = f"episode {index}"
    if record["episode"] != lab.request.episodes[index].fingerprint:
        raise UsageError(f"{where} was measured on other images before; choose another --out, or --overwrite")
    known = record["methods"]
    for name, measured in known.items():
        others = sorted({part for asked in lab.settings.values() for part in differing(measured["settings"], asked)})
        if others:
            raise UsageError(
                f"{where}: {name} was measured before with other settings or models ({', '.join(others)}); "
                "choose another --out, or --overwrite"
            )
    return [one for one in lab.request.methods if one.name not in known]


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The parts that both have, and not the same."""
    return [part for part in one.keys() & other.keys() if one[part] != other[part]]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
