"""Every model of the recipe from one student, each by the first rung of its ladder that passes the gate.

The loop on one screen: climb, keep, and say of an int8 model how far its ranges reach and what saturates.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tinyforge.compress.coverage import Coverage, coverage
from tinyforge.compress.embed import embed, pixel_spec
from tinyforge.compress.export import export_onnx, move_model, scratch_folder
from tinyforge.compress.ladder import NEXT, RUNTIMES, Materials, Tried, climb
from tinyforge.compress.metadata import model_metadata
from tinyforge.compress.parity import Drop, Parity, accuracy_drop, compare, gate, infer, require_fp32
from tinyforge.compress.saturation import Saturation, saturation
from tinyforge.device.preprocess import normalise
from tinyforge.device.runtime import open_session
from tinyforge.device.spec import InputSpec
from tinyforge.recipe import Compress

REFERENCE = "onnx-fp32"  # always made: every other model comes from it
SATURATION_IMAGES = 200


@dataclass(frozen=True)
class Variant:
    """A model that was made, or why it was not. files: relative; the first is opened, the others belong to it.

    rung: what made it. coverage, saturation: of int8 models, saturation of ONNX ones alone.
    """

    name: str
    runtime: str
    precision: str
    files: tuple[str, ...] = ()
    model_bytes: int = 0
    rung: str = ""
    tried: tuple[Tried, ...] = ()
    failure: str = ""
    coverage: Coverage | None = None
    saturation: Saturation | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "files": list(self.files), "tried": [one.to_json() for one in self.tried]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Variant":
        tried = tuple(Tried.from_json(one) for one in record["tried"])
        reach, sums = record["coverage"], record["saturation"]
        known = {"coverage": reach and Coverage(**reach), "saturation": sums and Saturation(**sums)}
        return cls(**{**record, **known, "files": tuple(record["files"]), "tried": tried})


@dataclass(frozen=True)
class Measured:
    """A model on real images, which its gate did not see. reason: why it may not ship, '' when it may.

    parity, drop: against the student in torch; drop is None without labels. logits: (B, N) float32.
    """

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


def prepare_materials(
    student: nn.Module, spec: InputSpec, classes: Sequence[str], scratch: Path, *, name: str, opset: int, **more: Any
) -> Materials:
    """Export the fp32 reference into ``scratch``; ``more``: the other fields of Materials. Raises GateError."""
    metadata = model_metadata(name, classes, spec)
    fp32 = export_onnx(student, spec, scratch / "student.onnx", opset=opset, metadata=metadata)
    return Materials(student=student, spec=spec, fp32=fp32, metadata=metadata, opset=opset, **more)


def make_variants(
    student: nn.Module, spec: InputSpec, classes: Sequence[str], folder: Path, *, name: str, opset: int, **more: Any
) -> list[Variant]:
    """Write the fp32 reference and every model of ``settings.precisions`` into ``folder``.

    more: the other fields of ``ladder.Materials``. Where no int8 rung passes, the model is returned with its failure
    and half-precision weights are made in its place. Raises GateError when the fp32 export is wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder / REFERENCE) as scratch:
        materials = prepare_materials(student, spec, classes, scratch, name=name, opset=opset, **more)
        waiting, made = list(dict.fromkeys((REFERENCE, *materials.settings.precisions))), []
        for kind in waiting:
            made.append(_climbed(kind, materials, scratch, folder, classes, name))
            if made[-1].failure and NEXT.get(kind, kind) not in waiting:
                waiting.append(NEXT[kind])
    return made


def _climbed(
    kind: str, materials: Materials, scratch: Path, folder: Path, classes: Sequence[str], name: str
) -> Variant:
    """One model kind: the file of the rung that passed, moved to ``folder``."""
    path, tried = climb(kind, materials, scratch)
    family, precision = kind.split("-")
    found = Variant(kind, RUNTIMES[family], precision, tried=tuple(tried))
    if path is None:
        require_fp32(kind, tried[-1].reason)
        return replace(found, failure=_why_none(tried))
    if precision == "int8":
        found = replace(found, coverage=coverage(path, materials.calibration.supports))
    if kind == "onnx-int8":
        found = replace(found, saturation=saturation(path, spread(materials.validation.inputs, SATURATION_IMAGES)))
    if materials.settings.embed_preprocessing:
        embed(path, materials.spec, model_metadata(name, classes, pixel_spec(materials.spec)))
    files = tuple(f"{kind}{suffix}" for suffix in ((".onnx",) if family == "onnx" else (".xml", ".bin")))
    move_model(path, folder / files[0])
    size = sum((folder / file).stat().st_size for file in files)
    return replace(found, files=files, model_bytes=size, rung=tried[-1].rung)


def spread(inputs: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of the inputs, evenly over all: views of supports come first, synthetic images last."""
    return inputs[np.linspace(0, len(inputs) - 1, min(count, len(inputs))).round().astype(int)]


def _why_none(tried: Sequence[Tried]) -> str:
    """Why no rung was good enough, by the one that came nearest."""
    nearest = max(tried, key=lambda one: one.parity.agreement if one.parity else -1.0)
    return f"none of {len(tried)} rungs passed its gate; the nearest, {nearest.rung}: {nearest.reason}"


def warnings(variant: Variant, supports_outside: float = 0.01) -> list[str]:
    """What a reader must know of an int8 model: activations out of range."""
    reach = variant.coverage
    if not reach or reach.worst_outside <= supports_outside:
        return []
    return [
        f"{variant.name}: {reach.worst_outside:.1%} of the values of {next(iter(reach.worst))} on the supports lie "
        "outside the calibrated range; calibrate on images that look more like them"
    ]


def x86_warnings(variant: Variant) -> list[str]:
    """What a reader must know of an int8 model where the target is an x86-64 machine: answers that depend on it."""
    sums = variant.saturation
    if not sums or sums.flips == []:
        return []
    if sums.flips is None:
        return [
            f"{variant.name}: int8 sums of {sum(sums.layers.values())} pairs of weights can saturate on x86-64 "
            "processors without VNNI, too many to emulate: compare its answers there, or set "
            "compress.reduce_range = true"
        ]
    return [
        f"{variant.name}: on x86-64 processors without VNNI {len(sums.flips)} of {sums.num_images} validation "
        "images get another answer, since int8 sums saturate there; compress.reduce_range = true prevents it"
    ]


def measure(
    variant: Variant,
    folder: Path,
    student_logits: np.ndarray,
    pixels: np.ndarray,
    spec: InputSpec,
    settings: Compress,
    *,
    labels: np.ndarray | None,
    threads: int,
    exact_int8: bool = False,
) -> Measured:
    """Answers of ``variant`` through the bundle's own runtime beside torch's, on the same real images.

    student_logits: (B, N) of torch. pixels: uint8 (B, h, w, 3) at input size. spec: of the model's own input.
    labels: (B,) class indices, or None. Raises GateError when the fp32 export does not answer as the student does.
    """
    if variant.failure:
        return Measured(variant.name, variant.failure)
    session = open_session(folder / variant.files[0], variant.runtime, threads, exact_int8=exact_int8)
    logits = infer(session, normalise(pixels, spec))
    parity = compare(student_logits, logits)
    if variant.precision == "fp32":
        require_fp32(variant.name, gate(variant.name, parity, None, settings))
    drop = None if labels is None else accuracy_drop(student_logits, logits, labels)
    return Measured(variant.name, "", parity, drop, logits)
