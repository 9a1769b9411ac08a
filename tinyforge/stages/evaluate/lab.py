"""What all episodes of one process share: the models, the base images, the starting weights."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tinyforge.errors import UsageError
from tinyforge.fewshot.methods import Method
from tinyforge.loading import load_target
from tinyforge.recipe import Recipe
from tinyforge.stages.evaluate.gallery import Gallery, decoded, read_set
from tinyforge.stages.evaluate.request import Request
from tinyforge.stages.evaluate.start import start_folder
from tinyforge.stages.inputs import Inputs
from tinyforge.stages.road import Job, Road, equip


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
        """'cpu' or 'cuda': the recipe's, 'auto' being CUDA where there is one."""
        import torch

        wanted = self.recipe.backbone.device
        return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted

    @cached_property
    def extractor(self) -> Any:
        extractor = self.road.extractor
        extractor.module.to(self.device)
        return extractor

    @cached_property
    def base(self) -> dict[str, np.ndarray]:
        """Name -> uint8 (H, W, 3) of the base images that the teacher labels."""
        base = self.request.base
        return {} if base is None else dict(zip(base.picked, decoded(base.root, base.picked), strict=True))

    @cached_property
    def gallery(self) -> Gallery:
        episodes = self.request.episodes
        cache, whole = self.request.out / "cache", episodes.protocol.queries is None
        return Gallery(self.request.root, episodes.files, cache, whole)

    @cached_property
    def keys(self) -> dict[str, str]:
        """Method name -> sha256 hex of all that its answers depend on, besides the episode."""
        return {one.name: _hash(method_settings(self, one)) for one in self.request.methods}


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
    """All that a method's answers depend on, besides the episode, as JSON values."""
    recipe = lab.recipe
    found: dict[str, Any] = {"method": method.name, "seed": lab.request.episodes.seed}
    if method.needs_teacher:
        tuned = method.kind != "teacher"
        found["teacher"] = recipe.teacher.model_dump(mode="json", exclude={"name"}) if tuned else recipe.teacher.scale
        found["teacher_weights"] = lab.extractor.fingerprint
    if not method.is_teacher:
        unread = {"unlabelled"} if method.is_build else {"unlabelled", "labels"}
        found["distill"] = recipe.distill.model_dump(mode="json", exclude=unread)
    if method.is_build:
        found["trial"] = recipe.trial.model_dump(mode="json")
    if method.needs_backbone:
        swept = {"preview_alphas"} | ({"alphas"} if method.value is not None else set())
        found["invert"] = recipe.invert.model_dump(mode="json")
        found["synthesize"] = recipe.synthesize.model_dump(mode="json", exclude=swept)
        found["backbone"] = recipe.backbone.model_dump(mode="json", exclude={"name"})
        found["backbone_weights"] = lab.road.backbone.fingerprint
    if method.base:
        found["base"] = list(lab.request.base.picked)
    if method.pretrained:
        found["start"] = lab.start.fingerprint
    return found


def missing_methods(lab: Lab, index: int, record: dict[str, Any] | None) -> list[Method]:
    """The methods that an episode's record lacks. Raises UsageError when what it has was measured with other settings,
    or on another episode.
    """
    if record is None:
        return list(lab.request.methods)
    where = f"episode {index}"
    if record["episode"] != lab.request.episodes[index].fingerprint:
        raise UsageError(f"{where} was measured on other images before; choose another --out, or --overwrite")
    known = record["methods"]
    changed = [name for name, key in lab.keys.items() if name in known and known[name]["key"] != key]
    if changed:
        raise UsageError(
            f"{where}: {', '.join(changed)} was measured before with other settings or models; "
            "choose another --out, or --overwrite"
        )
    return [one for one in lab.request.methods if one.name not in known]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
