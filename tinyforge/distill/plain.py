"""A student's batches without savings: each image decoded anew, and its random view made alone.

What keeping decoded images and making a batch's views in one go is compared with, by the tests and by whoever asks for
it with ``speed.training = "plain"``. The draws are the same, and so are the views, to rounding.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tinyforge.device.spec import InputSpec
from tinyforge.distill.augment import Drawn, Strength, augment
from tinyforge.distill.pixels import pack, to_unit

Look = Callable[[Tensor, torch.Generator], Tensor]
"""Indices of images (B,), a generator -> their random views (B, 3, h, w) in [0, 1]."""


def one_by_one(image: Callable[[int], np.ndarray], spec: InputSpec, strength: Strength, flip: bool) -> Look:
    """image: index into the training set -> uint8 (H, W, 3), decoded when it is asked for."""

    def look(chosen: Tensor, generator: torch.Generator) -> Tensor:
        drawn = Drawn(generator)
        augment(torch.zeros(len(chosen), 3, 1, 1), strength, drawn, flip)  # for the draws alone
        images = [to_unit(pack([image(index)], spec)) for index in chosen.tolist()]
        return torch.cat([augment(one, strength, drawn.row(i), flip) for i, one in enumerate(images)])

    return look
