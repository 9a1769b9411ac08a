import pytest
import torch
from torch.nn import functional as F

from tinyforge.distill.losses import UNLABELLED, distillation_loss, hard_loss, soft_loss


def logits(seed, batch=5, classes=4):
    return torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_loss_is_zero_at_equal_logits_up_to_a_shift_per_row(temperature):
    student = logits(0)
    shifted = student + torch.arange(5.0)[:, None]
    torch.testing.assert_close(soft_loss(student, shifted, temperature), torch.zeros(5), atol=1e-5, rtol=0)


def test_soft_loss_is_positive_elsewhere_and_equals_the_sum_by_hand():
    student, teacher, temperature = logits(0), logits(1), 3.0
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    by_hand = temperature**2 * (p * (p / q).log()).sum(1)
    assert (by_hand > 0).all()
    torch.testing.assert_close(soft_loss(student, teacher, temperature), by_hand)


def test_the_gradient_keeps_its_scale_as_the_temperature_rises():
    """Hinton et al., equation 4: for high T the gradient tends to (z - v) / N with both centred, whatever T."""
    teacher = logits(1)
    gradients = []
    for temperature in (1e2, 1e3):
        student = logits(0).requires_grad_(True)
        soft_loss(student, teacher, temperature).sum().backward()
        gradients.append(student.grad)
    difference = logits(0) - teacher
    limit = (difference - difference.mean(1, keepdim=True)) / 4
    torch.testing.assert_close(gradients[1], limit, atol=2e-2, rtol=0)
    torch.testing.assert_close(gradients[0], gradients[1], atol=0.1, rtol=0)


def test_the_gradient_is_that_of_soft_cross_entropy_times_t_squared():
    student, teacher, temperature = logits(0).requires_grad_(True), logits(1), 2.0
    soft_loss(student, teacher, temperature).sum().backward()
    expected = temperature * ((student.detach() / temperature).softmax(1) - (teacher / temperature).softmax(1))
    torch.testing.assert_close(student.grad, expected, atol=1e-5, rtol=1e-4)


def test_shares_mix_linearly_and_without_a_teacher_only_labels_count():
    student, teacher, labels = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 0])
    hard, soft = hard_loss(student, labels).mean(), soft_loss(student, teacher, 4.0).mean()
    mixed = distillation_loss(student, teacher, labels, 0.3, 4.0)
    torch.testing.assert_close(mixed, 0.3 * hard + 0.7 * soft)
    torch.testing.assert_close(distillation_loss(student, None, labels, 0.3, 4.0), F.cross_entropy(student, labels))


def test_an_unlabelled_image_is_taught_by_the_teacher_alone():
    student, teacher = logits(0), logits(1)
    unknown = torch.full((5,), UNLABELLED)
    expected = soft_loss(student, teacher, 4.0).mean()
    torch.testing.assert_close(distillation_loss(student, teacher, unknown, 0.9, 4.0), expected)
    assert hard_loss(student, unknown).abs().max() == 0


def test_renaming_the_classes_changes_nothing():
    student, teacher, labels = logits(0), logits(1), torch.tensor([0, 1, 2, 3, 0])
    order = torch.tensor([2, 0, 3, 1])
    renamed = torch.argsort(order)[labels]
    torch.testing.assert_close(
        distillation_loss(student[:, order], teacher[:, order], renamed, 0.5, 4.0),
        distillation_loss(student, teacher, labels, 0.5, 4.0),
    )
