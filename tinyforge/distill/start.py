"""A student's starting weights, trained on base classes that no task will ask for.

::

    student.safetensors    all weights, in half precision; a student of other classes takes all but the classifier
    start.json             student, input, base classes, how it was trained

Sources: training on all base classes at once, Tian et al. 2020 (RFS), arXiv 2003.11539; a classifier made of the
supports' features, Qi et al. 2018, arXiv 1712.07136.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tinyforge.errors import DataError, MissingError

WEIGHTS, ABOUT = "student.safetensors", "start.json"


@dataclass(frozen=True)
class Start:
    """weights: of the body, the classifier left out. fingerprint: sha256 of the file they come from."""

    student: str
    weights: dict[str, Tensor]
    fingerprint: str


def load_start(folder: Path, student: str) -> Start:
    """Raises MissingError where there is none, DataError where it is of another student."""
    if not (folder / ABOUT).is_file():
        raise MissingError(f"{folder}: no starting weights there (no {ABOUT})")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        stored = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as fault:
        raise DataError(f"{folder}: cannot be read as starting weights ({fault})") from fault
    if about["student"] != student:
        raise DataError(f"{folder}: starting weights of {about['student']}, but the student is {student}")
    weights = {name: value.float() if value.is_floating_point() else value for name, value in stored.items()}
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


def classifier_of(student: nn.Module) -> nn.Module | None:
    """The student's classifier, None where it has none by that name."""
    return dict(student.named_modules()).get(classifier_names(student)[0].removesuffix("."))


def body_features(student: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
    """Standardised (B, 3, h, w) -> what the student gives its classifier ``head`` (B, D), float32."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        student(x)
    finally:
        hook.remove()
    return seen[0].float()


SHARPNESS = 10.0


@torch.no_grad()
def imprint(student: nn.Module, x: Tensor, labels: Tensor) -> nn.Module:
    """``student`` (changed in place) with a classifier that takes the nearest class mean of the body's features.

    x: (n, 3, h, w) standardised supports, every class among their labels (n,). Logits are the differences of squared
    distances, in units of the supports' mean squared distance to their centre, times SHARPNESS / 2. A classifier that
    is not one linear layer is left as it is.
    """
    head = classifier_of(student)
    if not isinstance(head, nn.Linear):
        return student
    feature = body_features(student.eval(), head, x)
    means = torch.stack([feature[labels == label].mean(0) for label in range(head.out_features)])
    centre = means.mean(0)
    scale = SHARPNESS / (feature - centre).square().sum(1).mean().clamp(min=1e-12)
    away = means - centre
    head.weight.copy_(scale * away)
    head.bias.copy_(-scale * (away @ centre + away.square().sum(1) / 2))
    return student
