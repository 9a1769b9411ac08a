from pathlib import Path

import numpy as np
import pytest

from tinyforge.compress.calibration import Calibration
from tinyforge.compress.coverage import coverage
from tinyforge.compress.ladder import LADDERS, Materials


@pytest.mark.parametrize("kind", ["onnx-int8", "openvino-int8"])
def test_ranges_hold_what_they_were_calibrated_on_and_not_what_is_brighter(
    materials, digits, tmp_path: Path, kind: str
):
    dim = Calibration(materials.calibration.inputs.like(digits.rgb[:30] // 3), materials.calibration.supports)
    suffix = ".onnx" if kind == "onnx-int8" else ".xml"
    rung = next(iter(LADDERS[kind].values()))
    found = {}
    for name, data in (("all", materials.calibration), ("dim", dim)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "student.onnx").write_bytes(materials.fp32.read_bytes())
        given = Materials(**{**vars(materials), "fp32": folder / "student.onnx", "calibration": data})
        rung(given, folder / f"model{suffix}")
        found[name] = coverage(folder / f"model{suffix}", materials.calibration.supports)
    assert found["all"].num_images == 20
    assert found["all"].num_tensors >= 4
    assert found["all"].worst_outside < 1e-3
    assert found["dim"].worst_outside > 0.05
    assert 0 < found["dim"].outside < found["dim"].worst_outside
    assert max(found["dim"].worst.values()) == found["dim"].worst_outside
    assert np.isfinite(list(found["dim"].worst.values())).all()


def test_a_model_that_quantises_nothing_has_nothing_outside(materials):
    found = coverage(materials.fp32, materials.calibration.supports)
    assert (found.num_images, found.num_tensors, found.outside, found.worst) == (20, 0, 0.0, {})
