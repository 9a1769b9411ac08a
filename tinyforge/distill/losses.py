"""What a student is trained to minimise. Pure functions on logits (B, N).

Source: Hinton, Vinyals & Dean 2015, arXiv 1503.02531, section 2: soft targets at temperature T, their loss times T^2
so that its gradient keeps the scale of the hard-label loss.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

UNLABELLED = -1


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) per image, (B,), >= 0, and 0 at equal logits (up to a
    shift per row).
    """
    target = F.log_softmax(teacher / temperature, dim=1)
    guess = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(guess, target, reduction="none", log_target=True).sum(dim=1)


def hard_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per image, (B,); 0 where the label is UNLABELLED."""
    return F.cross_entropy(student, labels, reduction="none", ignore_index=UNLABELLED)


def distillation_loss(
    student: Tensor, teacher: Tensor | None, labels: Tensor, hard_label_share: float, temperature: float
) -> Tensor:
    """share * hard + (1 - share) * soft, averaged over the batch.

    Images without a label are taught by the teacher alone, at full weight. Without a teacher the loss is the hard one.
    """
    hard = hard_loss(student, labels)
    if teacher is None:
        return hard.mean()
    share = torch.where(labels == UNLABELLED, 0.0, hard_label_share)
    return (share * hard + (1 - share) * soft_loss(student, teacher, temperature)).mean()
