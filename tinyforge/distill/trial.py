"""Short students on trial: each learns without some of the supports, and is then asked about those.

All students of a trial learn from the same views, drawn once, so that the teacher labels each view once. What stems
from a support that is held out (its own views, and those of synthetic images made from its inversion) teaches no
student that is asked about it.

Legend: V views, N classes, n training images, m held-out supports, h w the student's input.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinyforge.device.spec import InputSpec
from tinyforge.distill.augment import STRENGTHS, augment
from tinyforge.distill.batches import Each, Method, TrainingSet, batch_indices, deal, generator_for
from tinyforge.distill.extractor import Extractor
from tinyforge.distill.losses import UNLABELLED
from tinyforge.distill.pixels import CHUNK, standardise, to_unit
from tinyforge.distill.prototypes import Teacher, cosine_logits, embed
from tinyforge.distill.start import Start
from tinyforge.distill.train import learn, seeded_student, set_out
from tinyforge.recipe import Distill

VIEW_BYTES = 2**28  # of views that are kept; where more are asked for, they repeat earlier


@dataclass(frozen=True)
class Views:
    """pixels: uint8 (V, 3, h, w). image: (V,) the training image that each shows. The first ``num_of_supports`` show
    supports.
    """

    pixels: Tensor
    image: Tensor
    num_of_supports: int


@dataclass(frozen=True)
class Court:
    """What all students of a trial share.

    data: the training set, supports first. origin: (n,) the support that each image was made from; a support's is
    itself, and -1 is none. folds: per support the fold in which it is held out, -1: never. settings: of the short
    training.
    """

    data: TrainingSet
    origin: Tensor
    folds: Tensor
    spec: InputSpec
    settings: Distill
    num_classes: int
    seed: int
    device: str = "cpu"
    start: Start | None = None

    @property
    def num_folds(self) -> int:
        """0 where no class has two supports: nothing can be held out."""
        return int(self.folds.max()) + 1

    def held_out(self, fold: int) -> Tensor:
        """(m,) the supports that the students of this fold are asked about."""
        return (self.folds == fold).nonzero()[:, 0]

    def allowed(self, fold: int) -> Tensor:
        """(n,) bool: images that are neither held out nor made from one that is."""
        return ~torch.isin(self.origin, self.held_out(fold))


@dataclass(frozen=True)
class Candidate:
    """A way of making the student. usable: (n,) bool, the training images that it may learn from in any fold."""

    method: Method
    support_share: float
    usable: Tensor


def draw_views(data: TrainingSet, settings: Distill, seed: int) -> Views:
    """As many views of supports as one student sees in all, and as many of the other images; within each of the two,
    every image equally often, and where there is room every support at least once.
    """
    most = max(1, VIEW_BYTES // (2 * data.pixels[0].numel()))
    count = min(most, max(data.num_supports, settings.epochs * settings.steps_per_epoch * settings.batch_size))
    generator = generator_for(seed, "trial views")
    image = deal(count, 0, data.num_supports, generator)
    if len(data.labels) > data.num_supports:
        image = torch.cat([image, deal(count, data.num_supports, len(data.labels), generator)])
    strength = STRENGTHS[settings.augment]
    parts = [
        augment(to_unit(data.pixels[part]), strength, generator, settings.flip).mul(255).round().byte()
        for part in image.split(CHUNK)
    ]
    return Views(torch.cat(parts), image, count)


def view_features(extractor: Extractor, views: Views, device: str, each: Each = map) -> Tensor:
    """(V, D) unit features on the CPU: with them a teacher that was not fine-tuned labels the views for every fold.
    each: like ``map``, may work on several parts at once.
    """
    extractor.module.to(device)

    def of_part(pixels: Tensor) -> Tensor:
        return embed(extractor, to_unit(pixels.to(device))).cpu()

    return torch.cat(list(each(of_part, views.pixels.split(CHUNK))))


def label_views(teacher: Teacher, views: Views, device: str, known: Tensor | None = None) -> Tensor:
    """The teacher's logits (V, N), on the CPU. known: ``view_features`` of its extractor, if that is at hand."""
    feature = view_features(teacher.extractor, views, device) if known is None else known
    return cosine_logits(feature, teacher.prototypes.cpu(), teacher.scale)


def held_out_logits(court: Court, candidate: Candidate, fold: int, views: Views, soft: Tensor) -> np.ndarray:
    """Logits (m, N) for the supports of one fold, by a student that learned from all else that it may use.

    soft: (V, N), the views as a teacher labels them that has not seen these supports either.
    """
    method = candidate.method
    settings = court.settings.model_copy(update={"support_share": candidate.support_share})
    usable = court.allowed(fold) & candidate.usable
    if not method.needs_teacher:
        usable &= court.data.labels != UNLABELLED
    rows = usable[views.image].nonzero()[:, 0]
    labelled = court.data.labels[views.image[rows]] != UNLABELLED
    rows = torch.cat([rows[labelled], rows[~labelled]])  # as a training set wants them
    num_supports = int((rows < views.num_of_supports).sum())
    given = TrainingSet(views.pixels[rows], court.data.labels[views.image[rows]], num_supports)
    student = seeded_student(settings, court.num_classes, court.spec.size[0], court.seed)
    own = usable[: court.data.num_supports].nonzero()[:, 0]
    supports = TrainingSet(court.data.pixels[own], court.data.labels[own], len(own))
    run, settings = set_out(student, court.start, supports, court.spec, settings, court.device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
        for step in range(settings.epochs * settings.steps_per_epoch):
            chosen = batch_indices(given, method.use_synthetic, settings, generator_for(court.seed, "trial", step))
            view, labels = to_unit(given.pixels[chosen].to(court.device)), given.labels[chosen].to(court.device)
            taught = soft[rows[chosen]].to(court.device) if method.needs_teacher else None
            learn(run, view, taught, labels, court.spec, method, settings)
    student.load_state_dict(run.average)
    student.to(device="cpu", memory_format=torch.contiguous_format).eval()
    asked = to_unit(court.data.pixels[court.held_out(fold)])
    with torch.inference_mode():
        return student(standardise(asked, court.spec)).float().numpy()
