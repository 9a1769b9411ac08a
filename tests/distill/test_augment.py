import numpy as np
import pytest
import torch

from tinyforge.device.spec import InputSpec
from tinyforge.distill.augment import (
    STRENGTHS,
    Strength,
    affine_matrices,
    augment,
    diff_augment,
    random_cutout,
    random_warp,
    translate,
)
from tinyforge.distill.pixels import pack, to_unit
from tinyforge.distill.plain import one_by_one


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(batch=6, height=24, width=20):
    return torch.rand(batch, 3, height, width, generator=generator(9))


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("flip", [False, True])
def test_shape_and_range_are_kept_and_the_generator_decides(name, flip):
    x, before = images(), images()
    view = augment(x, STRENGTHS[name], generator(1), flip)
    assert view.shape == x.shape
    assert view.dtype == x.dtype
    assert view.min() >= 0
    assert view.max() <= 1
    assert torch.equal(x, before), "the input must not be changed"
    assert torch.equal(view, augment(x, STRENGTHS[name], generator(1), flip))
    if name != "none" or flip:
        assert not torch.equal(view, augment(x, STRENGTHS[name], generator(2), flip))


def test_none_is_the_identity():
    x = images()
    assert torch.equal(augment(x, STRENGTHS["none"], generator()), x)


def test_images_of_a_batch_get_views_of_their_own():
    x = images(1).repeat(4, 1, 1, 1)
    view = augment(x, STRENGTHS["strong"], generator())
    assert all((view[0] - view[i]).abs().max() > 0.05 for i in range(1, 4))


@pytest.mark.parametrize("name", ["light", "strong"])
def test_the_views_of_a_batch_are_those_of_its_images_one_by_one(name):
    """Decoded anew, each with its own share of the draws, after which the generator stands where it stands else."""
    numbers, chosen = np.random.default_rng(0), torch.tensor([3, 0, 5, 3])
    pictures = [numbers.integers(0, 256, (30 + i, 40, 3), np.uint8) for i in range(6)]
    spec, asked, draws = InputSpec((24, 20)), [], [generator(3), generator(3)]
    look = one_by_one(lambda index: asked.append(index) or pictures[index], spec, STRENGTHS[name], flip=True)
    together = augment(to_unit(pack(pictures, spec)[chosen]), STRENGTHS[name], draws[0], flip=True)
    torch.testing.assert_close(look(chosen, draws[1]), together, rtol=0, atol=1e-6)
    assert asked == chosen.tolist()
    assert torch.equal(draws[0].get_state(), draws[1].get_state())


def test_a_warp_of_no_strength_is_the_identity():
    x = images()
    torch.testing.assert_close(random_warp(x, Strength(), generator()), x, atol=1e-5, rtol=0)


def test_rotation_alone_keeps_angles_and_lengths():
    matrices = affine_matrices(50, Strength(rotate=30), generator())[:, :, :2]
    torch.testing.assert_close(matrices @ matrices.transpose(1, 2), torch.eye(2).expand(50, 2, 2), atol=1e-5, rtol=0)
    angles = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]) * 180 / torch.pi
    assert angles.abs().max() <= 30
    assert angles.std() > 10


def test_a_constant_image_stays_itself_under_every_geometry():
    x = torch.full((3, 3, 16, 16), 0.4)
    shape_only = Strength(rotate=20, scale=0.2, shear=0.2, shift=0.2, elastic=0.1)
    torch.testing.assert_close(augment(x, shape_only, generator()), x, atol=1e-5, rtol=0)


def test_flip_mirrors_some_images_and_leaves_the_others():
    x = images(32)
    view = augment(x, STRENGTHS["none"], generator(), flip=True)
    mirrored = [torch.equal(v, i.flip(2)) for v, i in zip(view, x, strict=True)]
    same = [torch.equal(v, i) for v, i in zip(view, x, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 4 < sum(mirrored) < 28


def test_translate_moves_whole_pixels_and_fills_with_black():
    x = images(2, 5, 6)
    moved = translate(x, torch.tensor([2, 0]), torch.tensor([-1, 3]))
    assert torch.equal(moved[0, :, 2:, :5], x[0, :, :3, 1:])
    assert moved[0, :, :2].abs().max() == 0
    assert moved[0, :, :, 5].abs().max() == 0
    assert torch.equal(moved[1, :, :, 3:], x[1, :, :, :3])


def test_cutout_changes_a_bounded_part_to_the_mean():
    x = images(64, 20, 20)
    view = random_cutout(x, 1.0, 0.5, generator())
    changed = (view != x).any(1)
    assert changed.any()
    assert changed.float().mean(dim=(1, 2)).max() <= 0.5**2 + 0.06
    holes = x.mean(dim=(2, 3), keepdim=True).expand_as(x)
    assert torch.equal(view[changed[:, None].expand_as(x)], holes[changed[:, None].expand_as(x)])


def test_diff_augment_stays_in_range_leaves_a_tenth_alone_and_flips_only_when_asked():
    x = images(400, 8, 8)
    view = diff_augment(x, generator())
    assert view.min() >= 0
    assert view.max() <= 1
    untouched = sum(torch.equal(v, i) for v, i in zip(view, x, strict=True))
    assert 15 < untouched < 75
    assert torch.equal(view, diff_augment(x, generator()))
    left = torch.zeros(200, 3, 8, 8)
    left[..., :2] = 1.0  # colour and 12.5 % translation keep it on the left; mirroring does not
    assert diff_augment(left, generator())[..., 5:].max() < diff_augment(left, generator(), flip=True)[..., 7].max()
