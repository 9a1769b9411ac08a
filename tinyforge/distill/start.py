"""A student's starting weights, trained on base classes that no task will ask for.

::

    student.safetensors    all weights; a student of other classes takes all but the classifier
    start.json             student, input, base classes, how it was trained

Source: training on all base classes at once as in Tian et al. 2020 (RFS), arXiv 2003.11539.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tinyforge.device.spec import InputSpec
from tinyforge.distill.batches import Method
from tinyforge.distill.train import seeded_student, train_student, training_set
from tinyforge.errors import DataError, MissingError
from tinyforge.recipe import Distill
from tinyforge.store import write_atomic

WEIGHTS, ABOUT = "student.safetensors", "start.json"


@dataclass(frozen=True)
class Start:
    """weights: of the body, the classifier left out. fingerprint: sha256 of the file they come from."""

    student: str
    weights: dict[str, Tensor]
    fingerprint: str


def train_start(
    pixels: Tensor,
    labels: Any,
    classes: tuple[str, ...],
    spec: InputSpec,
    settings: Distill,
    folder: Path,
    *,
    seed: int,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train ``settings.student`` on base classes and write ``folder``; continues from its own checkpoint there.

    pixels: uint8 (n, 3, h, w) at the spec's size. labels: (n,) indices of ``classes``. epochs and steps_per_epoch of
    ``settings`` say how long; each batch is drawn from all images.
    """
    student = seeded_student(settings, len(classes), spec.size[0], seed)
    result = train_student(
        student, spec, training_set(pixels, labels), Method("start", False, "class", 1.0), settings,
        seed=seed, checkpoint=folder / "checkpoint", device=device, progress=progress,
    )  # fmt: skip
    write_atomic(folder / WEIGHTS, save(result.student.state_dict()))
    about = {
        "student": settings.student, "input": spec.to_json(), "classes": list(classes), "images": len(pixels),
        "settings": settings.model_dump(mode="json"), "seed": seed, "last": result.history[-1],
    }  # fmt: skip
    write_atomic(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # there is none after a short training


def load_start(folder: Path, student: str) -> Start:
    """Raises MissingError where there is none, DataError where it is of another student."""
    if not (folder / ABOUT).is_file():
        raise MissingError(f"{folder}: no starting weights there (no {ABOUT})")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as fault:
        raise DataError(f"{folder}: cannot be read as starting weights ({fault})") from fault
    if about["student"] != student:
        raise DataError(f"{folder}: starting weights of {about['student']}, but the student is {student}")
    return Start(student, weights, hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())


def begin(student: nn.Module, start: Start) -> nn.Module:
    """``student`` (changed in place) with the weights of ``start``, except its classifier. Raises DataError when
    they do not fit.
    """
    heads = classifier_names(student)
    body = {name: value for name, value in start.weights.items() if not name.startswith(heads)}
    try:
        missing, unknown = student.load_state_dict(body, strict=False)
    except RuntimeError as fault:
        raise DataError(f"the starting weights do not fit {start.student}: {fault}") from fault
    odd = [name for name in missing if not name.startswith(heads)] + list(unknown)
    if odd:
        raise DataError(f"the starting weights do not fit {start.student}: missing or unknown {', '.join(odd[:4])}")
    return student


def classifier_names(student: nn.Module) -> tuple[str, ...]:
    """Prefixes of the classifier's weights: timm records its name; our own students call it 'head'."""
    own = getattr(student, "pretrained_cfg", None) or {}
    names = own.get("classifier") or "head"
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
