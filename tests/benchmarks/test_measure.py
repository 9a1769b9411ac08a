"""Counting operations, memory and ceilings."""

import sys

import pytest
import torch


@pytest.fixture
def measure(script):
    return script("measure")


def test_a_matmul_and_a_convolution_count_two_for_each_multiplication_and_addition(measure):
    a, b = torch.zeros(3, 5), torch.zeros(5, 7)
    assert measure.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7
    x, weight = torch.zeros(2, 4, 6, 6), torch.zeros(8, 4, 3, 3)
    run = lambda: torch.nn.functional.conv2d(x, weight, padding=1)  # noqa: E731
    assert measure.count_flops(run) == 2 * (2 * 6 * 6) * 8 * 4 * 9


def test_gradients_taken_by_autograd_grad_are_counted_inside_modules_too(measure):
    """As null-text inversion takes them: frozen weights, a gradient of the input alone, so twice the forward pass."""
    network = torch.nn.Linear(16, 16, bias=False).requires_grad_(False)

    def descend():
        leaf = torch.ones(4, 16, requires_grad=True)
        return torch.autograd.grad(network(leaf).sum(), leaf)

    assert measure.count_flops(descend) == 2 * (2 * 4 * 16 * 16)


def test_inference_mode_hides_nothing_from_the_count(measure):
    network, x = torch.nn.Linear(16, 16), torch.ones(4, 16)

    def forward():
        with torch.inference_mode():
            network(x)

    assert measure.count_flops(forward) == 2 * 4 * 16 * 16


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is reset through /proc")
def test_the_peak_is_that_since_the_last_reset(measure):
    measure.reset_peak("cpu")
    block = torch.ones(64, 2**20)  # 256 MiB
    high = measure.peak_mib("cpu")
    del block
    measure.reset_peak("cpu")
    assert measure.peak_mib("cpu") < high - 200


def test_a_call_is_timed_by_wall_and_processor(measure):
    one = measure.took(lambda: sum(range(200_000)))
    assert one.wall > 0
    assert one.processor > 0
    assert measure.cost(one, "cpu") == one.processor
    assert measure.cost(one, "cuda") == one.wall


def test_the_ceilings_are_rates_of_this_machine(measure):
    found = measure.ceilings("cpu", torch.float32, (2, 16, 8, 8))
    assert set(found) == {"matmul", "convolution"}
    assert all(1e8 < rate < 1e15 for rate in found.values())
