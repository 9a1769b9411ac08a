"""Distillation: a small student learns from a few real images, many synthetic ones and a teacher.

All images of a run are one uint8 tensor in memory. A batch is a pure function of (seed, step), so an interrupted run
continues from its last checkpoint to the same weights, bit by bit. Legend: B batch, N classes, h w the student's
input.
"""

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tinyforge.device.spec import InputSpec
from tinyforge.distill.arithmetic import autocast, gains
from tinyforge.distill.augment import STRENGTHS, augment
from tinyforge.distill.batches import (
    Method,
    TrainingSet,
    batch_indices,
    generator_for,
    methods,
    num_distinct,
    training_set,
)
from tinyforge.distill.checkpoint import Run, restore_run, save_run, start_run
from tinyforge.distill.losses import UNLABELLED, distillation_loss
from tinyforge.distill.pixels import fit_to, pack, parts, standardise, to_unit
from tinyforge.distill.plain import Look
from tinyforge.distill.prototypes import Remembering, Teacher, remembering
from tinyforge.distill.start import Start, begin, imprint
from tinyforge.distill.students import build_student
from tinyforge.errors import DataError, RecipeError
from tinyforge.recipe import Distill

__all__ = [
    "Method",
    "StudentResult",
    "answer",
    "learn",
    "methods",
    "predict_logits",
    "seeded_student",
    "train_student",
    "training_set",
]

WARMUP_SHARE = 0.05
CHECKPOINT_SECONDS = 5.0
LONGEST_GRADIENT = 5.0
"""With starting weights a longer gradient is shortened to this norm. Their batch norms keep their statistics, so they
do not undo a step that is too long: under a teacher sure of itself the loss rose twentyfold in the second epoch
(docs/results/photo-models.md).
"""
GLOBAL_GENERATOR = threading.Lock()
"""Torch's global generator draws a fresh network's weights: one network at a time."""


@dataclass(frozen=True)
class StudentResult:
    """student: averaged weights, eval mode, on the CPU. history: per epoch the mean loss, batch accuracy and lr."""

    student: nn.Module
    spec: InputSpec
    history: list[dict[str, float]]


def seeded_student(
    settings: Distill, num_classes: int, input_size: int, seed: int, *, offline: bool = True
) -> nn.Module:
    """A fresh student whose random weights depend on the seed alone; torch's global generator is left as it was."""
    with GLOBAL_GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, "student").initial_seed())
        return build_student(
            settings.student, num_classes, input_size=input_size, pretrained=settings.pretrained, offline=offline
        )


def learning_rate(step: int, num_steps: int, peak: float, warmup_share: float = WARMUP_SHARE) -> float:
    """Linear rise over the first share of the steps, then a half cosine that would be 0 one step past the end."""
    warmup = max(1, round(num_steps * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def average_decay(step: int, decay: float) -> float:
    """Decay of the weight average at this step: small at first, so that the random start is forgotten."""
    return min(decay, (1 + step) / (10 + step))


def train_student(
    student: nn.Module,
    spec: InputSpec,
    data: TrainingSet,
    method: Method,
    settings: Distill,
    *,
    seed: int,
    teacher: Teacher | None = None,
    start: Start | None = None,
    checkpoint: Path | None = None,
    device: str = "cpu",
    look: Look | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StudentResult:
    """Train ``student`` (changed in place) by ``method``, from ``start`` if one is given; continue from ``checkpoint``
    (a folder) if it holds this very run. data: images of the student's size or larger, of which the teacher then sees
    more than the student. look: what makes a batch's views; None: all at once, on the device.

    progress(step, num_steps) is called after every step; an exception it raises stops the run, which can be continued.
    Raises DataError when the method needs a teacher and there is none.
    """
    settings = settings.model_copy(update={"distinct_batches": num_distinct(data, settings)})
    teacher = _wanted_teacher(method, teacher, settings, device)
    if teacher is None:  # images that nobody labels teach nothing
        data = data.labelled()
    num_steps = settings.epochs * settings.steps_per_epoch
    identity = _identity(data, method, settings, seed, spec, teacher, start)
    run, settings = set_out(student, start, data, spec, settings, device)
    look = look or at_once(data, settings, device)
    if checkpoint is not None:
        restore_run(run, checkpoint, identity)
    saved_at = time.monotonic()
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
        while run.step < num_steps:
            _one_step(run, data, look, spec, method, settings, seed, teacher)
            if checkpoint is not None and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                save_run(run, checkpoint, identity)
                saved_at = time.monotonic()
            if progress is not None:
                progress(run.step, num_steps)
    student.load_state_dict(run.average)
    student.to(device="cpu", memory_format=torch.contiguous_format).eval()
    return StudentResult(student, spec, run.history)


def set_out(
    student: nn.Module, start: Start | None, supports: TrainingSet, spec: InputSpec, settings: Distill, device: str
) -> tuple[Run, Distill]:
    """A run at its first step, and its settings. From ``start``: a classifier made of the supports, a gentler rate, and
    batch norms that keep their statistics, since a few supports would only blur what many images taught.
    """
    if start is not None:
        own = slice(supports.num_supports)
        imprint(begin(student, start), as_seen(to_unit(supports.pixels[own]), spec), supports.labels[own])
        settings = settings.model_copy(update={"lr": settings.lr * settings.start_lr_share})
    student.to(device=device, memory_format=torch.channels_last)
    return start_run(student, settings, settled=start is not None), settings


def as_seen(view: Tensor, spec: InputSpec) -> Tensor:
    """Views [0, 1] (B, 3, H, W) of any size -> what the student of ``spec`` is given of them, (B, 3, h, w)."""
    return standardise(fit_to(view, spec.size), spec)


def _wanted_teacher(method: Method, teacher: Teacher | None, settings: Distill, device: str) -> Teacher | None:
    if not method.needs_teacher:
        return None
    if teacher is None:
        raise DataError(f"method {method.name!r} needs a teacher")
    if settings.distinct_batches and not isinstance(teacher, Remembering):
        teacher = remembering(teacher)
    return teacher.to(device)


def at_once(data: TrainingSet, settings: Distill, device: str) -> Look:
    """Views of a batch by one call of each operation, from the pixels in memory."""

    def look(chosen: Tensor, generator: torch.Generator) -> Tensor:
        pixels = to_unit(data.pixels[chosen].to(device))
        return augment(pixels, STRENGTHS[settings.augment], generator, settings.flip)

    return look


def _one_step(
    run: Run,
    data: TrainingSet,
    look: Look,
    spec: InputSpec,
    method: Method,
    settings: Distill,
    seed: int,
    teacher: Teacher | None,
) -> None:
    """One batch: the same augmented view for teacher and student, one optimiser step, one of the weight average.

    Where the settings let batches repeat, a teacher that remembers is not asked again.
    """
    device = next(run.student.parameters()).device
    number = run.step % settings.distinct_batches if settings.distinct_batches else run.step
    generator = generator_for(seed, "batch", number)
    chosen = batch_indices(data, method.use_synthetic, settings, generator)
    labels = data.labels[chosen].to(device)
    view = look(chosen, generator).to(device)
    with autocast(settings.dtype, device.type):
        soft = None if teacher is None else teacher.logits(view)
    learn(run, view, soft, labels, spec, method, settings)


def learn(
    run: Run, view: Tensor, soft: Tensor | None, labels: Tensor, spec: InputSpec, method: Method, settings: Distill
) -> None:
    """One optimiser step on views [0, 1] (B, 3, H, W) of any size with the teacher's logits (B, N) or None, and one of
    the weight average; where the run is settled, a long gradient is shortened. Raises RecipeError at the end of an
    epoch whose loss is not finite.
    """
    rate = learning_rate(run.step, settings.epochs * settings.steps_per_epoch, settings.lr)
    run.student.train()
    if run.settled:
        for module in run.student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    dtype = settings.dtype if gains(run.student, view.device.type) else "float32"
    with autocast(dtype, view.device.type):
        logits = run.student(as_seen(view, spec).contiguous(memory_format=torch.channels_last))
    loss = distillation_loss(logits.float(), soft, labels, method.hard_label_share, settings.temperature)
    _descend(run, loss, rate)
    _update_average(run.average, run.student, average_decay(run.step, settings.ema_decay))
    run.step += 1
    _record(run, float(loss.detach()), logits.detach(), labels, rate, settings.steps_per_epoch)


def _descend(run: Run, loss: Tensor, rate: float) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if run.settled:
        nn.utils.clip_grad_norm_(run.student.parameters(), LONGEST_GRADIENT)
    run.optimizer.step()


@torch.no_grad()
def _update_average(average: dict[str, Tensor], student: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * student, batch-norm statistics included; counters are copied."""
    for name, value in student.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


def _record(run: Run, loss: float, logits: Tensor, labels: Tensor, rate: float, steps_per_epoch: int) -> None:
    known = labels != UNLABELLED
    correct = float((logits.argmax(1) == labels)[known].sum())
    run.sums = [a + b for a, b in zip(run.sums, (loss, correct, float(known.sum())), strict=True)]
    if run.step % steps_per_epoch == 0:
        loss_sum, correct_sum, known_sum = run.sums
        if not math.isfinite(loss_sum):
            raise RecipeError(
                f"a student's training diverged in epoch {run.step // steps_per_epoch}: its loss is not finite; "
                "choose a smaller distill.lr or, for a student with starting weights, a smaller distill.start_lr_share"
            )
        epoch = {"epoch": run.step // steps_per_epoch, "loss": loss_sum / steps_per_epoch, "lr": rate}
        run.history.append({**epoch, "accuracy": correct_sum / max(1.0, known_sum)})
        run.sums = [0.0, 0.0, 0.0]


def _identity(
    data: TrainingSet,
    method: Method,
    settings: Distill,
    seed: int,
    spec: InputSpec,
    teacher: Teacher | None,
    start: Start | None,
) -> str:
    """Hash of all that decides the weights, so that a checkpoint of another run is never continued."""
    digest = hashlib.sha256(data.pixels.numpy().tobytes() + data.labels.numpy().tobytes())
    known = [None if one is None else one.fingerprint for one in (teacher, start)]
    parts = [asdict(method), settings.model_dump(mode="json"), seed, spec.to_json(), data.num_supports, *known]
    parts += [] if start is None else [LONGEST_GRADIENT]
    digest.update(json.dumps(parts).encode())
    return digest.hexdigest()


def predict_logits(student: nn.Module, images: Iterable[np.ndarray], spec: InputSpec) -> np.ndarray:
    """uint8 (H, W, 3) images of any sizes -> float32 logits (M, N), through the device's own preprocessing.

    Raises DataError without images: the number of classes is then unknown.
    """
    pixels = pack(images, spec)
    if not len(pixels):
        raise DataError("no images to predict")
    return answer(student, pixels, spec).numpy()


@torch.inference_mode()
def answer(student: nn.Module, pixels: Tensor, spec: InputSpec, device: str = "cpu") -> Tensor:
    """pixels: uint8 (M, 3, h, w) at the spec's size, M > 0 -> the student's logits (M, N), float32 on the CPU."""
    student.to(device=device, memory_format=torch.channels_last).eval()
    found = [student(standardise(to_unit(part), spec)).float().cpu() for part in parts(pixels.to(device))]
    student.to(memory_format=torch.contiguous_format)
    return torch.cat(found)
