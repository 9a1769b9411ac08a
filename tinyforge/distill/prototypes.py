"""A classifier by class prototypes over a feature extractor; its answers, its agreement with labels, its files.

Legend: B batch, N classes, D feature width, n support images, H W any pixels, h w the teacher's input size.
Source: Snell et al. 2017, arXiv 1703.05175; cosine in place of distance as in P>M>F (Hu et al. 2022, arXiv 2204.07305).
"""

import hashlib
import json
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from tinyforge.device.spec import InputSpec
from tinyforge.distill.extractor import Extractor
from tinyforge.distill.pixels import CHUNK, fit_to, pack, parts, standardise, to_unit
from tinyforge.errors import DataError
from tinyforge.store import write_atomic


def features(module: nn.Module, x: Tensor, spec: InputSpec) -> Tensor:
    """[0, 1] (B, 3, h, w) -> features (B, D) of length 1."""
    return F.normalize(module(standardise(x, spec)).float(), dim=1)


def embed(extractor: Extractor, x: Tensor) -> Tensor:
    """[0, 1] (M, 3, H, W) of any size, resized whole to the teacher's -> features (M, D) of length 1, without gradient
    and in parts.
    """
    fitted = fit_to(x, extractor.spec.size)
    with torch.no_grad():
        return torch.cat([features(extractor.module, part, extractor.spec) for part in parts(fitted)])


def prototypes(feature: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Class means (N, D) of unit features (n, D). Every class needs an image."""
    member = F.one_hot(labels, num_classes).to(feature.dtype)
    return (member.T @ feature) / member.sum(dim=0)[:, None]


def cosine_logits(feature: Tensor, prototype: Tensor, scale: float) -> Tensor:
    """(B, N) = scale * cos(feature, prototype). P>M>F adds a constant to the cosine, which no softmax sees."""
    with torch.autocast(feature.device.type, enabled=False):  # the differences between classes are small
        return scale * F.normalize(feature.float(), dim=1) @ F.normalize(prototype, dim=1).T


@dataclass(frozen=True)
class Teacher:
    """A feature extractor, perhaps fine-tuned, and the classes' prototypes (N, D).

    lr: of the fine-tuning, 0 if there was none. record: how it was chosen, and each lr's accuracy on the supports.
    """

    extractor: Extractor
    prototypes: Tensor
    scale: float
    lr: float
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides its answers: the extractor's weights, the lr, the scale and the prototypes."""
        digest = hashlib.sha256(f"{self.extractor.fingerprint} {self.lr!r} {self.scale!r}".encode())
        digest.update(self.prototypes.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: str) -> "Teacher":
        module = self.extractor.module.to(device)
        return replace(self, extractor=replace(self.extractor, module=module), prototypes=self.prototypes.to(device))

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """[0, 1] (B, 3, H, W) of any size, resized whole to the teacher's -> (B, N) = scale * cosine, on x's device."""
        return cosine_logits(embed(self.extractor, x), self.prototypes, self.scale)

    def predict_logits(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """uint8 (H, W, 3) images of any sizes, through the teacher's own preprocessing -> float32 (B, N)."""
        pixels = pack(images, self.extractor.spec)
        device = self.prototypes.device
        found = [self.logits(to_unit(part).to(device)).cpu().numpy() for part in pixels.split(CHUNK)]
        return np.concatenate(found) if len(pixels) else np.empty((0, len(self.prototypes)), np.float32)


@dataclass(frozen=True)
class Remembering(Teacher):
    """A teacher that answers what it was asked before from memory: students that see the same views share its work."""

    known: dict[bytes, Tensor] = field(default_factory=dict)

    def logits(self, x: Tensor) -> Tensor:
        key = hashlib.sha256(repr(x.shape).encode() + x.detach().cpu().numpy().tobytes()).digest()
        if key not in self.known:
            self.known[key] = super().logits(x)
        return self.known[key]


def remembering(teacher: Teacher) -> Remembering:
    """``teacher``, with a memory of its own that is empty."""
    return Remembering(**{one.name: getattr(teacher, one.name) for one in fields(teacher)})


@dataclass(frozen=True)
class Agreement:
    """probability (n,) of each image's own class; keep (n,) bool; kept and total per class."""

    probability: np.ndarray
    keep: np.ndarray
    kept: list[int]
    total: list[int]


def agreement(teacher: Teacher, images: Iterable[np.ndarray], labels: Any, minimum: float) -> Agreement:
    """Which images the teacher gives at least ``minimum`` probability of their class. 0 keeps all."""
    logits = torch.from_numpy(teacher.predict_logits(images))
    y = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    probability = logits.softmax(dim=1).gather(1, y[:, None])[:, 0].numpy()
    keep = probability >= minimum
    num_classes = len(teacher.prototypes)
    kept = torch.bincount(y[torch.from_numpy(keep)], minlength=num_classes)
    return Agreement(probability, keep, kept.tolist(), torch.bincount(y, minlength=num_classes).tolist())


def save_teacher(teacher: Teacher, folder: Path) -> None:
    """teacher.safetensors: prototypes, and the weights when fine-tuned. teacher.json: the rest."""
    tensors = {"prototypes": teacher.prototypes}
    if teacher.lr > 0:
        tensors |= {f"module.{key}": value for key, value in teacher.extractor.module.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "teacher.safetensors", save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
    record = {
        "name": teacher.extractor.name,
        "fingerprint": teacher.extractor.fingerprint,
        "input": teacher.extractor.spec.to_json(),
        "scale": teacher.scale,
        "lr": teacher.lr,
        **teacher.record,
    }
    write_atomic(folder / "teacher.json", (json.dumps(record, indent=2) + "\n").encode())


def load_adapted(folder: Path, extractor: Extractor) -> Teacher:
    """What ``save_teacher`` wrote, on the extractor it was adapted from. Raises DataError for another one."""
    record = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
    if record.pop("fingerprint") != extractor.fingerprint:
        raise DataError(f"{folder}: this teacher was adapted from other weights of {record['name']!r}")
    tensors = load_file(folder / "teacher.safetensors")
    prototype = tensors.pop("prototypes")
    module = deepcopy(extractor.module)
    if tensors:
        module.load_state_dict({key.removeprefix("module."): value for key, value in tensors.items()})
    known = {"name", "input", "scale", "lr"}
    rest = {key: value for key, value in record.items() if key not in known}
    return Teacher(replace(extractor, module=module), prototype, record["scale"], record["lr"], rest)
