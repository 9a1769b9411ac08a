"""Post-training int8: every method of a plain table is tried, and the one whose answers stay nearest to fp32 is kept.

Calibration data are prepared inputs of support and synthetic images, never of validation or test.
Source: ONNX Runtime static quantisation in QDQ format; NNCF post-training quantisation.
"""

import contextlib
import hashlib
import io
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tinyforge.compress.export import convert_openvino, move_model, save_onnx, save_openvino, scratch_folder
from tinyforge.compress.metadata import INPUT_NAME, Metadata
from tinyforge.compress.parity import Parity, compare, infer
from tinyforge.device.runtime import open_session
from tinyforge.errors import GateError

Methods = Mapping[str, Mapping[str, Any]]

ORT_METHODS: Methods = {
    "per-channel, min-max": {"per_channel": True, "calibration": "MinMax"},
    "per-tensor, min-max": {"per_channel": False, "calibration": "MinMax"},
}
NNCF_METHODS: Methods = {
    "mixed, full bias correction": {"preset": "MIXED", "fast_bias_correction": False},
    "mixed, fast bias correction": {"preset": "MIXED", "fast_bias_correction": True},
}


@dataclass(frozen=True)
class Calibration:
    """Prepared float32 inputs, (n, 3, H, W) or NHWC. images: support and synthetic. supports: the real ones alone."""

    images: np.ndarray
    supports: np.ndarray

    def hashes(self) -> list[str]:
        """sha256 of the bytes of each calibration input, in order."""
        return [hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest() for row in self.images]


@dataclass(frozen=True)
class Tried:
    """A quantisation that was tried: how near to fp32 it is on supports and calibration images, or why it failed."""

    method: str
    supports: Parity | None = None
    calibration: Parity | None = None
    failure: str = ""
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Tried":
        parities = {key: record[key] and Parity(**record[key]) for key in ("supports", "calibration")}
        return cls(**{**record, **parities})


def quantize_onnx(
    fp32: Path, out: Path, data: Calibration, metadata: Metadata, methods: Methods = ORT_METHODS
) -> list[Tried]:
    """Write the best int8 QDQ model of ``methods`` to ``out``. Returns what was tried. GateError when all failed."""
    with scratch_folder(out) as folder:
        prepared = folder / "prepared.onnx"
        _prepare(fp32, prepared)

        def attempt(path: Path, per_channel: bool, calibration: str) -> None:
            _static_qdq(prepared, path, data.images, per_channel, calibration)
            save_onnx(onnx.load(path), path, metadata)

        best, tried = _try_all(methods, attempt, folder, out.suffix, "onnxruntime", fp32, data)
        move_model(best, out)
    return tried


def quantize_openvino(
    fp32: Path, out_xml: Path, data: Calibration, metadata: Metadata, methods: Methods = NNCF_METHODS
) -> list[Tried]:
    """As ``quantize_onnx``, by NNCF on the OpenVINO form of the fp32 ONNX file; writes ``out_xml`` and its ``.bin``."""
    with scratch_folder(out_xml) as folder:

        def attempt(path: Path, preset: str, fast_bias_correction: bool) -> None:
            model = _nncf_ptq(convert_openvino(fp32), data.images, preset, fast_bias_correction)
            save_openvino(model, path, fp16=False, metadata=metadata)

        best, tried = _try_all(methods, attempt, folder, out_xml.suffix, "openvino", fp32, data)
        move_model(best, out_xml)
    return tried


def _try_all(
    methods: Methods,
    attempt: Callable[..., None],
    folder: Path,
    suffix: str,
    runtime: str,
    fp32: Path,
    data: Calibration,
) -> tuple[Path, list[Tried]]:
    """Run ``attempt(path, **settings)`` for every method: the best file, and the record. GateError when all failed."""
    reference = open_session(fp32, "onnxruntime", 1)
    wanted = [infer(reference, images) for images in (data.supports, data.images)]
    paths = [folder / f"{index}{suffix}" for index in range(len(methods))]
    tried = []
    for path, (method, settings) in zip(paths, methods.items(), strict=True):
        try:
            attempt(path, **settings)
            session = open_session(path, runtime, 1)
            given = [infer(session, images) for images in (data.supports, data.images)]
            tried.append(Tried(method, *map(compare, wanted, given)))
        except Exception as error:  # a quantiser may fail in any way; it is recorded, and fatal when none is left
            tried.append(Tried(method, failure=f"{type(error).__name__}: {error}"))
    best = best_method(tried)
    if best is None:
        raise GateError("every quantisation failed: " + "; ".join(f"{one.method}: {one.failure}" for one in tried))
    tried[best] = replace(tried[best], kept=True)
    return paths[best], tried


def best_method(tried: list[Tried]) -> int | None:
    """Index of the one to keep: most agreement on the supports, then on calibration images, then least logit error."""

    def rank(index: int) -> tuple[float, float, float]:
        one = tried[index]
        return (-one.supports.agreement, -one.calibration.agreement, one.calibration.relative_error)

    return min((index for index, one in enumerate(tried) if not one.failure), key=rank, default=None)


def _prepare(fp32: Path, prepared: Path) -> None:
    """ONNX Runtime's own graph optimisation and shape inference, which its quantiser expects."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(fp32, prepared, skip_symbolic_shape=True)


def _static_qdq(prepared: Path, path: Path, images: np.ndarray, per_channel: bool, calibration: str) -> None:
    """Static quantisation, signed 8-bit activations and weights, as QuantizeLinear/DequantizeLinear pairs."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {INPUT_NAME: row[None]}

    quantization.quantize_static(
        prepared,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[calibration],
    )


def _nncf_ptq(model: Any, images: np.ndarray, preset: str, fast_bias_correction: bool) -> Any:
    """NNCF post-training quantisation of an ``openvino.Model``, silent: it would draw progress bars on stdout."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model,
            nncf.Dataset(list(images[:, None])),
            preset=nncf.QuantizationPreset[preset],
            subset_size=len(images),
            fast_bias_correction=fast_bias_correction,
        )
