"""Every model of the recipe from one student: made, then judged against torch. The compress stage on one screen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tinyforge.compress.export import export_onnx, export_openvino
from tinyforge.compress.metadata import model_metadata
from tinyforge.compress.parity import Drop, Parity, accuracy_drop, compare, gate, infer, require_fp32
from tinyforge.compress.quantize import Calibration, Tried, quantize_onnx, quantize_openvino
from tinyforge.device.runtime import open_session
from tinyforge.device.spec import InputSpec
from tinyforge.errors import GateError
from tinyforge.recipe import Compress

REFERENCE = "onnx-fp32"  # always made: every other model comes from it
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class Variant:
    """A model that was made, or why it was not. files: relative; the first is opened, the others belong to it."""

    name: str
    runtime: str
    precision: str
    files: tuple[str, ...]
    model_bytes: int
    tried: tuple[Tried, ...] = ()
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "runtime": self.runtime,
            "precision": self.precision,
            "files": list(self.files),
            "model_bytes": self.model_bytes,
            "tried": [one.to_json() for one in self.tried],
            "failure": self.failure,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Variant":
        tried = tuple(Tried.from_json(one) for one in record["tried"])
        return cls(**{**record, "files": tuple(record["files"]), "tried": tried})


@dataclass(frozen=True)
class Verdict:
    """A judged variant. reason: why its gate failed, '' when it passed. logits: (B, N) float32, on the real images."""

    name: str
    reason: str
    parity: Parity | None = None
    drop: Drop | None = None
    logits: np.ndarray | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "reason": self.reason,
            "parity": self.parity and self.parity.to_json(),
            "drop": self.drop and self.drop.to_json(),
        }


def make_variants(
    student: nn.Module,
    spec: InputSpec,
    classes: Sequence[str],
    folder: Path,
    settings: Compress,
    data: Calibration,
    *,
    name: str,
    opset: int,
) -> list[Variant]:
    """Write every model of ``settings.precisions``, and the fp32 reference, into ``folder``.

    data: calibration inputs, prepared by ``device.preprocess`` from support and synthetic images. A quantisation of
    which every method failed is returned with its failure; a failed export raises GateError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = model_metadata(name, classes, spec)
    reference = export_onnx(student, spec, folder / f"{REFERENCE}.onnx", opset=opset, metadata=metadata)
    makers = {
        "onnx-int8": lambda out: quantize_onnx(reference, out, data, metadata),
        "openvino-fp16": lambda out: _untried(export_openvino(reference, out, fp16=True, metadata=metadata)),
        "openvino-int8": lambda out: quantize_openvino(reference, out, data, metadata),
    }
    made = [_describe(folder, REFERENCE)]
    for variant in dict.fromkeys(settings.precisions):
        if variant == REFERENCE:
            continue
        try:
            made.append(_describe(folder, variant, makers[variant](folder / _files(variant)[0])))
        except GateError as error:
            made.append(_describe(folder, variant, failure=str(error)))
    return made


def judge(
    variant: Variant,
    folder: Path,
    student_logits: np.ndarray,
    images: np.ndarray,
    settings: Compress,
    *,
    labels: np.ndarray | None,
    threads: int,
) -> Verdict:
    """Answers of ``variant`` through the bundle's own runtime, compared with torch on the same real images; its gate.

    student_logits: (B, N) of torch. images: (B, ...) prepared inputs. labels: (B,) class indices, or None: no accuracy
    drop. Raises GateError when the fp32 export does not answer as the student does; any other failure is a reason.
    """
    if variant.failure:
        return Verdict(variant.name, variant.failure)
    logits = infer(open_session(folder / variant.files[0], variant.runtime, threads), images)
    parity = compare(student_logits, logits)
    drop = None if labels is None else accuracy_drop(student_logits, logits, labels)
    reason = gate(variant.name, parity, drop, settings)
    require_fp32(variant.name, reason)
    return Verdict(variant.name, reason, parity, drop, logits)


def _untried(_: Path) -> list[Tried]:
    """A model of which there is one way to make it."""
    return []


def _files(variant: str) -> tuple[str, ...]:
    return (f"{variant}.onnx",) if variant.startswith("onnx") else (f"{variant}.xml", f"{variant}.bin")


def _describe(folder: Path, variant: str, tried: Sequence[Tried] = (), failure: str = "") -> Variant:
    kind, precision = variant.split("-")
    files = () if failure else _files(variant)
    size = sum((folder / file).stat().st_size for file in files)
    return Variant(variant, RUNTIMES[kind], precision, files, size, tuple(tried), failure)
