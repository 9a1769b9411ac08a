"""Measure one episode: every method on the same supports and queries; what can be shared is made once."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinyforge.device.spec import InputSpec
from tinyforge.errors import UsageError
from tinyforge.fewshot.frechet import frechet_distance
from tinyforge.fewshot.methods import Method
from tinyforge.fewshot.results import SCHEMA_VERSION
from tinyforge.stages import advance
from tinyforge.stages.distill import Classroom, load_student
from tinyforge.stages.evaluate.images import Images, make_images
from tinyforge.stages.evaluate.lab import Lab, missing_methods
from tinyforge.stages.evaluate.task import Task, embedded
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
    """The record of an episode, what ``known`` holds taken over; None when nothing was missing. Raises UsageError when
    ``known`` was measured otherwise.

    folder: where inversions are kept until the episode is done; an interrupted one continues there.
    """
    methods = missing_methods(lab, index, known)
    if not methods:
        return None
    task, clock, answers, sets, pictures = Task(lab, lab.request.episodes[index], folder), Clock(), {}, {}, {}
    if known is not None and known["supports"] != task.supports:
        raise UsageError(
            f"episode {index} was measured before on other images of these names; choose another --out, or --overwrite"
        )
    for method in (one for one in methods if not one.is_student):
        answer = teacher_answers if method.is_teacher else build_answers
        answers[method.name] = answer(task, method, clock)
    students = [one for one in methods if one.is_student]
    for name in dict.fromkeys(one.images for one in students):
        group = [one for one in students if one.images == name]
        with clock.of("images"):
            images = make_images(task, group[0])
            rooms = {with_base: open_room(task, group, images, with_base) for with_base in {one.base for one in group}}
            if name is not None:
                sets[name] = describe_images(task, next(iter(rooms.values())))
                if lab.request.pictures:
                    pictures[f"{name}.png"] = png(sheet(picture_rows(task, images)))
        for method in group:
            answers[method.name] = student_answers(task, method, rooms[method.base], clock)
    with clock.of("images"):
        sets |= {REAL: describe_real(task)} if sets else {}
    if not lab.request.keep_work:
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(_record(task, known, answers, sets, clock), pictures)


def _record(
    task: Task, known: dict[str, Any] | None, answers: dict[str, Any], sets: dict[str, Any], clock: Clock
) -> dict[str, Any]:
    known = known or {"methods": {}, "images": {}, "seconds": {}}
    settings = task.lab.settings
    methods = {name: {"settings": settings[name], **answer} for name, answer in answers.items()}
    seconds = {what: round(spent + known["seconds"].get(what, 0.0), 3) for what, spent in clock.seconds.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "index": task.episode.index,
        "episode": task.episode.fingerprint,
        "supports": task.supports,
        "classes": list(task.episode.classes),
        "queries": [len(names) for names in task.episode.queries],
        "methods": {**known["methods"], **methods},
        "images": {**known["images"], **sets},
        "seconds": seconds,
    }


def teacher_answers(task: Task, method: Method, clock: Clock) -> dict[str, Any]:
    """A teacher's answers to the queries: of its prototypes alone, or after fine-tuning."""
    import torch

    from tinyforge.distill.pixels import CHUNK, to_unit
    from tinyforge.distill.prototypes import cosine_logits, prototypes

    started = time.monotonic()
    lr, teacher = 0.0, None
    if method.kind == "teacher-tuned":
        with clock.of("learn"):
            teacher = task.teacher if method.value is None else task.tuned(method.value)
            lr = teacher.lr
    with clock.of("queries"):
        if lr > 0:
            pixels = task.query_pixels(teacher.extractor.spec).split(CHUNK)
            logits = torch.cat([teacher.logits(to_unit(part).to(task.lab.device)).cpu() for part in pixels])
        else:  # its features are at hand
            support_labels = torch.from_numpy(task.support.labels)
            centres = prototypes(task.support_features, support_labels, len(task.episode.classes))
            logits = cosine_logits(task.query_features, centres, task.recipe.teacher.scale)
    return _answer(logits, started) | ({} if teacher is None else {"lr": lr})


def build_answers(task: Task, method: Method, clock: Clock) -> dict[str, Any]:
    """What a build would ship: its stages up to the students, its trial included."""
    started = time.monotonic()
    with clock.of("learn"):
        road = task.road()
        advance(road, "distill")
        student, spec = load_student(road)
    with clock.of("queries"):
        logits = query_logits(task, student, spec)
    return _answer(logits, started) | {"shipped": road.done["distill"].json("distill.json")["shipped"]}


def student_answers(task: Task, method: Method, room: Classroom, clock: Clock) -> dict[str, Any]:
    """Train the method's student and let it answer the queries."""
    started = time.monotonic()
    with clock.of("learn"):
        result = train(task, method, room)
    with clock.of("queries"):
        logits = query_logits(task, result.student, result.spec)
    return _answer(logits, started)


def query_logits(task: Task, student: Any, spec: InputSpec) -> Any:
    """(M, N) of a student on the queries."""
    from tinyforge.distill.train import answer

    return answer(student, task.query_pixels(spec), spec, task.lab.device)


def _answer(logits: Any, started: float) -> dict[str, Any]:
    return {"predicted": logits.argmax(dim=1).tolist(), "seconds": round(time.monotonic() - started, 3)}


def open_room(task: Task, group: Sequence[Method], images: Images, with_base: bool) -> Classroom:
    """What the students of one set of images share. As in a build the teacher rejects images, but not real ones."""
    from tinyforge.distill.prototypes import remembering

    road = task.road(with_base=with_base, distill={"min_agreement": 0.0} if group[0].row.images == "real" else None)
    return Classroom(road, remembering(task.teacher) if any(one.needs_teacher for one in group) else None, *images)


def train(task: Task, method: Method, room: Classroom) -> Any:
    """The student of one method."""
    from tinyforge.distill.batches import Method as Way

    wanted = room.road.recipe.distill
    share = 1.0 if method.row.labels == "class" else wanted.hard_label_share
    way = Way(method.name, bool(len(room.images)) or method.base, method.row.labels, share)
    progress = room.road.progress(f"episode {task.episode.index}, {method.name}")
    how = {"start": task.lab.start if method.pretrained else None, "device": task.lab.device, "progress": progress}
    return room.learn(way, wanted, room.data_of(way), **how)


def describe_images(task: Task, room: Classroom) -> dict[str, Any]:
    """How many there are, how many students learn from, how many the teacher takes for their class, and how far they
    are from the queries.
    """
    if not room.images:
        return {"count": 0, "kept": 0, "teacher_agreement": None, "frechet": None}
    taken = task.teacher.predict_logits(room.images).argmax(axis=1) == room.labels
    distance = frechet_distance(task.query_features, embedded(task.lab.extractor, room.images))
    return {
        "count": len(room.images), "kept": len(room.kept),
        "teacher_agreement": float(np.mean(taken)), "frechet": distance,
    }  # fmt: skip


def describe_real(task: Task) -> dict[str, Any]:
    """The same of real images: every second query against the others."""
    found = task.query_features
    return {
        "count": len(found[1::2]),
        "kept": 0,
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
