import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact

from tinyforge.diffusion.upscale import upscale
from tinyforge.errors import MissingError, RecipeError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A real, small super-resolution network (x2) with random weights, whose file spandrel recognises."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("upscale") / "compact.safetensors"
    save_file(Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=1, upscale=2).state_dict(), path)
    return path


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_images_grow_by_the_models_factor(checkpoint):
    seen = []
    results = upscale([picture(8, 8), picture(9, 30)], checkpoint, progress=lambda *done: seen.append(done))
    assert [image.shape for image in results] == [(16, 16, 3), (18, 60, 3)]
    assert all(image.dtype == np.uint8 for image in results)
    assert seen == [(1, 2), (2, 2)]


def test_the_enlarged_image_shows_the_same_picture(checkpoint):
    """The network adds its correction to the nearest-neighbour enlargement, so the colours must agree."""
    image = np.full((8, 8, 3), (250, 100, 5), dtype=np.uint8)
    (result,) = upscale([image], checkpoint)
    assert np.abs(result.mean(axis=(0, 1)) - (250, 100, 5)).max() < 40


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"no file .*hat\.pth"):
        upscale([picture(8, 8)], tmp_path / "hat.pth")
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(RecipeError, match="no model that spandrel knows"):
        upscale([picture(8, 8)], path)
