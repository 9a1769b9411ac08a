"""benchmarks/memory.py: bytes of live tensors, and the figures that the plans for a GPU are made from."""

import pytest
import torch

from tinyforge.diffusion.architectures import SD15
from tinyforge.diffusion.backbone import random_backbone
from tinyforge.diffusion.memory import MIB, Plan, needs


@pytest.fixture
def memory(script):
    return script("memory")


def work(x):
    """Two new tensors of x's size at a time, three in all; views and changes in place are none."""
    y = x + 1
    y.view(-1)[:5].add_(1)
    z = y * 2
    del y
    return (z * 2).t()


@pytest.mark.parametrize("shapes_alone", [False, True])
def test_the_peak_is_of_what_is_alive_at_a_time(shapes_alone, memory):
    x = torch.zeros(512, 1024)  # 2 MiB, there before
    assert memory.peak_of(lambda: work(x), "cpu", shapes_alone) == 4.0


def test_what_a_gradient_needs_stays_alive(memory):
    x = torch.zeros(512, 512, requires_grad=True)  # 1 MiB; exp keeps its result
    assert memory.peak_of(lambda: x.exp().exp().exp().exp().sum(), "cpu") == pytest.approx(4.0, abs=0.01)
    with torch.no_grad():
        assert memory.peak_of(lambda: x.exp().exp().exp().exp().sum(), "cpu") == pytest.approx(2.0, abs=0.01)


@pytest.mark.slow
def test_plans_are_made_from_what_an_image_takes(memory):
    own = random_backbone(SD15, plan=Plan())
    told, found = needs(own.unet, own.vae, own.text_encoder), memory.per_image("float32")
    for name, mib in found.items():
        assert getattr(told, name) / MIB == pytest.approx(mib, rel=0.02), name
