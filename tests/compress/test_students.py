"""Every kind of student passes through export and both quantisers. Slow: the wider ones take a minute each."""

import numpy as np
import pytest

from tinyforge.compress.parity import torch_logits
from tinyforge.compress.quantize import Calibration
from tinyforge.compress.variants import judge, make_variants
from tinyforge.device.spec import InputSpec
from tinyforge.distill.students import build_student
from tinyforge.recipe import Compress

SETTINGS = Compress(min_agreement=0.0, max_drop=1.0)  # random weights: an int8 flip says nothing


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["conv4", "resnet12", "timm:mobilenetv3_small_050", "timm:resnet10t"])
def test_every_model_of_a_student_is_made_and_answers(name, tmp_path):
    spec = InputSpec(size=(32, 32))
    inputs = np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype(np.float32)
    student = build_student(name, 5, input_size=32)
    data = Calibration(inputs, inputs[:4])
    made = make_variants(student, spec, list("abcde"), tmp_path, SETTINGS, data, name="task", opset=18)
    expected = torch_logits(student, inputs)
    assert [one.name for one in made] == SETTINGS.precisions
    for variant in made:
        assert variant.failure == ""
        assert [one.failure for one in variant.tried] == [""] * len(variant.tried)
        verdict = judge(variant, tmp_path, expected, inputs, SETTINGS, labels=None, threads=1)
        assert verdict.reason == ""
        assert verdict.parity.relative_error < {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.8}[variant.precision]
