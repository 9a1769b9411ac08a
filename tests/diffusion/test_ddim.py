from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler

from tinyforge.diffusion.ddim import (
    abar,
    add_noise,
    ddim_denoise,
    ddim_invert,
    ddim_step,
    guide,
    timestep_pairs,
    trailing_timesteps,
)

from .gaussian import GaussianBackbone, normal

LEVELS = [(0.9991, 0.0047), (0.5, 0.49), (0.0047, 1.0), (1.0, 0.3)]


@pytest.mark.parametrize(("low", "high"), LEVELS)
def test_a_step_and_its_return_are_the_identity(low, high):
    z, eps = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    back = ddim_step(ddim_step(z, eps, low, high), eps, high, low)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-12)


def test_a_step_to_the_same_level_changes_nothing():
    z, eps = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    assert torch.equal(ddim_step(z, eps, 0.7, 0.7), z)


def test_a_step_between_levels_composes():
    z, eps = normal(1, 3, 4, 4), normal(1, 3, 4, 4, seed=1)
    two = ddim_step(ddim_step(z, eps, 0.9, 0.6), eps, 0.6, 0.2)
    torch.testing.assert_close(two, ddim_step(z, eps, 0.9, 0.2))


def test_noising_is_a_step_up_from_the_clean_latent():
    z, noise = normal(3, 3, 4, 4), normal(3, 3, 4, 4, seed=1)
    noisy = add_noise(z, noise, torch.tensor([0.3, 0.3, 0.3], dtype=torch.float64))
    torch.testing.assert_close(noisy, ddim_step(z, noise, 1.0, 0.3))


@pytest.mark.parametrize("num_steps", [1, 7, 10, 25, 30, 50, 1000])
def test_timesteps_and_steps_are_those_of_diffusers(num_steps):
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(num_steps)
    timesteps = trailing_timesteps(1000, num_steps)
    assert timesteps == scheduler.timesteps.tolist()
    alphas = scheduler.alphas_cumprod.tolist()
    high = timesteps[-1]
    z, eps = normal(1, 3, 4, 4), normal(1, 3, 4, 4, seed=1)
    ours = ddim_step(z, eps, alphas[high], alphas[0])
    if 1000 % num_steps == 0:  # elsewhere diffusers steps by the wrong distance
        torch.testing.assert_close(ours, scheduler.step(eps, high, z).prev_sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [0, 1001, -3])
def test_impossible_numbers_of_steps_are_refused(num_steps):
    with pytest.raises(ValueError, match="between 1 and 1000"):
        trailing_timesteps(1000, num_steps)


def test_pairs_walk_down_to_the_clean_latent():
    assert timestep_pairs([999, 499]) == [(999, 499), (499, -1)]


def test_the_clean_level_is_the_configured_one():
    backbone = GaussianBackbone()
    assert abar(backbone, -1) == backbone.final_alpha == float(backbone.alphas_cumprod[0])
    assert abar(backbone, 999) == float(backbone.alphas_cumprod[-1])


def test_guidance_of_one_is_the_condition_and_of_zero_the_null():
    uncond, cond = normal(1, 3, 4, 4), normal(1, 3, 4, 4, seed=1)
    assert torch.equal(guide(uncond, cond, 0.0), uncond)
    torch.testing.assert_close(guide(uncond, cond, 1.0), cond)
    torch.testing.assert_close(guide(uncond, cond, 3.0), 3 * cond - 2 * uncond)


def inversion_error(backbone: GaussianBackbone, num_steps: int) -> float:
    z0, mu = normal(4, *backbone.latent_shape), normal(4, *backbone.latent_shape, seed=1)
    trajectory = ddim_invert(backbone, z0, mu.flatten(1)[:, None], backbone.schedule(num_steps))
    exact = backbone.flow(z0, mu, backbone.final_alpha, float(backbone.alphas_cumprod[-1]))
    assert len(trajectory) == num_steps + 1
    return float((trajectory[-1] - exact).abs().max())


def test_inversion_converges_to_the_exact_flow_at_first_order():
    backbone = GaussianBackbone()
    errors = [inversion_error(backbone, num_steps) for num_steps in (50, 100, 200, 400)]
    ratios = [coarse / fine for coarse, fine in pairwise(errors)]
    assert errors[-1] < 0.02
    assert all(1.8 < ratio < 2.3 for ratio in ratios), ratios


def test_denoising_converges_to_the_exact_flow_at_first_order():
    backbone = GaussianBackbone()
    z, mu = normal(4, *backbone.latent_shape), normal(4, *backbone.latent_shape, seed=1)
    cond = mu.flatten(1)[:, None]
    exact = backbone.flow(z, mu, float(backbone.alphas_cumprod[-1]), backbone.final_alpha)
    errors = []
    for num_steps in (100, 200, 400):
        result = ddim_denoise(backbone, z, cond, torch.zeros_like(cond), backbone.schedule(num_steps), 1.0)
        errors.append(float((result - exact).abs().max()))
    assert errors[-1] < 0.02
    assert all(1.7 < coarse / fine < 2.3 for coarse, fine in pairwise(errors)), errors


def test_inversion_then_denoising_returns_to_the_start_as_steps_shrink():
    backbone = GaussianBackbone()
    z0 = normal(4, *backbone.latent_shape)
    cond = normal(4, *backbone.latent_shape, seed=1).flatten(1)[:, None]
    errors = []
    for num_steps in (10, 100, 1000):
        timesteps = backbone.schedule(num_steps)
        z_T = ddim_invert(backbone, z0, cond, timesteps)[-1]
        back = ddim_denoise(backbone, z_T, cond, cond, timesteps, 7.5)  # null = condition: guidance has no effect
        errors.append(float((back - z0).abs().max()))
    assert errors[0] > 8 * errors[1] > 64 * errors[2]
    assert errors[2] < 0.02


def test_outside_the_interval_nothing_but_the_condition_is_asked():
    backbone = GaussianBackbone()
    timesteps, z = backbone.schedule(4), normal(2, *backbone.latent_shape)  # 999, 749, 499, 249
    cond, null = normal(2, 1, backbone.width, seed=1), normal(2, 1, backbone.width, seed=2)
    result = ddim_denoise(backbone, z, cond, null, timesteps, 3.0, (0.3, 0.8))
    for high, low in timestep_pairs(timesteps):
        eps = backbone.eps(z, high, cond)
        if high in (749, 499):
            eps = guide(backbone.eps(z, high, null), eps, 3.0)
        z = ddim_step(z, eps, abar(backbone, high), abar(backbone, low))
    torch.testing.assert_close(result, z)


def test_null_embeddings_are_taken_step_by_step():
    backbone = GaussianBackbone()
    timesteps, z = backbone.schedule(4), normal(2, *backbone.latent_shape)
    cond = normal(2, 1, backbone.width, seed=1)
    nulls = normal(2, 4, 1, backbone.width, seed=2)
    result = ddim_denoise(backbone, z, cond, nulls, timesteps, 3.0)
    for index, (high, low) in enumerate(timestep_pairs(timesteps)):
        eps = guide(backbone.eps(z, high, nulls[:, index]), backbone.eps(z, high, cond), 3.0)
        z = ddim_step(z, eps, abar(backbone, high), abar(backbone, low))
    torch.testing.assert_close(result, z)
