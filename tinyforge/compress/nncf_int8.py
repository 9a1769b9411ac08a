"""int8 by NNCF on an OpenVINO model: post-training quantisation with bias correction, and accuracy control.

NNCF has no entropy calibration; its histogram estimator, which chooses the range of least error, stands in its place.
Source: NNCF post-training quantisation; NNCF quantisation with accuracy control.
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tinyforge.compress.calibration import Prepared
from tinyforge.compress.export import convert_openvino, save_openvino
from tinyforge.compress.layers import excluded, openvino_graph
from tinyforge.compress.metadata import Metadata

RANGES = {"min-max": "MINMAX", "mean min-max": "MEAN_MINMAX", "percentile": "MEAN_QUANTILE", "histogram": "HISTOGRAM"}
MAX_REVERTED = 12  # layers that accuracy control may give back to fp32, one by one


def ptq(
    fp32: Path,
    out_xml: Path,
    data: Prepared,
    metadata: Metadata,
    *,
    fast: bool,
    per_channel: bool = True,
    ranges: str = "min-max",
    leave_out: tuple[str, ...] = (),
    reduce_range: bool = False,
) -> None:
    """Write the int8 form of the ONNX file ``fp32`` to ``out_xml`` and its ``.bin``.

    fast: bias correction by mean activations, one pass; else layer by layer. ranges: a key of RANGES, for activations.
    leave_out: keys of ``layers.EXCLUDED`` that stay fp32. reduce_range: half the range of all weights (7 bits).
    """
    nncf, model = _nncf(), convert_openvino(fp32)
    ignored = sorted(excluded(openvino_graph(model), set(leave_out)))
    with contextlib.redirect_stdout(io.StringIO()):
        model = nncf.quantize(
            model,
            nncf.Dataset(data),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(data),
            fast_bias_correction=fast,
            ignored_scope=nncf.IgnoredScope(names=ignored, validate=False) if ignored else None,
            advanced_parameters=_advanced(ranges, per_channel, reduce_range),
        )
    save_openvino(model, out_xml, fp16=False, metadata=metadata)


def accuracy_control(
    fp32: Path,
    out_xml: Path,
    data: Prepared,
    metadata: Metadata,
    *,
    inputs: np.ndarray,
    labels: np.ndarray,
    max_drop: float,
    reduce_range: bool = False,
) -> None:
    """As ``ptq``; then give layers back to fp32, the most harmful first, until accuracy drops by ``max_drop`` at most.

    inputs: (n, ...) of the validation set, labels: (n,) class indices.
    """
    nncf, model = _nncf(), convert_openvino(fp32)
    free = model.inputs[0].partial_shape
    model.reshape([1, *list(free)[1:]])  # with a free batch OpenVINO 2026.4 crashed in its int8 kernels for AMX

    def hits(compiled: Any, rows: Iterator[tuple[np.ndarray, int]]) -> tuple[float, list[float]]:
        found = [float(compiled(row)[0].argmax() == label) for row, label in rows]
        return float(np.mean(found)), found

    restorer = nncf.AdvancedAccuracyRestorerParameters(
        max_num_iterations=MAX_REVERTED, ranking_subset_size=min(100, len(labels)), num_ranking_workers=1
    )
    with contextlib.redirect_stdout(io.StringIO()):
        model = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(data),
            nncf.Dataset([(row[None], label) for row, label in zip(inputs, labels, strict=True)]),
            hits,
            max_drop=max_drop,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(data),
            fast_bias_correction=True,
            advanced_quantization_parameters=_advanced("min-max", True, reduce_range),
            advanced_accuracy_restorer_parameters=restorer,
        )
    model.reshape(free)
    save_openvino(model, out_xml, fp16=False, metadata=metadata)


def _nncf() -> ModuleType:
    """NNCF, silent: it would log every step, and torch, where it looks for a compiler, that no GPU is here.
    ``export.import_openvino`` has switched its telemetry off before.
    """
    from tinyforge.compress.export import import_openvino

    import_openvino()
    import nncf

    nncf.set_log_level(logging.ERROR)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return nncf


def _advanced(ranges: str, per_channel: bool, reduce_range: bool) -> Any:
    from nncf import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.advanced_parameters import QuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if reduce_range else None,
        weights_quantization_params=QuantizationParameters(per_channel=per_channel),
        activations_range_estimator_params=getattr(RangeEstimatorParametersSet, RANGES[ranges]),
    )
