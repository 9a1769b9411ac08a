import numpy as np
import pytest
import torch
from torch import nn

from tinyforge.compress.parity import torch_logits
from tinyforge.compress.qat import RoundedWeight, input_ranges, round_to, rounded, tune


def test_rounding_is_to_the_grid_and_its_gradient_passes_inside_the_range():
    x = torch.tensor([-3.0, -0.26, 0.0, 0.24, 9.0], requires_grad=True)
    found = round_to(x, torch.tensor(0.5), torch.tensor(0.0), -4, 4)
    assert found.tolist() == [-2.0, -0.5, 0.0, 0.0, 2.0]
    found.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_weights_take_255_levels_per_channel():
    weight = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10, 0.1]).view(
        3, 1, 1, 1
    )
    levels = RoundedWeight()(weight) / (weight.abs().amax((1, 2, 3), keepdim=True) / 127)
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert levels.abs().amax((1, 2, 3)).tolist() == pytest.approx([127, 127, 127])


def test_ranges_are_those_of_the_inputs(student, digits):
    images = torch.from_numpy(digits.inputs[:30])
    network = student.eval()
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    found = input_ranges(network, layers, images)
    assert found[layers[0]] == (float(images.min()), float(images.max()))
    assert found[layers[1]][0] == 0.0  # after ReLU
    student.train()


def test_training_follows_the_teacher_through_the_rounding_and_leaves_the_student(untrained, student, digits):
    inputs = digits.inputs[:200]
    soft = torch_logits(student, inputs)
    before = {name: value.clone() for name, value in untrained.state_dict().items()}
    tuned = tune(untrained, inputs, soft, steps=40, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in untrained.state_dict().items())
    assert sorted(tuned.state_dict()) == sorted(before)  # no parametrisation is left
    assert not tuned.training
    again = tune(untrained, inputs, soft, steps=40, seed=0)
    np.testing.assert_array_equal(torch_logits(again, inputs[:5]), torch_logits(tuned, inputs[:5]))
    assert _gap(tuned, inputs, soft) < _gap(untrained, inputs, soft)


def _gap(network: nn.Module, inputs: np.ndarray, soft: np.ndarray) -> float:
    """Mean divergence of the rounded network's answers from the soft labels."""
    import copy

    network, images = copy.deepcopy(network).eval(), torch.from_numpy(inputs)
    with rounded(network, images), torch.no_grad():
        answers = nn.functional.log_softmax(network(images), dim=1)
    return float(nn.functional.kl_div(answers, torch.softmax(torch.from_numpy(soft), 1), reduction="batchmean"))
