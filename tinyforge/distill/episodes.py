"""ProtoNet episodes over base classes: the second part of a student's starting weights, after their classification.

The network is asked what a task will ask of it: to tell queries apart by the class means of a few supports. With few
parameters that is not the same as telling all base classes apart.

Sources: Snell et al. 2017, arXiv 1703.05175 (episodes, with more ways than a task has); Chen et al. 2020, arXiv
2003.04390 (after classification; cosine). Legend: N ways, K shots, Q queries of each class, D width.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinyforge.device.spec import InputSpec
from tinyforge.distill.arithmetic import autocast
from tinyforge.distill.augment import STRENGTHS, augment
from tinyforge.distill.batches import generator_for
from tinyforge.distill.checkpoint import restore_run, save_run, start_run
from tinyforge.distill.pixels import standardise, to_unit
from tinyforge.distill.prototypes import cosine_logits, prototypes
from tinyforge.distill.start import body_features
from tinyforge.distill.train import average_decay, descend, learning_rate, update_average
from tinyforge.recipe import Distill

SHOTS = {1: 0.4, 5: 0.6}  # K, and how often
QUERIES = 4
SCALE = 10.0  # logits = SCALE * cosine, as the teacher's
CLIP = 2.0  # of the gradient's norm: an episode's loss varies more than a batch's
SAVE_EVERY = 250


def practise(
    student: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    spec: InputSpec,
    settings: Distill,
    steps: int,
    checkpoint: Path,
    *,
    seed: int,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train the body of ``student`` (changed in place, to the average of its weights) on episodes; continues from
    ``checkpoint``, a folder. The classifier is left as it is.

    pixels: uint8 (n, 3, h, w). labels: (n,) int64. An episode has about ``settings.batch_size`` images, fewer where
    there are few classes. Returns the loss of every step of this run.
    """
    student.to(device=device, memory_format=torch.channels_last)
    run = start_run(student, settings)
    identity = hashlib.sha256(json.dumps([settings.model_dump(mode="json"), steps, seed, spec.to_json()]).encode())
    restore_run(run, checkpoint, identity.hexdigest())
    members = [torch.nonzero(labels == label)[:, 0] for label in labels.unique()]
    losses = []
    while run.step < steps:
        generator = generator_for(seed, "episode", run.step)
        rows, ways, shots = draw(members, settings.batch_size, generator)
        view = augment(to_unit(pixels[rows].to(device)), STRENGTHS[settings.augment], generator, settings.flip)
        student.train()
        with autocast(settings.dtype, view.device.type):
            x = standardise(view, spec).contiguous(memory_format=torch.channels_last)
            features = body_features(student, x).float()
        loss = episode_loss(features.unflatten(0, (ways, -1)), shots)
        descend(run.optimizer, loss, learning_rate(run.step, steps, settings.lr), clip=CLIP)
        update_average(run.average, student, average_decay(run.step, settings.ema_decay))
        losses.append(float(loss.detach()))
        run.step += 1
        if run.step % SAVE_EVERY == 0:
            save_run(run, checkpoint, identity.hexdigest())
        if progress is not None:
            progress(run.step, steps)
    student.load_state_dict(run.average)
    student.to(device="cpu", memory_format=torch.contiguous_format).eval()
    return losses


def draw(members: list[Tensor], batch_size: int, generator: torch.Generator) -> tuple[Tensor, int, int]:
    """(rows, N, K) of an episode. members: the rows of each class. rows: class by class, each K supports and then
    QUERIES queries; an image may come twice.
    """
    shots = list(SHOTS)[int(torch.multinomial(torch.tensor(list(SHOTS.values())), 1, generator=generator))]
    each = shots + QUERIES
    chosen = torch.randperm(len(members), generator=generator)[: max(2, batch_size // each)].tolist()
    picks = [members[c][torch.randint(len(members[c]), (each,), generator=generator)] for c in chosen]
    return torch.cat(picks), len(chosen), shots


def episode_loss(features: Tensor, shots: int) -> Tensor:
    """features (N, K + Q, D), supports first -> cross-entropy of the queries by cosine to the class means."""
    ways, width = len(features), features.shape[-1]
    labels = torch.arange(ways, device=features.device)
    supports = F.normalize(features[:, :shots], dim=-1).reshape(-1, width)
    centres = prototypes(supports, labels.repeat_interleave(shots), ways)
    queries = features[:, shots:].reshape(-1, width)
    return F.cross_entropy(cosine_logits(queries, centres, SCALE), labels.repeat_interleave(len(queries) // ways))
