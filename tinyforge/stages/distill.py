"""distill: a teacher labels the images, the student and its baselines learn from them.

::

    teacher/                                   the adapted teacher
    students/<method>/student.safetensors      the student that ships, and its baselines
    predictions/<method>.json                  answers on the test set, the teacher's too
    distill.json                               the student that ships, its input, the filter's counts, training
    histories
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.device.preprocess import decode
from tinyforge.device.spec import InputSpec
from tinyforge.images import ImageSet, content_hash
from tinyforge.stages.inputs import input_size
from tinyforge.stages.road import Artifact, Road
from tinyforge.store import Partial

BASELINES = ("support-hard", "support-kd")


def settings(road: Road) -> dict[str, Any]:
    test, unlabelled = road.inputs.test, road.inputs.unlabelled
    return {
        "distill": road.recipe.distill.model_dump(mode="json"),
        "teacher": road.recipe.teacher.model_dump(mode="json"),
        "fingerprint": road.extractor.fingerprint,
        "seed": road.recipe.seed,
        "supports": road.support_hash,
        "test": None if test is None else content_hash(test),
        "unlabelled": list(unlabelled),
    }


def shipped_method(road: Road) -> str:
    """The student that goes on to compression. Without synthetic images it is a baseline."""
    labels = road.recipe.distill.labels
    if road.recipe.synthesize.images_per_class == 0:
        return {"class": "support-hard", "teacher": "support-kd"}[labels]
    return f"tint-{labels}"


@dataclass(frozen=True)
class Classroom:
    """What the students of one build share: the images, filtered by the teacher, and the teacher."""

    road: Road
    teacher: Any
    images: list[np.ndarray]
    labels: np.ndarray

    @cached_property
    def spec(self) -> InputSpec:
        from tinyforge.distill.students import default_spec

        return default_spec(
            self.road.recipe.distill.student, input_size(self.road.recipe.distill, self.road.inputs.support)
        )

    @cached_property
    def agreement(self) -> Any:
        from tinyforge.distill.teacher import agreement

        return agreement(self.teacher, self.images, self.labels, self.road.recipe.distill.min_agreement)

    @cached_property
    def data(self) -> Any:
        """The training set: supports first, then the synthetic images that the filter kept, then those without a
        label.
        """
        from tinyforge.distill.pixels import pack
        from tinyforge.distill.train import training_set

        support, kept = self.road.inputs.support, np.flatnonzero(self.agreement.keep) if self.images else []
        return training_set(
            pack(support.rgb, self.spec), support.labels,
            pack([self.images[i] for i in kept], self.spec), self.labels[kept] if len(kept) else (),
            pack(self.road.inputs.unlabelled.values(), self.spec),
        )  # fmt: skip

    def train(self, method: str, checkpoint: Path | None = None) -> Any:
        """The student of one method, from the same start, with the same batches, views and number of steps as any
        other.
        """
        from tinyforge.distill.train import methods, seeded_student, train_student

        wanted, seed, num_classes = (
            self.road.recipe.distill,
            self.road.recipe.seed,
            len(self.road.inputs.support.classes),
        )
        chosen = {one.name: one for one in methods(wanted)}[method]
        student = seeded_student(wanted, num_classes, self.spec.size[0], seed, offline=self.road.job.offline)
        return train_student(
            student, self.spec, self.data, chosen, wanted, seed=seed, teacher=self.teacher, checkpoint=checkpoint,
            device=self.road.device, progress=self.road.progress(f"student {method}"),
        )  # fmt: skip


def work(road: Road, partial: Partial) -> None:
    from safetensors.torch import save

    from tinyforge.distill.train import predict_logits

    support, test = road.inputs.support, road.inputs.test
    teacher = adapted_teacher(road, partial.path / "teacher")
    room = Classroom(road, teacher, *synthetic_images(road.done["synthesize"], support.classes))
    answers = {"teacher": teacher.predict_logits} if test is not None else {}
    histories = {}
    for method in dict.fromkeys((*BASELINES, shipped_method(road))):
        result = room.train(method, checkpoint=partial.path / "checkpoints" / method)
        partial.write(f"students/{method}/student.safetensors", save(result.student.state_dict()))
        histories[method] = result.history
        answers[method] = lambda images, student=result.student: predict_logits(student, images, room.spec)
    if test is not None:
        for method, answer in answers.items():
            partial.write_json(f"predictions/{method}.json", predictions(test, answer(test.rgb)))
    counts = {"kept": room.agreement.kept, "total": room.agreement.total} if room.images else None
    partial.write_json(
        "distill.json",
        {
            "shipped": shipped_method(road),
            "student": road.recipe.distill.student,
            "input": room.spec.to_json(),
            "teacher": {"lr": teacher.lr, **teacher.record},
            "agreement": counts,
            "histories": histories,
        },
    )
    partial.remove("checkpoints")


def adapted_teacher(road: Road, folder: Path) -> Any:
    """The teacher of ``folder``, adapted to the supports now if it is not there."""
    from tinyforge.distill.teacher import adapt, load_adapted, save_teacher

    if not (folder / "teacher.json").is_file():
        support = road.inputs.support
        teacher = adapt(
            road.extractor, support.rgb, support.labels, road.recipe.teacher, seed=road.recipe.seed, device=road.device
        )
        save_teacher(teacher, folder)
    return load_adapted(folder, road.extractor).to(road.device)


def synthetic_images(artifact: Artifact, classes: tuple[str, ...]) -> tuple[list[np.ndarray], np.ndarray]:
    """The synthetic images, uint8 (H, W, 3), and their labels (n,)."""
    records = artifact.json("index.json")
    images = [decode(artifact.path / record["file"]) for record in records]
    return images, np.array([classes.index(record["class"]) for record in records], dtype=np.int64)


def predictions(images: ImageSet, logits: np.ndarray) -> dict[str, list[Any]]:
    """Raw predictions as the bundle holds them, from logits (B, N)."""
    return {"names": list(images.names), "labels": images.labels.tolist(), "predicted": logits.argmax(axis=1).tolist()}


def load_student(road: Road) -> tuple[Any, InputSpec]:
    """The student that ships, in eval mode, and its input."""
    from safetensors.torch import load_file

    from tinyforge.distill.students import build_student

    done = road.done["distill"]
    about = done.json("distill.json")
    spec = InputSpec.from_json(about["input"])
    student = build_student(about["student"], len(road.inputs.support.classes), input_size=spec.size[0])
    student.load_state_dict(load_file(done.path / f"students/{about['shipped']}/student.safetensors"))
    return student.eval(), spec
