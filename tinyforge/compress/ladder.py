"""The quantisation ladder: tables of rungs, from fastest to make to slowest, and the climb to the first that passes.

A rung is a name and a function that writes one model file. int8 first; quantisation-aware training is the last int8
rung; then half-precision weights; then fp32, which is the student itself. Everything that was tried is recorded.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from tinyforge.compress.calibration import Calibration
from tinyforge.compress.export import export_onnx, export_openvino, halve_onnx, save_onnx
from tinyforge.compress.metadata import Metadata
from tinyforge.compress.nncf_int8 import accuracy_control, ptq
from tinyforge.compress.parity import Drop, Parity, accuracy_drop, compare, gate, infer
from tinyforge.compress.qat import tune
from tinyforge.compress.qdq import static_qdq
from tinyforge.compress.room import require_room
from tinyforge.device.runtime import open_session
from tinyforge.device.spec import InputSpec
from tinyforge.recipe import Compress

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
BATCH_SIZE = 32


@dataclass(frozen=True)
class Validation:
    """What the gate is held on, never test images. inputs: (n, ...) prepared. labels: (n,). logits: the student's own,
    in torch, (n, N).
    """

    inputs: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


def unheard(text: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Materials:
    """What a rung may use. fp32: the exported reference; files derived from it are kept beside it, for other rungs.

    teach: () -> (inputs (n, 3, h, w), the teacher's logits (n, N)) for quantisation-aware training, or None without it.
    tell: is told each rung before it is tried, which takes seconds to minutes. exact_int8: for a target whose int8
    sums do not saturate, see ``device.runtime.open_session``.
    """

    student: nn.Module
    spec: InputSpec
    fp32: Path
    calibration: Calibration
    validation: Validation
    metadata: Metadata
    settings: Compress
    opset: int
    seed: int = 0
    teach: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    tell: Callable[[str], None] = unheard
    exact_int8: bool = False


Make = Callable[[Materials, Path], None]
Rungs = Mapping[str, Make]


@dataclass(frozen=True)
class Tried:
    """A rung that was tried. parity, drop: against the student, on the validation set. reason: why its gate failed, or
    why it could not be made; '' when it passed.
    """

    rung: str
    precision: str
    reason: str
    model_bytes: int = 0
    parity: Parity | None = None
    drop: Drop | None = None
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Tried":
        parity, drop = record["parity"], record["drop"]
        return cls(**{**record, "parity": parity and Parity(**parity), "drop": drop and Drop(**drop)})


def qdq(materials: Materials, out: Path, seven_bits: bool = False, **how: Any) -> None:
    reduced = materials.settings.reduce_range or seven_bits
    static_qdq(materials.fp32, out, materials.calibration.inputs, materials.metadata, reduce_range=reduced, **how)


def nncf(materials: Materials, out: Path, seven_bits: bool = False, **how: Any) -> None:
    reduced = materials.settings.reduce_range or seven_bits
    ptq(materials.fp32, out, materials.calibration.inputs, materials.metadata, reduce_range=reduced, **how)


def controlled(materials: Materials, out: Path) -> None:
    accuracy_control(
        materials.fp32, out, materials.calibration.inputs, materials.metadata,
        inputs=materials.validation.inputs, labels=materials.validation.labels,
        max_drop=materials.settings.max_drop, reduce_range=materials.settings.reduce_range,
    )  # fmt: skip


def trained(materials: Materials, out: Path, then: Make) -> None:
    """Train the student for int8, export it again, and quantise that by ``then``."""
    fp32 = materials.fp32.with_suffix(".trained.onnx")
    if not fp32.is_file():
        inputs, soft = materials.teach()
        student = tune(materials.student, inputs, soft, steps=materials.settings.qat_steps, seed=materials.seed)
        export_onnx(student, materials.spec, fp32, opset=materials.opset, metadata=materials.metadata)
    then(replace(materials, fp32=fp32), out)


def halved_onnx(materials: Materials, out: Path) -> None:
    halve_onnx(materials.fp32, out, materials.metadata)


def in_openvino(materials: Materials, out: Path, fp16: bool) -> None:
    export_openvino(materials.fp32, out, fp16=fp16, metadata=materials.metadata)


def copied(materials: Materials, out: Path) -> None:
    save_onnx(onnx.load(materials.fp32), out, materials.metadata)


BOUNDARY = ("first and last",)
SENSITIVE = ("first and last", "squeeze-and-excitation", "hard-swish")
TRAINED = "quantisation-aware training"

LADDERS: dict[str, Rungs] = {
    "onnx-int8": {
        "per-channel, min-max": partial(qdq, per_channel=True, calibration="MinMax"),
        "per-tensor, min-max": partial(qdq, per_channel=False, calibration="MinMax"),
        "per-channel, percentile": partial(qdq, per_channel=True, calibration="Percentile"),
        "per-tensor, percentile": partial(qdq, per_channel=False, calibration="Percentile"),
        "per-channel, entropy": partial(qdq, per_channel=True, calibration="Entropy"),
        "per-tensor, entropy": partial(qdq, per_channel=False, calibration="Entropy"),
        "per-channel, min-max, 7-bit weights": partial(qdq, per_channel=True, calibration="MinMax", seven_bits=True),
        "first and last layer in fp32": partial(qdq, per_channel=True, calibration="MinMax", leave_out=BOUNDARY),
        "first, last, SE and hard-swish in fp32": partial(
            qdq, per_channel=True, calibration="MinMax", leave_out=SENSITIVE
        ),
        TRAINED: partial(trained, then=partial(qdq, per_channel=True, calibration="MinMax")),
    },
    "openvino-int8": {
        "per-channel, min-max, fast bias correction": partial(nncf, fast=True),
        "per-channel, min-max, full bias correction": partial(nncf, fast=False),
        "per-tensor, min-max, fast bias correction": partial(nncf, fast=True, per_channel=False),
        "per-tensor, min-max, full bias correction": partial(nncf, fast=False, per_channel=False),
        "per-channel, percentile, fast bias correction": partial(nncf, fast=True, ranges="percentile"),
        "per-channel, percentile, full bias correction": partial(nncf, fast=False, ranges="percentile"),
        "per-tensor, percentile, fast bias correction": partial(
            nncf, fast=True, per_channel=False, ranges="percentile"
        ),
        "per-tensor, percentile, full bias correction": partial(
            nncf, fast=False, per_channel=False, ranges="percentile"
        ),
        "per-channel, histogram, fast bias correction": partial(nncf, fast=True, ranges="histogram"),
        "per-channel, histogram, full bias correction": partial(nncf, fast=False, ranges="histogram"),
        "per-tensor, histogram, fast bias correction": partial(nncf, fast=True, per_channel=False, ranges="histogram"),
        "per-tensor, histogram, full bias correction": partial(nncf, fast=False, per_channel=False, ranges="histogram"),
        "per-channel, min-max, 7-bit weights": partial(nncf, fast=False, seven_bits=True),
        "first and last layer in fp32": partial(nncf, fast=False, leave_out=BOUNDARY),
        "first, last, SE and hard-swish in fp32": partial(nncf, fast=False, leave_out=SENSITIVE),
        "accuracy control": controlled,
        TRAINED: partial(trained, then=partial(nncf, fast=True)),
    },
    "onnx-fp16": {"fp16 weights": halved_onnx},
    "openvino-fp16": {"fp16 weights": partial(in_openvino, fp16=True)},
    "onnx-fp32": {"fp32": copied},
}
"""Model kind -> its rungs. ONNX Runtime has no bias correction and no accuracy control; NNCF no entropy calibration."""

NEXT = {"onnx-int8": "onnx-fp16", "openvino-int8": "openvino-fp16"}  # where a climb goes on when no rung passed


def climb(kind: str, materials: Materials, folder: Path, rungs: Rungs | None = None) -> tuple[Path | None, list[Tried]]:
    """Try the rungs of ``kind`` in order until one passes: its file, in ``folder``, or None; and all that was tried."""
    tried: list[Tried] = []
    for number, (rung, make) in enumerate((LADDERS[kind] if rungs is None else rungs).items()):
        if rung == TRAINED and (materials.teach is None or not materials.settings.qat_steps):
            continue
        out = folder / f"{kind}-{number}{'.onnx' if kind.startswith('onnx') else '.xml'}"
        materials.tell(f"{kind}: {rung}")
        one = attempt(kind, rung, make, materials, out)
        tried.append(replace(one, kept=not one.reason))
        if not one.reason:
            return out, tried
    return None, tried


def attempt(kind: str, rung: str, make: Make, materials: Materials, out: Path) -> Tried:
    """Make one model and hold it against the student on the validation set.

    Raises OSError or MemoryError, which are no fault of the rung: without them it might have passed.
    """
    family, precision = kind.split("-")
    try:
        make(materials, out)
        session = open_session(out, RUNTIMES[family], 1, exact_int8=materials.exact_int8)
        logits = infer(session, materials.validation.inputs, BATCH_SIZE)
    except MemoryError:
        raise
    except OSError:
        require_room(materials.fp32, (out.parent, None))  # which names the folder; libraries often do not
        raise
    except Exception as error:  # a quantiser may fail in any way; it is recorded, and the climb goes on
        require_room(materials.fp32, (out.parent, None))
        return Tried(rung, precision, f"could not be made: {type(error).__name__}: {error}")
    parity = compare(materials.validation.logits, logits)
    drop = accuracy_drop(materials.validation.logits, logits, materials.validation.labels)
    size = out.stat().st_size + (out.with_suffix(".bin").stat().st_size if out.suffix == ".xml" else 0)
    return Tried(rung, precision, gate(kind, parity, drop, materials.settings), size, parity, drop)
