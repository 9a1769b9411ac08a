"""int8 by ONNX Runtime: static quantisation in QDQ form, signed 8-bit activations and weights.

ONNX Runtime has no bias correction: its rungs differ in granularity, in how ranges are calibrated, and in what is left
out. Source: ONNX Runtime, "Quantize ONNX models" (static quantisation, QDQ format).
"""

import contextlib
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tinyforge.compress.calibration import Prepared
from tinyforge.compress.export import save_onnx
from tinyforge.compress.layers import excluded, onnx_graph
from tinyforge.compress.metadata import INPUT_NAME, Metadata

CHUNK = 16  # images whose activations are in memory at once, while histograms are filled
CALIBRATION: dict[str, dict[str, Any]] = {
    "MinMax": {},
    "Entropy": {"num_bins": 512, "num_quantized_bins": 128},
    "Percentile": {"percentile": 99.99, "symmetric": False},
}
"""Differs from ONNX Runtime's defaults: as many bins as levels leave entropy nothing to choose, and a symmetric
percentile wastes half of the levels after ReLU."""


def static_qdq(
    fp32: Path,
    out: Path,
    data: Prepared,
    metadata: Metadata,
    *,
    per_channel: bool,
    calibration: str,
    leave_out: tuple[str, ...] = (),
    reduce_range: bool = False,
) -> None:
    """Write the int8 form of ``fp32`` to ``out``.

    calibration: a key of CALIBRATION. leave_out: keys of ``layers.EXCLUDED`` that stay fp32. reduce_range: 7-bit
    weights, whose sums cannot saturate on any processor.
    """
    from onnxruntime import quantization

    prepared, ranges = _prepared(fp32), _ranges(fp32, calibration, data)
    quantization.quantize_static(
        prepared,
        out,
        calibration_data_reader=None,
        calibration_cache_path=ranges,
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=per_channel,
        reduce_range=reduce_range,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[calibration],
        nodes_to_exclude=sorted(excluded(onnx_graph(onnx.load(prepared)), set(leave_out))),
    )
    save_onnx(onnx.load(out), out, metadata)


def _prepared(fp32: Path) -> Path:
    """ONNX Runtime's own graph optimisation and shape inference, which its quantiser expects; kept beside ``fp32``."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = fp32.with_suffix(".prepared.onnx")
    if not out.is_file():
        quant_pre_process(fp32, out, skip_symbolic_shape=True)
    return out


def _ranges(fp32: Path, calibration: str, data: Prepared) -> Path:
    """The calibrated range of every tensor, streamed over the images; kept beside ``fp32`` for the next rung."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator, save_tensors_data
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    out = fp32.with_suffix(f".{calibration}.json")
    if not out.is_file():
        calibrator = create_calibrator(
            _prepared(fp32),
            sorted({*QDQRegistry, *QLinearOpsRegistry}),
            augmented_model_path=str(fp32.with_suffix(".augmented.onnx")),
            calibrate_method=CalibrationMethod[calibration],
            extra_options=CALIBRATION[calibration],
        )
        rows = iter(data)
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress there
            for _ in range(0, len(data), CHUNK):
                calibrator.collect_data(_reader(islice(rows, CHUNK)))
            save_tensors_data(calibrator.compute_data(), out)
    return out


def _reader(rows: Iterator[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(rows, None)
            return None if row is None else {INPUT_NAME: row}

    return Reader()
