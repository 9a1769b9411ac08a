"""Training a student's starting weights (see ``distill.start``) on base classes: classification, then episodes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import Tensor

from tinyforge.device.spec import InputSpec
from tinyforge.distill.batches import Method
from tinyforge.distill.episodes import practise
from tinyforge.distill.start import ABOUT, WEIGHTS
from tinyforge.distill.train import seeded_student, train_student, training_set
from tinyforge.recipe import Distill
from tinyforge.store import write_atomic

EPISODE_SHARE = 1 / 3  # episodes, in steps of classification
EPISODE_LR_SHARE = 0.2


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
    """Train ``settings.student`` on base classes and write ``folder``; continues from its own checkpoints there.

    pixels: uint8 (n, 3, h, w) at the spec's size. labels: (n,) indices of ``classes``. epochs and steps_per_epoch of
    ``settings`` say how long; each batch is drawn from all images. EPISODE_SHARE as many episodes follow.
    """
    data, work = training_set(pixels, labels), folder / "checkpoint"
    steps = settings.epochs * settings.steps_per_epoch
    episodes = round(EPISODE_SHARE * steps)
    told = progress or (lambda done, total: None)
    student = seeded_student(settings, len(classes), spec.size[0], seed)
    result = train_student(
        student, spec, data, Method("start", False, "class", 1.0), settings, seed=seed,
        checkpoint=work / "classes", device=device, progress=lambda done, _: told(done, steps + episodes),
    )  # fmt: skip
    gentler = settings.model_copy(update={"lr": EPISODE_LR_SHARE * settings.lr})
    losses = practise(
        result.student, data.pixels, data.labels, spec, gentler, episodes, work / "episodes", seed=seed, device=device,
        progress=lambda done, _: told(steps + done, steps + episodes),
    )  # fmt: skip
    halves = {name: x.half() if x.is_floating_point() else x for name, x in result.student.state_dict().items()}
    write_atomic(folder / WEIGHTS, save(halves))
    last = result.history[-1] | {"episode_loss": float(np.mean(losses[-settings.steps_per_epoch :]))}
    about = {
        "student": settings.student, "input": spec.to_json(), "classes": list(classes), "images": len(pixels),
        "settings": settings.model_dump(mode="json"), "episodes": episodes, "seed": seed, "last": last,
    }  # fmt: skip
    write_atomic(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    shutil.rmtree(work, ignore_errors=True)  # there is none after a short training
