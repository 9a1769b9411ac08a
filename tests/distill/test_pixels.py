import numpy as np
import pytest
import torch

from tinyforge.device.preprocess import normalise, resize
from tinyforge.device.spec import InputSpec
from tinyforge.distill.pixels import fit_to, pack, standardise, to_unit

SPECS = [
    InputSpec((16, 12)),
    InputSpec((9, 9), fit="crop", crop_pct=0.9, mean=(0.485, 0.456, 0.406), std=(0.2, 0.3, 0.1)),
]


@pytest.mark.parametrize("spec", SPECS)
def test_training_sees_what_the_device_sees_bit_by_bit(spec):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((20, 30, 3), (16, 12, 3), (40, 11, 3))]
    on_device = normalise(np.stack([resize(rgb, spec) for rgb in images]), spec)
    np.testing.assert_array_equal(standardise(to_unit(pack(images, spec)), spec).numpy(), on_device)


def test_no_images_pack_to_an_empty_batch():
    assert pack([], SPECS[0]).shape == (0, 3, 16, 12)


def test_fit_to_keeps_the_whole_image_and_its_mean():
    x = torch.rand(2, 3, 32, 32)
    assert fit_to(x, (32, 32)) is x
    small = fit_to(x, (8, 8))
    assert small.shape == (2, 3, 8, 8)
    torch.testing.assert_close(small.mean(dim=(2, 3)), x.mean(dim=(2, 3)), atol=0.03, rtol=0)
