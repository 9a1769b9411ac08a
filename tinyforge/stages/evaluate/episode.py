"""Measure one episode: every method on the same supports and queries; what can be shared is made once."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.fewshot.frechet import frechet_distance
from tinyforge.fewshot.methods import Method
from tinyforge.fewshot.results import SCHEMA_VERSION
from tinyforge.stages.distill import Classroom
from tinyforge.stages.evaluate.images import Images, make_images
from tinyforge.stages.evaluate.lab import Lab, missing_methods
from tinyforge.stages.evaluate.task import Task, embed
from tinyforge.stages.pictures import png, sheet

SHOWN = 10  # images of a class on a sheet
REAL = "real, halves"  # the distance between two halves of the real images, a measure for the others


@dataclass
class Clock:
    """Seconds by what they were spent on."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("images", "learn", "queries"), 0.0))

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[what] += time.monotonic() - started


@dataclass(frozen=True)
class Outcome:
    """record: see fewshot/results.py. pictures: file name -> PNG."""

    record: dict[str, Any]
    pictures: dict[str, bytes]


def measure(lab: Lab, index: int, known: dict[str, Any] | None, folder: Path) -> Outcome | None:
    """The record of an episode, what ``known`` holds taken over; None when nothing was missing.

    folder: where inversions are kept until the episode is done; an interrupted one continues there.
    """
    methods = missing_methods(lab, index, known)
    if not methods:
        return None
    task, clock, answers, sets, pictures = Task(lab, lab.request.episodes[index], folder), Clock(), {}, {}, {}
    for method in (one for one in methods if one.is_teacher):
        answers[method.name] = teacher_answers(task, method, clock)
    students = [one for one in methods if not one.is_teacher]
    for name in dict.fromkeys(one.images for one in students):
        group = [one for one in students if one.images == name]
        with clock.of("images"):
            images = make_images(task, group[0])
            if name is not None:
                sets[name] = describe_images(task, images)
                if lab.request.pictures:
                    pictures[f"{name}.png"] = png(sheet(picture_rows(task, images)))
        for method in group:
            answers[method.name] = student_answers(task, method, images, clock)
    with clock.of("images"):
        sets |= {REAL: describe_real(task)} if sets else {}
    if not lab.request.keep_work:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(_record(task, known, answers, sets, clock), pictures)


def _record(
    task: Task, known: dict[str, Any] | None, answers: dict[str, Any], sets: dict[str, Any], clock: Clock
) -> dict[str, Any]:
    known = known or {"methods": {}, "images": {}, "seconds": {}}
    keys = task.lab.keys
    methods = {name: {"key": keys[name], **answer} for name, answer in answers.items()}
    seconds = {what: round(spent + known["seconds"].get(what, 0.0), 3) for what, spent in clock.seconds.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "index": task.episode.index,
        "episode": task.episode.fingerprint,
        "classes": list(task.episode.classes),
        "queries": [len(names) for names in task.episode.queries],
        "methods": {**known["methods"], **methods},
        "images": {**known["images"], **sets},
        "seconds": seconds,
    }


def teacher_answers(task: Task, method: Method, clock: Clock) -> dict[str, Any]:
    """A teacher's answers to the queries: of its prototypes alone, or after fine-tuning."""
    import torch

    from tinyforge.distill.pixels import to_unit
    from tinyforge.distill.prototypes import CHUNK, cosine_logits, prototypes

    started = time.monotonic()
    if method.kind == "teacher":
        with clock.of("queries"):
            support_labels = torch.from_numpy(task.support.labels)
            centres = prototypes(task.support_features, support_labels, len(task.episode.classes))
            logits = cosine_logits(task.query_features, centres, task.recipe.teacher.scale)
        return _answer(logits, started)
    with clock.of("learn"):
        teacher = task.teacher if method.value is None else task.tuned(method.value)
    with clock.of("queries"):
        pixels = task.query_pixels(teacher.extractor.spec)
        chunks = [teacher.logits(to_unit(part).to(task.lab.device)).cpu() for part in pixels.split(CHUNK)]
    return _answer(torch.cat(chunks), started) | {"lr": teacher.lr}


def student_answers(task: Task, method: Method, images: Images, clock: Clock) -> dict[str, Any]:
    """Train the method's student and let it answer the queries."""
    import torch

    from tinyforge.distill.pixels import standardise, to_unit
    from tinyforge.distill.prototypes import CHUNK

    started = time.monotonic()
    with clock.of("learn"):
        result = train(task, method, images)
    with clock.of("queries"), torch.inference_mode():
        student, device = result.student.to(task.lab.device).eval(), task.lab.device
        parts = task.query_pixels(result.spec).split(CHUNK)
        logits = [student(standardise(to_unit(part).to(device), result.spec)).float().cpu() for part in parts]
    return _answer(torch.cat(logits), started)


def _answer(logits: Any, started: float) -> dict[str, Any]:
    return {"predicted": logits.argmax(dim=1).tolist(), "seconds": round(time.monotonic() - started, 3)}


def train(task: Task, method: Method, images: Images) -> Any:
    """The student of one method; start, batches, views and number of steps are those of every other."""
    from tinyforge.distill.start import begin
    from tinyforge.distill.train import Method as Way
    from tinyforge.distill.train import seeded_student, train_student

    road = task.road(with_base=method.base)
    wanted, seed, num_classes = road.recipe.distill, road.recipe.seed, len(task.episode.classes)
    room = Classroom(road, task.teacher if method.needs_teacher else None, *images)
    share = 1.0 if method.row.labels == "class" else wanted.hard_label_share
    way = Way(method.name, bool(len(images[0])) or method.base, method.row.labels, share)
    student = seeded_student(wanted, num_classes, room.spec.size[0], seed, offline=road.job.offline)
    if method.pretrained:
        student = begin(student, task.lab.start)
    label = f"episode {task.episode.index}, {method.name}"
    return train_student(
        student, room.spec, room.data, way, wanted, seed=seed, teacher=room.teacher, device=task.lab.device,
        progress=road.progress(label),
    )  # fmt: skip


def describe_images(task: Task, images: Images) -> dict[str, Any]:
    """How many there are, how many of them the teacher takes for their class, and how far they are from the queries."""
    pixels, labels = images
    if not pixels:
        return {"count": 0, "teacher_agreement": None, "frechet": None}
    taken = task.teacher.predict_logits(pixels).argmax(axis=1) == labels
    distance = frechet_distance(task.query_features, embed(task.lab.extractor, pixels))
    return {"count": len(pixels), "teacher_agreement": float(np.mean(taken)), "frechet": distance}


def describe_real(task: Task) -> dict[str, Any]:
    """The same of real images: every second query against the others."""
    found = task.query_features
    return {
        "count": len(found[1::2]),
        "teacher_agreement": None,
        "frechet": frechet_distance(found[::2], found[1::2]),
    }


def picture_rows(task: Task, images: Images) -> list[list[np.ndarray]]:
    """A row per class: its supports, then images of the set."""
    pixels, labels = images
    rows: list[list[np.ndarray]] = []
    for label in range(len(task.episode.classes)):
        own: Sequence[int] = np.flatnonzero(labels == label)[:SHOWN].tolist()
        supports = [item.rgb for item in task.support.items if item.label == label][:5]
        rows.append([*supports, *(pixels[i] for i in own)])
    return rows
