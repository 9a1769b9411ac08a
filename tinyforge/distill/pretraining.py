"""Training a student's starting weights (see ``distill.start``) on base classes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from tinyforge.device.spec import InputSpec
from tinyforge.distill.batches import Method
from tinyforge.distill.start import ABOUT, WEIGHTS
from tinyforge.distill.train import seeded_student, train_student, training_set
from tinyforge.recipe import Distill
from tinyforge.store import write_atomic


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
    halves = {name: x.half() if x.is_floating_point() else x for name, x in result.student.state_dict().items()}
    write_atomic(folder / WEIGHTS, save(halves))
    about = {
        "student": settings.student, "input": spec.to_json(), "classes": list(classes), "images": len(pixels),
        "settings": settings.model_dump(mode="json"), "seed": seed, "last": result.history[-1],
    }  # fmt: skip
    write_atomic(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # there is none after a short training
