"""compress: export the student, climb the quantisation ladder of every model kind, and measure what was kept.

::

    models/                      every model that was made
    predictions/<variant>.json   its answers on the test set, through the runtime of the bundle
    worst/<variant>.png          the real image on which it is farthest from the student in torch
    compress.json                the variants, all that was tried, parity and gates, hashes of the calibration inputs
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tinyforge.device.preprocess import decode, resize
from tinyforge.device.report import counted
from tinyforge.errors import DataError, RecipeError
from tinyforge.images import ImageSet
from tinyforge.recipe import Compress, Recipe
from tinyforge.stages.distill import load_student, predictions
from tinyforge.stages.pictures import png
from tinyforge.stages.road import Artifact, Road
from tinyforge.store import Partial
from tinyforge.target import Target


def settings(road: Road) -> dict[str, Any]:
    return {
        "compress": road.recipe.compress.model_dump(mode="json"),
        "kinds": kinds(road.recipe, road.job.target),
        "opset": road.job.target.opset,
        "threads": road.job.target.threads,
        "exact_int8": road.job.target.exact_int8,
        "seed": road.recipe.seed,
        "name": road.recipe.name,
    }


def kinds(recipe: Recipe, target: Target) -> list[str]:
    """The model kinds of the recipe that the target may run; the fp32 reference is made besides."""
    return [kind for kind in recipe.compress.precisions if kind in target.models]


def legal(recipe: Recipe, target: Target) -> Compress:
    """The recipe's settings, of these kinds alone."""
    return recipe.compress.model_copy(update={"precisions": kinds(recipe, target)})


def check_kinds(recipe: Recipe, target: Target) -> None:
    """Raise RecipeError where the target may run none of the model kinds asked for."""
    if not kinds(recipe, target):
        asked = ", ".join(recipe.compress.precisions) or "none"
        raise RecipeError(f"compress.precisions: {asked}: {target.name} may run {', '.join(target.models)}")


def work(road: Road, partial: Partial) -> None:
    from tinyforge.compress.embed import pixel_spec
    from tinyforge.compress.variants import make_variants, warnings, x86_warnings

    job, target, test = road.job, road.job.target, road.inputs.test
    wanted = legal(road.recipe, target)
    job.log("compress: export to ONNX")
    student, spec = load_student(road)
    calibration, held_out, labels = shares(road, spec)
    calibration, notes = apart_from_tests(road, calibration)
    folder = partial.path / "models"
    made = make_variants(
        student, spec, road.inputs.support.classes, folder, name=road.recipe.name, opset=target.opset,
        calibration=calibration, validation=validation(student, held_out, labels), settings=wanted,
        seed=road.recipe.seed, teach=lambda: lesson(road, calibration), tell=lambda text: job.log(f"compress: {text}"),
        exact_int8=target.exact_int8,
    )  # fmt: skip
    job.log(f"compress: {len(made)} models on real images")
    model_spec = pixel_spec(spec) if wanted.embed_preprocessing else spec
    measured = measured_on_real_images(road, partial, made, student, spec, model_spec)
    partial.write_json(
        "compress.json",
        {
            "variants": [one.to_json() for one in made],
            "verdicts": measured,
            "input": model_spec.to_json(),
            "warnings": [*notes, *(text for one in made for text in warnings(one))],
            "x86_warnings": [text for one in made for text in x86_warnings(one) if not target.exact_int8],
            "gate_images": len(held_out),
            "measured_on": "support images" if test is None else "test images",
            "calibration_sha256": calibration.inputs.hashes,
            "validation_sha256": held_out.hashes,
        },
    )


@dataclass(frozen=True)
class Synthetic(Sequence):
    """The synthetic images of an artifact, decoded when indexed. records: of its index.json."""

    artifact: Artifact
    records: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> np.ndarray:
        return decode(self.artifact.path / self.records[index]["file"])


@dataclass(frozen=True)
class Joined(Sequence):
    """Sequences of images one after the other."""

    parts: tuple[Sequence, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> np.ndarray:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def shares(road: Road, spec: Any) -> tuple[Any, Any, np.ndarray]:
    """(calibration, validation inputs, their labels), without an input in common.

    Calibration: supports, class by class in turn, then synthetic images evenly over the set, up to the recipe's count.
    Validation: every other synthetic image up to half of the recipe's count, and random views of the supports, in turn
    too, up to all of it. Raises DataError where every view of the supports is a support again: they are blank.
    """
    from tinyforge.compress.calibration import Calibration, Prepared

    wanted, artifact = road.recipe.compress, road.done["synthesize"]
    support = road.inputs.support.subset(in_turn(road.inputs.support.labels))
    records = artifact.json("index.json")
    chosen = evenly(len(records), wanted.calibration_images - len(support))
    rest = [index for index in range(len(records)) if index not in chosen]
    unseen = [rest[i] for i in sorted(evenly(len(rest), wanted.validation_images // 2))]
    known, unknown = (Synthetic(artifact, tuple(records[i] for i in part)) for part in (sorted(chosen), unseen))
    images = Joined((support.rgb[: wanted.calibration_images], known))
    views, view_labels = support_views(
        support, spec, wanted.validation_images - len(unseen), seed=road.recipe.seed, flip=road.recipe.distill.flip
    )
    labels = [*view_labels, *(support.classes.index(records[i]["class"]) for i in unseen)]
    unseen_views = views[: len(support)]  # one of each
    calibration = Calibration(Prepared(images, spec), Prepared(Joined((support.rgb, unseen_views)), spec))
    held_out, kept = Prepared(Joined((views, unknown)), spec).without(calibration.inputs)
    if not kept:
        raise DataError("every support is blank, white or black throughout: give images that show something")
    return calibration, held_out, np.array(labels, dtype=np.int64)[kept]


def apart_from_tests(road: Road, calibration: Any) -> tuple[Any, list[str]]:
    """The calibration without what looks like a test image at the student's size, and a warning where that was found.

    Raises DataError where nothing is left.
    """
    if road.inputs.test is None:
        return calibration, []
    inputs, kept = calibration.inputs.without(calibration.inputs.like(road.inputs.test.rgb))
    lost = len(calibration.inputs) - len(kept)
    if not lost:
        return calibration, []
    size = " x ".join(map(str, calibration.inputs.spec.size))
    what = f"{counted(lost, 'support or synthetic image')} the same as a test image at {size} px"
    if not kept:
        raise DataError(f"{what}, and no other to calibrate on: give other test images")
    return replace(calibration, inputs=inputs), [f"{what}: not calibrated on, but the student learned from it"]


def in_turn(labels: np.ndarray) -> np.ndarray:
    """Indices: the first image of every class, then the second of every class, ..."""
    place = np.zeros(len(labels), dtype=np.int64)  # of each image within its class
    for label in np.unique(labels):
        members = labels == label
        place[members] = np.arange(members.sum())
    return np.lexsort((labels, place))


def evenly(total: int, count: int) -> set[int]:
    """At most ``count`` indices of ``total``, evenly spread."""
    return (
        set(np.linspace(0, total - 1, min(total, count)).round().astype(int).tolist()) if total and count > 0 else set()
    )


def support_views(
    support: ImageSet, spec: Any, count: int, *, seed: int, flip: bool
) -> tuple[list[np.ndarray], np.ndarray]:
    """``count`` random light views of the supports at input size, uint8 (h, w, 3), and their labels; the same for equal
    seeds.
    """
    import torch

    from tinyforge.distill.augment import STRENGTHS, augment
    from tinyforge.distill.batches import generator_for
    from tinyforge.distill.pixels import pack, to_unit

    pixels, numbers = pack(support.rgb, spec), torch.arange(count) % len(support)
    views = augment(to_unit(pixels[numbers]), STRENGTHS["light"], generator_for(seed, "validation"), flip)
    rounded = (views * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return list(np.ascontiguousarray(rounded)), support.labels[numbers.numpy()]


def validation(student: Any, held_out: Any, labels: np.ndarray) -> Any:
    from tinyforge.compress.ladder import Validation
    from tinyforge.compress.parity import torch_logits

    inputs = held_out.array()
    return Validation(inputs, labels, torch_logits(student, inputs))


def lesson(road: Road, calibration: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and the teacher's logits for quantisation-aware training: supports and synthetic images."""
    from tinyforge.distill.teacher import load_adapted

    teacher = load_adapted(road.done["distill"].path / "teacher", road.extractor).to(road.device)
    artifact = road.done["synthesize"]
    images = Joined((road.inputs.support.rgb, Synthetic(artifact, tuple(artifact.json("index.json")))))
    return calibration.inputs.like(images).array(), teacher.predict_logits([images[i] for i in range(len(images))])


def measured_on_real_images(
    road: Road, partial: Partial, made: Sequence[Any], student: Any, spec: Any, model_spec: Any
) -> list[dict[str, Any]]:
    """Each model's answers on the test images, or on the supports where there are none; its worst image as PNG."""
    from tinyforge.compress.parity import torch_logits
    from tinyforge.compress.variants import measure
    from tinyforge.device.preprocess import normalise

    test, support = road.inputs.test, road.inputs.support
    images, target = support if test is None else test, road.job.target
    pixels = np.stack([resize(rgb, spec) for rgb in images.rgb])
    expected, verdicts = torch_logits(student, normalise(pixels, spec)), []
    for variant in made:
        found = measure(
            variant, partial.path / "models", expected, pixels, model_spec, road.recipe.compress,
            labels=None if test is None else test.labels, threads=target.threads, exact_int8=target.exact_int8,
        )  # fmt: skip
        verdicts.append(found.to_json())
        if found.logits is not None:
            partial.write(f"worst/{variant.name}.png", png(images.items[found.parity.worst_image].rgb))
            if test is not None:
                partial.write_json(f"predictions/{variant.name}.json", predictions(test, found.logits))
    return verdicts
