import pytest
import torch

from tinyforge.diffusion.null_text import null_text_invert
from tinyforge.diffusion.sample import alpha_grid, blend, draw_noise, generate, psnr, rms
from tinyforge.diffusion.seeding import item_generator
from tinyforge.recipe import Invert

from .gaussian import GaussianBackbone, normal

SETTINGS = Invert(num_steps=5, nti_lr=0.1, nti_inner_steps=20, guidance_scale=3.0)


@pytest.fixture(scope="module")
def inversion(tiny):
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    z0 = tiny.encode(images)
    cond = tiny.embed(["A photo of an ape", "A photo of a bee", "A photo of a cat"])
    return z0, cond, null_text_invert(tiny, z0, cond, SETTINGS)


def test_blend_is_the_papers_formula():
    z_T, noise, alpha = normal(2, 4, 8, 8), 1.5 * normal(2, 4, 8, 8, seed=1), 0.3
    for a, b, mixed in zip(z_T, noise, blend(z_T, noise, alpha), strict=True):
        raw = 0.7 * a + 0.3 * b
        norm = 0.7 * a.square().mean().sqrt() + 0.3 * b.square().mean().sqrt()
        torch.testing.assert_close(mixed, raw / raw.square().mean().sqrt() * norm)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 1.0])
def test_blend_keeps_the_blended_norm_and_its_ends(alpha):
    z_T, noise = normal(3, 4, 8, 8), 2.0 * normal(3, 4, 8, 8, seed=1)
    mixed = blend(z_T, noise, alpha)
    torch.testing.assert_close(rms(mixed), (1 - alpha) * rms(z_T) + alpha * rms(noise))
    if alpha in (0.0, 1.0):
        torch.testing.assert_close(mixed, noise if alpha else z_T)


def test_blend_takes_an_alpha_per_image():
    z_T, noise, alphas = normal(3, 4, 8, 8), normal(3, 4, 8, 8, seed=1), torch.tensor([0.0, 0.4, 1.0])
    each = torch.cat([blend(z_T[i : i + 1], noise[i : i + 1], float(alphas[i])) for i in range(3)])
    torch.testing.assert_close(blend(z_T, noise, alphas), each, rtol=1e-6, atol=1e-6)


def test_blend_of_opposites_is_finite():
    z_T = normal(1, 4, 8, 8)
    assert torch.equal(blend(z_T, -z_T, 0.5), torch.zeros_like(z_T))


def test_alpha_zero_reproduces_the_support(tiny, inversion):
    z0, cond, inverted = inversion
    start = blend(inverted.z_T, normal(*z0.shape).float(), 0.0)
    images = generate(tiny, start, cond, inverted.null_embeddings, SETTINGS)
    assert psnr(images, tiny.decode(z0)).min() > 35.0


def test_alpha_zero_reproduces_the_support_of_the_gaussian_backbone():
    backbone = GaussianBackbone()
    z0, cond = normal(4, *backbone.latent_shape), normal(4, 1, backbone.width, seed=1)
    settings = Invert(num_steps=10, nti_lr=0.1, nti_inner_steps=200, nti_tolerance=1e-9, guidance_scale=3.0)
    inverted = null_text_invert(backbone, z0, cond, settings)
    images = generate(backbone, inverted.z_T, cond, inverted.null_embeddings, settings)
    assert psnr(images, backbone.decode(z0)).min() > 90.0


def test_batches_make_no_difference(tiny, inversion):
    _, cond, inverted = inversion
    whole = generate(tiny, inverted.z_T, cond, inverted.null_embeddings, SETTINGS)
    parts = generate(tiny, inverted.z_T, cond, inverted.null_embeddings, SETTINGS, batch_size=2)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-4)
    again = generate(tiny, inverted.z_T, cond, inverted.null_embeddings, SETTINGS)
    assert torch.equal(whole, again)
    assert whole.shape == (3, 3, 8, 8)
    assert not whole.is_inference()
    assert whole.min() >= 0.0
    assert whole.max() <= 1.0


def test_the_grid_starts_at_the_support_and_ends_at_the_noise(tiny, inversion):
    _, cond, inverted = inversion
    noise = torch.stack([draw_noise(tiny, 0, "ape", index) for index in range(3)])
    grid = alpha_grid(tiny, inverted.z_T, cond, inverted.null_embeddings, noise, [0.0, 0.5, 1.0], SETTINGS)
    assert grid.shape == (3, 3, 3, 8, 8)
    for column, start in [(0, inverted.z_T), (2, noise)]:
        images = generate(tiny, start, cond, inverted.null_embeddings, SETTINGS)
        torch.testing.assert_close(grid[:, column], images, rtol=0, atol=1e-4)


def test_steps_of_the_inversion_must_match(tiny, inversion):
    _, cond, inverted = inversion
    with pytest.raises(ValueError, match="5 steps, but num_steps is 9"):
        generate(tiny, inverted.z_T, cond, inverted.null_embeddings, Invert(num_steps=9))


def test_noise_depends_on_what_it_is_for_and_on_nothing_else(tiny):
    noise = draw_noise(tiny, 5, "ape", 7)
    torch.rand(3)
    assert torch.equal(noise, draw_noise(tiny, 5, "ape", 7))
    others = [draw_noise(tiny, 6, "ape", 7), draw_noise(tiny, 5, "bee", 7), draw_noise(tiny, 5, "ape", 8)]
    assert not any(torch.equal(noise, other) for other in others)
    assert noise.shape == tiny.latent_shape


def test_generators_tell_names_from_numbers_and_parts_from_parts():
    seeds = [item_generator(0, *parts).initial_seed() for parts in [(1,), ("1",), ("a", "b"), ("ab",), ("b", "a")]]
    assert len(set(seeds)) == len(seeds)
    assert item_generator(0, "a").initial_seed() == 235327212273440763  # images of earlier versions can be redone


def test_psnr():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.1)])
    assert psnr(a, b).tolist() == [float("inf"), pytest.approx(20.0)]
