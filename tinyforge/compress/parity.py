"""Does an exported model still answer as the student does? Logits against logits on real images, then a gate."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tinyforge.device.runtime import Session
from tinyforge.device.stats import paired_difference
from tinyforge.errors import GateError
from tinyforge.recipe import Compress


@dataclass(frozen=True)
class Parity:
    """Logits of a model beside those of its reference, over ``num_images`` images.

    max_abs_error: in logits, infinite when an answer is not finite. relative_error: RMS error over the standard
    deviation of the reference logits. agreement: share of equal top-1 answers, in [0, 1]. worst_image: index of the
    largest error.
    """

    num_images: int
    max_abs_error: float
    relative_error: float
    agreement: float
    worst_image: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Drop:
    """Paired accuracy lost on labelled images: reference - candidate, with its 95 % interval, in [-1, 1]."""

    num_images: int
    drop: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(reference: np.ndarray, answers: np.ndarray) -> Parity:
    """Two (B, N) logit arrays -> Parity. Raises ValueError when their shapes differ or there is no image."""
    if reference.shape != answers.shape or reference.ndim != 2 or not len(reference):
        raise ValueError(f"logits of shape {answers.shape} cannot be compared with {reference.shape}")
    error = np.abs(answers.astype(np.float64) - reference)
    error[~np.isfinite(error)] = np.inf
    spread = float(reference.astype(np.float64).std()) or 1.0
    return Parity(
        num_images=len(reference),
        max_abs_error=float(error.max()),
        relative_error=float(np.sqrt(np.mean(error**2)) / spread),
        agreement=float(np.mean(reference.argmax(axis=1) == answers.argmax(axis=1))),
        worst_image=int(error.max(axis=1).argmax()),
    )


def accuracy_drop(reference: np.ndarray, answers: np.ndarray, labels: np.ndarray) -> Drop:
    """Two (B, N) logit arrays and (B,) class indices -> Drop."""
    difference, low, high = paired_difference(reference.argmax(axis=1) == labels, answers.argmax(axis=1) == labels)
    return Drop(len(labels), float(difference), float(low), float(high))


def gate(name: str, parity: Parity, drop: Drop | None, settings: Compress) -> str:
    """Why ``name`` fails its gate, '' when it passes: fp32 by its largest error, others by agreement and drop."""
    if not np.isfinite(parity.max_abs_error):
        return "its answers are not finite numbers"
    if name.endswith("fp32"):
        if parity.max_abs_error > settings.max_abs_error:
            return f"largest logit error {parity.max_abs_error:.3g}, allowed {settings.max_abs_error:.3g}"
        return ""
    if parity.agreement < settings.min_agreement:
        return (
            f"agrees with the student on {parity.agreement:.1%} of {parity.num_images} images, "
            f"needed {settings.min_agreement:.1%}"
        )
    if drop is not None and drop.drop > settings.max_drop:
        return (
            f"loses {drop.drop:.1%} accuracy [{drop.low:.1%}, {drop.high:.1%}] on {drop.num_images} images, "
            f"allowed {settings.max_drop:.1%}"
        )
    return ""


def require_fp32(name: str, reason: str) -> None:
    """The fp32 export is the reference of all others: its failure is an error. Raises GateError."""
    if name.endswith("fp32") and reason:
        raise GateError(f"{name}: the export does not answer as the student does: {reason}")


def infer(session: Session, inputs: np.ndarray, batch_size: int = 1) -> np.ndarray:
    """(B, 3, H, W) or NHWC float32 -> logits (B, N), by default one image at a time as the device does."""
    return np.concatenate([session.run(inputs[i : i + batch_size]) for i in range(0, len(inputs), batch_size)])


@torch.no_grad()
def torch_logits(student: nn.Module, inputs: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """The student's own answers, in eval mode on its device: NCHW float32 -> (B, N). Its training mode is restored."""
    device = next(student.parameters()).device
    was_training = student.training
    student.eval()
    try:
        chunks = [torch.from_numpy(inputs[i : i + batch_size]).to(device) for i in range(0, len(inputs), batch_size)]
        return np.concatenate([student(chunk).float().cpu().numpy() for chunk in chunks])
    finally:
        student.train(was_training)
