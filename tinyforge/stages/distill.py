"""distill: a teacher labels the images, the student and its baselines learn from them.

::

    teacher/                                   the adapted teacher
    trial/<way>-<fold>.json                    answers about supports held out (stages.trial)
    students/<method>/student.safetensors      the student that ships, and its baselines
    predictions/<method>.json                  answers on the test set, the teacher's too
    distill.json                               the student that ships and why, its input, the filter's counts,
    training histories
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.device.preprocess import decode
from tinyforge.device.spec import InputSpec
from tinyforge.duplicates import near_duplicates
from tinyforge.images import ImageSet, Item, content_hash
from tinyforge.recipe import Distill
from tinyforge.stages.crew import Crew, crew
from tinyforge.stages.inputs import input_size, view_size
from tinyforge.stages.road import Artifact, Road
from tinyforge.stages.starts import start_fingerprint, start_of
from tinyforge.stages.trial import Way, forced, hold
from tinyforge.store import Partial

BASELINES = ("support-hard", "support-kd")


def settings(road: Road) -> dict[str, Any]:
    test, unlabelled = road.inputs.test, road.inputs.unlabelled
    return {
        "distill": road.recipe.distill.model_dump(mode="json", exclude={"start", "unlabelled"}),
        "trial": road.recipe.trial.model_dump(mode="json"),
        "teacher": road.recipe.teacher.model_dump(mode="json", exclude={"name"}),
        "speed": road.recipe.speed.model_dump(mode="json"),
        "fingerprint": road.extractor.fingerprint,
        "teacher_input": road.extractor.spec.to_json(),
        "start": start_fingerprint(road.recipe.distill),
        "seed": road.recipe.seed,
        "supports": road.support_hash,
        "test": None if test is None else content_hash(test),
        "unlabelled": [item.sha256 for item in unlabelled.items],
    }


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
    def taught_spec(self) -> InputSpec:
        """``spec`` at the size of the views that the teacher labels; the student sees them shrunk."""
        if self.teacher is None:
            return self.spec
        support = self.road.inputs.support
        count = len(support) + len(self.kept) + len(self.road.inputs.unlabelled)
        size = view_size(max(self.spec.size), max(self.teacher.extractor.spec.size), support, count)
        return self.spec if size == max(self.spec.size) else replace(self.spec, size=(size, size))

    @cached_property
    def start(self) -> Any:
        """The student's starting weights (distill.start.Start), None where it starts at random."""
        return start_of(self.road.recipe.distill)

    @cached_property
    def agreement(self) -> Any:
        from tinyforge.distill.teacher import agreement

        least = self.road.recipe.distill.min_agreement
        chance = 1 / len(self.road.inputs.support.classes)
        return agreement(self.teacher, self.images, self.labels, chance if least is None else least)

    @cached_property
    def duplicates(self) -> np.ndarray:
        """Indices of synthetic images that are probably a support once more."""
        made = tuple(
            Item(str(index), int(label), "", rgb)
            for index, (rgb, label) in enumerate(zip(self.images, self.labels, strict=True))
        )
        support = self.road.inputs.support
        return np.unique([j for _, j, _ in near_duplicates(support, ImageSet(support.classes, made))]).astype(int)

    @cached_property
    def kept(self) -> np.ndarray:
        """Indices of the synthetic images that are no duplicates and that the teacher, if there is one, does not
        reject.
        """
        if not self.images:
            return np.zeros(0, dtype=int)
        fit = np.arange(len(self.images)) if self.teacher is None else np.flatnonzero(self.agreement.keep)
        return np.setdiff1d(fit, self.duplicates)

    @cached_property
    def _records(self) -> list[dict[str, Any]]:
        return self.road.done["synthesize"].json("index.json")

    @cached_property
    def origins(self) -> np.ndarray:
        """(n,) the support that each synthetic image was made from."""
        index = {name: i for i, name in enumerate(self.road.inputs.support.names)}
        return np.array([index[record["support"]] for record in self._records], dtype=int)

    @cached_property
    def alphas(self) -> np.ndarray:
        """(n,) the blend of each synthetic image."""
        return np.array([record["alpha"] for record in self._records], dtype=float)

    def training_set(self, spec: InputSpec, alpha: float | None = None) -> Any:
        """Supports first, then the synthetic images that are kept (of one alpha, or all), then those without a
        label.
        """
        from tinyforge.distill.pixels import pack
        from tinyforge.distill.train import training_set

        support, kept = self.road.inputs.support, self.kept_of(alpha)
        return training_set(
            pack(support.rgb, spec), support.labels,
            pack([self.images[i] for i in kept], spec), self.labels[kept],
            pack(self.road.inputs.unlabelled.rgb, spec),
        )  # fmt: skip

    def kept_of(self, alpha: float | None) -> np.ndarray:
        """Indices of the synthetic images that are kept, of one alpha or all."""
        return self.kept if alpha is None else self.kept[self.alphas[self.kept] == alpha]

    def look(self, spec: InputSpec, alpha: float | None) -> Any:
        """What makes the views of ``training_set``'s images where ``speed.training`` is 'plain'; else None."""
        from tinyforge.distill.augment import STRENGTHS
        from tinyforge.distill.plain import one_by_one

        road, kept = self.road, self.kept_of(alpha)
        supports, further = road.inputs.support.rgb, road.inputs.unlabelled.rgb
        if road.recipe.speed.training == "fast":
            return None

        def image(index: int) -> np.ndarray:
            made = index - len(supports)
            if made < 0:
                return supports[index]
            if made < len(kept):
                return decode(road.done["synthesize"].path / self._records[kept[made]]["file"])
            return further[made - len(kept)]

        return one_by_one(image, spec, STRENGTHS[road.recipe.distill.augment], road.recipe.distill.flip)

    @cached_property
    def data(self) -> Any:
        """All that a student of this build may learn from, at its own input size."""
        return self.training_set(self.spec)

    @cached_property
    def taught_data(self) -> Any:
        """The same at the size that the teacher labels it at."""
        return self.data if self.taught_spec == self.spec else self.training_set(self.taught_spec)

    def data_of(self, method: Any) -> Any:
        """What the students of a method (distill.batches.Method) learn from."""
        return self.taught_data if method.needs_teacher else self.data

    def train(
        self, way: Way, checkpoint: Path | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Any:
        """The student made in one way."""
        from tinyforge.distill.train import methods

        wanted = self.road.recipe.distill
        if way.support_share is not None:
            wanted = wanted.model_copy(update={"support_share": way.support_share})
        chosen = {one.name: one for one in methods(wanted)}[way.method]
        views = self.taught_spec if chosen.needs_teacher else self.spec
        data = self.data_of(chosen) if way.alpha is None else self.training_set(views, way.alpha)
        look = self.look(views, way.alpha)
        how = {"start": self.start, "checkpoint": checkpoint, "look": look, "progress": progress}
        return self.learn(chosen, wanted, data, device=self.road.device, **how)

    def learn(self, method: Any, wanted: Distill, data: Any, **how: Any) -> Any:
        """A student of ``method`` (distill.batches.Method) on ``data``: the same student, views, batches and number of
        steps as any other's. how: further arguments of ``train_student``.
        """
        from tinyforge.distill.train import seeded_student, train_student

        num_classes, seed = len(self.road.inputs.support.classes), self.road.recipe.seed
        student = seeded_student(wanted, num_classes, self.spec.size[0], seed, offline=self.road.job.offline)
        return train_student(student, self.spec, data, method, wanted, seed=seed, teacher=self.teacher, **how)

    def dropped(self) -> dict[str, Any] | None:
        """How many synthetic images were made and are kept, per class, and why the others are not."""
        if not self.images:
            return None
        num_classes = len(self.road.inputs.support.classes)

        def count(indices: np.ndarray) -> list[int]:
            return np.bincount(self.labels[indices], minlength=num_classes).tolist()

        rejected = np.flatnonzero(~self.agreement.keep)
        return {
            "total": self.agreement.total, "kept": count(self.kept),
            "rejected": count(rejected), "duplicates": count(self.duplicates),
        }  # fmt: skip


def work(road: Road, partial: Partial) -> None:
    support, test = road.inputs.support, road.inputs.test
    with crew(road.recipe.speed.side_by_side, road.device) as hands:
        teacher = adapted_teacher(road, partial.path / "teacher", hands.each)
        images, labels = synthetic_images(road.done["synthesize"], support.classes)
        room = Classroom(road, teacher, images, labels)
        asked = students(room, partial, hands)
        shipped, trial = outcome(room, partial, hands)
        if shipped not in asked:
            asked[shipped] = hands.ask(make_student, room, partial, shipped, hands)
        if test is not None:
            answers = hands.ask(teacher.predict_logits, test.rgb)
            partial.write_json("predictions/teacher.json", predictions(test, answers.result()))
        histories = {way.name: student.result() for way, student in asked.items()}
    partial.write_json(
        "distill.json",
        {
            "shipped": shipped.name,
            "trial": trial,
            "student": road.recipe.distill.student,
            "input": room.spec.to_json(),
            "start": start_fingerprint(road.recipe.distill),
            "teacher": {"lr": teacher.lr, **teacher.record},
            "agreement": room.dropped(),
            "histories": histories,
        },
    )
    partial.remove("checkpoints")


def students(room: Classroom, partial: Partial, hands: Crew) -> dict[Way, Any]:
    """Those that every build makes, whatever its trial says, each with its history in the future. They come first:
    the short pieces of the trial then fill the gaps between these long ones.
    """
    room.data, room.taught_data  # noqa: B018  (once, before several students want them)
    ways = dict.fromkeys((*rows(room.road, room), *map(Way, BASELINES)))
    return {way: hands.ask(make_student, room, partial, way, hands) for way in ways}


def make_student(room: Classroom, partial: Partial, way: Way, hands: Crew) -> list[dict[str, float]]:
    """Train the student of one way; write it and its answers on the test set. Returns its training history."""
    from safetensors.torch import save

    from tinyforge.distill.train import predict_logits

    progress, test = hands.watched(room.road.progress(f"student {way.name}")), room.road.inputs.test
    result = room.train(way, partial.path / "checkpoints" / way.name, progress)
    partial.write(f"students/{way.name}/student.safetensors", save(result.student.state_dict()))
    if test is not None:
        answers = predict_logits(result.student, test.rgb, room.spec)
        partial.write_json(f"predictions/{way.name}.json", predictions(test, answers))
    return result.history


def outcome(room: Classroom, partial: Partial, hands: Crew) -> tuple[Way, dict[str, Any] | None]:
    """The way that ships: by trial, or as the recipe forces it, and then there is no record of a trial."""
    labels = room.road.recipe.distill.labels
    if labels != "auto":
        return forced(labels, len(room.kept), len(room.road.inputs.unlabelled)), None
    shipped, record = hold(room, partial, hands)
    room.road.job.log(f"trial: {record['why']}")
    return shipped, record


def rows(road: Road, room: Classroom) -> list[Way]:
    """The student of all that may be learned from is always made, so that the report shows what it is worth."""
    labels = {"auto": "teacher"}.get(road.recipe.distill.labels, road.recipe.distill.labels)
    way = forced(labels, len(room.kept), len(road.inputs.unlabelled))
    return [] if way.method in BASELINES else [way]


def adapted_teacher(road: Road, folder: Path, each: Callable[..., Any] = map) -> Any:
    """The teacher of ``folder``, adapted to the supports now if it is not there. ``each``: like ``map``, may work on
    several folds at once.
    """
    from tinyforge.distill.teacher import adapt, load_adapted, save_teacher

    if not (folder / "teacher.json").is_file():
        support = road.inputs.support
        teacher = adapt(
            road.extractor, support.rgb, support.labels, road.recipe.teacher,
            seed=road.recipe.seed, device=road.device, each=each,
        )  # fmt: skip
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
