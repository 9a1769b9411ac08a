"""What a student is trained on, and in which order.

Legend: B batch, n images, h w the student's input.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tinyforge.distill.losses import UNLABELLED
from tinyforge.errors import DataError
from tinyforge.recipe import Distill

VIEWS_EACH = 5  # distinct views of an image, on average, before batches repeat
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]  # ``map``, or one that works on several at once


@dataclass(frozen=True)
class Method:
    """One way of making a student. All that is not named here (views, steps, batch size, optimiser, seed) is the same
    for all.

    use_synthetic: train on synthetic (and unlabelled) images too. labels: 'class' is cross-entropy only, 'teacher'
    adds the teacher's soft labels. hard_label_share: weight of the class label beside the teacher's; 1 with labels =
    'class'.
    """

    name: str
    use_synthetic: bool
    labels: str
    hard_label_share: float

    @property
    def needs_teacher(self) -> bool:
        return self.labels == "teacher" and self.hard_label_share < 1


def methods(settings: Distill) -> tuple[Method, ...]:
    """The students of a build: on the supports only, with hard labels and with the teacher's; and TINT's, with
    either.
    """
    share = settings.hard_label_share
    return (
        Method("support-hard", False, "class", 1.0),
        Method("support-kd", False, "teacher", share),
        Method("tint-class", True, "class", 1.0),
        Method("tint-teacher", True, "teacher", share),
    )


@dataclass(frozen=True)
class TrainingSet:
    """pixels: uint8 (n, 3, h, w). labels: int64 (n,), UNLABELLED where unknown. The first ``num_supports`` are the
    supports; images without a label come last.
    """

    pixels: Tensor
    labels: Tensor
    num_supports: int

    def labelled(self) -> "TrainingSet":
        known = self.labels != UNLABELLED
        return replace(self, pixels=self.pixels[known], labels=self.labels[known])


def training_set(
    supports: Tensor,
    support_labels: Any,
    synthetic: Tensor | None = None,
    synthetic_labels: Any = (),
    unlabelled: Tensor | None = None,
) -> TrainingSet:
    """uint8 (n, 3, h, w) tensors of ``pixels.pack`` and class indices as one set. Raises DataError without supports."""
    if len(supports) == 0:
        raise DataError("no support images to train on")
    pixels = torch.cat([part for part in (supports, synthetic, unlabelled) if part is not None])
    num_unlabelled = 0 if unlabelled is None else len(unlabelled)
    labels = [*map(int, support_labels), *map(int, synthetic_labels), *[UNLABELLED] * num_unlabelled]
    if len(pixels) != len(labels):
        raise DataError(f"{len(pixels)} training images but {len(labels)} labels")
    return TrainingSet(pixels, torch.tensor(labels, dtype=torch.int64), len(supports))


def deal(count: int, start: int, stop: int, generator: torch.Generator) -> Tensor:
    """``count`` indices from [start, stop): shuffled, every index equally often to within one."""
    rounds = [torch.randperm(stop - start, generator=generator) for _ in range(-(-count // (stop - start)))]
    return torch.cat([torch.empty(0, dtype=torch.int64), *rounds])[:count] + start


def batch_indices(data: TrainingSet, use_synthetic: bool, settings: Distill, generator: torch.Generator) -> Tensor:
    """(B,) indices of one batch: ``support_share`` of it supports, the rest synthetic and unlabelled, where used and
    any; of that rest ``unlabelled_share`` unlabelled, where both are there.
    """
    total = len(data.labels)
    if not use_synthetic or total == data.num_supports:
        return deal(settings.batch_size, 0, data.num_supports, generator)
    from_supports = round(settings.batch_size * settings.support_share)
    supports, rest = deal(from_supports, 0, data.num_supports, generator), settings.batch_size - from_supports
    first = total - int((data.labels == UNLABELLED).sum())  # those without a label come last
    if settings.unlabelled_share is None or first in (data.num_supports, total):
        return torch.cat([supports, deal(rest, data.num_supports, total, generator)])
    unlabelled = deal(round(rest * settings.unlabelled_share), first, total, generator)
    return torch.cat([supports, deal(rest - len(unlabelled), data.num_supports, first, generator), unlabelled])


def num_distinct(data: TrainingSet, settings: Distill) -> int:
    """After how many batches they repeat: ``distinct_batches``, more where that is too few to show supports, and the
    other images, VIEWS_EACH times on average; 0: never.

    All images count, used by a method or not, so that students of the same images repeat alike.
    """
    if settings.distinct_batches == 0:
        return 0
    of_supports = round(settings.batch_size * settings.support_share)
    counts = (
        (data.num_supports, of_supports),
        (len(data.labels) - data.num_supports, settings.batch_size - of_supports),
    )
    return max(settings.distinct_batches, *(math.ceil(VIEWS_EACH * n / share) for n, share in counts if share))


def generator_for(*key: Any) -> torch.Generator:
    """A CPU generator that depends on the key alone, the same on every machine."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
