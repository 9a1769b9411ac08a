"""One episode under way: its images, its teacher, and builds on its supports."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tinyforge.device.spec import InputSpec
from tinyforge.fewshot.episodes import Episode, episode_seed
from tinyforge.images import NO_IMAGES, ImageSet
from tinyforge.recipe import Recipe
from tinyforge.stages.evaluate.gallery import read_set
from tinyforge.stages.evaluate.lab import Lab
from tinyforge.stages.inputs import Inputs
from tinyforge.stages.road import Road


@dataclass(frozen=True)
class Task:
    """What the methods of one episode share, each part made when first asked for. folder: for inversions."""

    lab: Lab
    episode: Episode
    folder: Path

    @cached_property
    def support(self) -> ImageSet:
        return read_set(self.lab.request.root, self.episode.classes, self.episode.support)

    @cached_property
    def supports(self) -> str:
        """sha256 hex of the supports' pixels."""
        digest = hashlib.sha256()
        for item in self.support.items:
            digest.update(f"{item.label} {item.rgb.shape} ".encode() + item.rgb.tobytes())
        return digest.hexdigest()

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe with a seed of this episode's own, and only this episode's initial words."""
        recipe, classes = self.lab.recipe, self.episode.classes
        words = {name: word for name, word in recipe.invert.initializers.items() if name in classes}
        seed = episode_seed(self.lab.request.episodes.seed, self.episode.index)
        return recipe.model_copy(
            update={"seed": seed, "invert": recipe.invert.model_copy(update={"initializers": words})}
        )

    def road(
        self,
        invert: Mapping[str, Any] | None = None,
        synthesize: Mapping[str, Any] | None = None,
        distill: Mapping[str, Any] | None = None,
        *,
        with_base: bool = False,
    ) -> Road:
        """A build on the supports, with other values in these sections of the recipe."""
        changed = {
            name: getattr(self.recipe, name).model_copy(update=dict(values or {}))
            for name, values in (("invert", invert), ("synthesize", synthesize), ("distill", distill))
        }
        inputs = Inputs(self.support, None, self.lab.base if with_base else NO_IMAGES)
        return self.lab.road.variant(self.recipe.model_copy(update=changed), inputs, self.folder)

    @cached_property
    def teacher(self) -> Any:
        """The teacher that labels: adapted to the supports as the recipe says."""
        return self.tuned(None)

    def tuned(self, lr: float | None) -> Any:
        """The teacher at one learning rate, or at the one that it chooses itself on the supports."""
        from tinyforge.distill.teacher import adapt

        settings = self.recipe.teacher
        if lr is not None:
            settings = settings.model_copy(update={"fine_tune_lrs": [lr]})
        how = {"seed": self.recipe.seed, "device": self.lab.device}
        return adapt(self.lab.extractor, self.support.rgb, self.support.labels, settings, **how)

    @cached_property
    def query_features(self) -> Any:
        """(M, D) of length 1, by the teacher's extractor as it came."""
        return self._features(self.episode.queries)

    @cached_property
    def support_features(self) -> Any:
        """(n, D), like ``query_features``."""
        return self._features(self.episode.support)

    def _features(self, files: tuple[tuple[str, ...], ...]) -> Any:
        import torch

        by = self.lab.extractor
        kind = f"features {by.fingerprint} {by.spec.to_json()}"
        parts = zip(self.episode.classes, files, strict=True)
        return torch.cat(
            [self.lab.gallery.rows(kind, name, names, lambda images: embedded(by, images)) for name, names in parts]
        )

    def query_pixels(self, spec: InputSpec) -> Any:
        """uint8 (M, 3, h, w) at the size of ``spec``."""
        import torch

        from tinyforge.distill.pixels import pack

        kind = f"pixels {spec.size} {spec.resize} {spec.fit} {spec.crop_pct}"
        parts = zip(self.episode.classes, self.episode.queries, strict=True)
        return torch.cat(
            [self.lab.gallery.rows(kind, name, names, lambda images: pack(images, spec)) for name, names in parts]
        )


def embedded(extractor: Any, images: Any) -> Any:
    """uint8 (H, W, 3) images -> features (B, D) of length 1 on the CPU."""
    import torch

    from tinyforge.distill.pixels import CHUNK, pack, to_unit
    from tinyforge.distill.prototypes import embed

    device = next(extractor.module.parameters()).device
    parts = pack(images, extractor.spec).split(CHUNK)
    return torch.cat([embed(extractor, to_unit(part).to(device)).cpu() for part in parts])
