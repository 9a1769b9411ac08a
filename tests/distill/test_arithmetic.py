"""Which arithmetic 'auto' is, on this machine and on others; and that a build names it."""

import pytest
import torch

from tinyforge.distill.arithmetic import autocast, gains, settled_dtype
from tinyforge.distill.students import build_student
from tinyforge.loading import load_recipe
from tinyforge.stages.road import settled


@pytest.fixture(params=[True, False])
def has_bfloat16(request, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": request.param})
    return request.param


def test_auto_is_what_the_processor_has(has_bfloat16):
    expected = "bfloat16" if has_bfloat16 else "float32"
    assert settled_dtype("auto", "cpu") == expected
    with autocast("auto", "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_asked_for_is_kept(has_bfloat16, dtype):
    assert settled_dtype(dtype, "cpu") == dtype


def test_a_build_names_the_arithmetic_of_teacher_and_student(has_bfloat16):
    recipe = settled(load_recipe("raspi", ["teacher.dtype=auto", "distill.dtype=auto", "backbone.device=cpu"]))
    assert {recipe.teacher.dtype, recipe.distill.dtype} == {"bfloat16" if has_bfloat16 else "float32"}


@pytest.mark.parametrize(
    ("student", "device", "expected"),
    [("conv4", "cpu", True), ("timm:lcnet_050", "cpu", False), ("timm:lcnet_050", "cuda", True)],
)
def test_depthwise_convolutions_stay_in_float32_on_a_cpu(student, device, expected):
    assert gains(build_student(student, 2, input_size=32), device) is expected
