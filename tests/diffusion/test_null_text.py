from dataclasses import fields

import pytest
import torch

from tinyforge.diffusion.backbone import tiny_backbone
from tinyforge.diffusion.ddim import ddim_denoise
from tinyforge.diffusion.null_text import (
    NullText,
    adam_step,
    ddim_reconstruct,
    fit_embedding,
    load_supports,
    null_text_invert,
)
from tinyforge.diffusion.plain import invert_plainly
from tinyforge.errors import DataError
from tinyforge.recipe import Invert

from .gaussian import GaussianBackbone, normal

SETTINGS = Invert(num_steps=5, nti_lr=0.1, guidance_scale=3.0)


@pytest.fixture
def latents(tiny, images):
    z = tiny.encode(images)
    return z / z.std()


def conditions(backbone):
    return backbone.embed([f"A photo of an {word}" for word in ("ape", "bee", "cat", "dog", "elk", "fox")])


def test_it_reconstructs_far_better_than_plain_ddim_under_guidance(tiny, latents):
    cond = conditions(tiny)
    inverted = null_text_invert(tiny, latents, cond, SETTINGS)
    plain = ddim_reconstruct(tiny, inverted.z_T, cond, SETTINGS)
    plain_error = (plain - latents).square().mean(dim=(1, 2, 3))
    assert torch.all(plain_error > 20 * inverted.error), plain_error / inverted.error


def test_its_embeddings_and_errors_are_those_of_generation(tiny, latents):
    cond = conditions(tiny)
    inverted = null_text_invert(tiny, latents, cond, SETTINGS)
    timesteps = tiny.schedule(SETTINGS.num_steps)
    z0 = ddim_denoise(tiny, inverted.z_T, cond, inverted.null_embeddings, timesteps, SETTINGS.guidance_scale)
    torch.testing.assert_close((z0 - latents).square().mean(dim=(1, 2, 3)), inverted.error, rtol=1e-2, atol=1e-6)
    assert inverted.mse.shape == (6, 5)
    torch.testing.assert_close(inverted.mse[:, -1], inverted.error)
    assert inverted.null_embeddings.shape == (6, 5, *cond.shape[1:])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("how", ["together", "plainly"])
def test_embeddings_learn_in_float32_whatever_the_network_computes_in(dtype, how, images):
    """In float16 Adam's epsilon is 0, and an element without a gradient becomes NaN."""
    low = tiny_backbone(seed=0, dtype=dtype)
    cond = conditions(low).float()
    if how == "together":
        inverted = null_text_invert(low, low.encode(images), cond, SETTINGS)
    else:
        inverted = invert_plainly(low, images, cond, SETTINGS)
    assert inverted.null_embeddings.dtype == torch.float32
    assert torch.isfinite(inverted.null_embeddings).all()
    plain = ddim_reconstruct(low, inverted.z_T, cond, SETTINGS)
    assert torch.all((plain - low.encode(images)).square().mean(dim=(1, 2, 3)) > 2 * inverted.error)


def test_images_inverted_together_are_images_inverted_alone(tiny64, images):
    z = tiny64.encode(images.double())
    cond = conditions(tiny64)
    settings = Invert(num_steps=4, nti_lr=0.1, nti_inner_steps=6, nti_tolerance=3e-3, guidance_scale=3.0)
    together = null_text_invert(tiny64, z, cond, settings)
    alone = NullText.concatenate(
        [null_text_invert(tiny64, z[i : i + 1], cond[i : i + 1], settings) for i in range(len(z))]
    )
    stopped = together.mse < settings.nti_tolerance
    assert 0 < int(stopped.sum()) < stopped.numel()  # so images of one batch really stop at different steps
    for field in fields(NullText):
        torch.testing.assert_close(getattr(together, field.name), getattr(alone, field.name), rtol=1e-7, atol=1e-9)


def test_whole_batches_can_be_left_out(tiny, latents):
    cond, settings = conditions(tiny), Invert(num_steps=2, nti_inner_steps=2)
    everything = null_text_invert(tiny, latents, cond, settings, batch_size=2)
    rest = null_text_invert(tiny, latents[2:], cond[2:], settings, batch_size=2)
    for index in range(4):
        assert everything.support_bytes(2 + index) == rest.support_bytes(index)


def test_gaussian_null_embeddings_land_on_the_recorded_trajectory():
    """The exact eps is linear in the condition, so each timestep has an embedding with no error at all."""
    backbone = GaussianBackbone()
    z0, cond = normal(4, *backbone.latent_shape), normal(4, 1, backbone.width, seed=1)
    settings = Invert(num_steps=10, nti_lr=0.1, nti_inner_steps=200, nti_tolerance=1e-9, guidance_scale=3.0)
    inverted = null_text_invert(backbone, z0, cond, settings)
    plain = ddim_reconstruct(backbone, inverted.z_T, cond, settings)
    assert inverted.mse.max() < 1e-8
    assert inverted.error.max() < 1e-8
    assert (plain - z0).square().mean() > 0.1


def test_without_inner_steps_it_is_plain_ddim(tiny, latents):
    cond = conditions(tiny)
    settings = SETTINGS.model_copy(update={"nti_inner_steps": 0})
    inverted = null_text_invert(tiny, latents, cond, settings)
    plain = ddim_reconstruct(tiny, inverted.z_T, cond, settings)
    torch.testing.assert_close((plain - latents).square().mean(dim=(1, 2, 3)), inverted.error, rtol=1e-3, atol=1e-6)
    null = tiny.embed([""])
    assert torch.equal(inverted.null_embeddings, null.expand(6, 5, -1, -1))


def test_started_from_the_condition_without_inner_steps_guidance_has_no_effect(tiny, latents):
    """Negative-prompt inversion: the guided step is the conditional one."""
    cond = conditions(tiny)
    settings = SETTINGS.model_copy(update={"nti_inner_steps": 0, "nti_start": "condition"})
    inverted = null_text_invert(tiny, latents, cond, settings)
    assert torch.equal(inverted.null_embeddings, cond[:, None].expand(-1, 5, -1, -1))
    unguided = ddim_denoise(tiny, inverted.z_T, cond, cond, tiny.schedule(5), 1.0)
    torch.testing.assert_close((unguided - latents).square().mean(dim=(1, 2, 3)), inverted.error, rtol=1e-2, atol=1e-6)
    plain = ddim_reconstruct(tiny, inverted.z_T, cond, settings)
    assert torch.all((plain - latents).square().mean(dim=(1, 2, 3)) > inverted.error)


def test_steps_without_guidance_fit_nothing_and_generation_follows_them(tiny, latents):
    cond = conditions(tiny)
    settings = SETTINGS.model_copy(update={"guidance_interval": [0.3, 0.7]})  # of 999, 799, 599, 399, 199: two
    inverted = null_text_invert(tiny, latents, cond, settings)
    nulls = inverted.null_embeddings
    moved = [not torch.equal(nulls[:, i], nulls[:, i - 1] if i else tiny.embed([""]).expand_as(cond)) for i in range(5)]
    assert moved == [False, False, True, True, False]
    timesteps, scale = tiny.schedule(5), settings.guidance_scale
    z0 = ddim_denoise(tiny, inverted.z_T, cond, nulls, timesteps, scale, settings.guidance_interval)
    torch.testing.assert_close((z0 - latents).square().mean(dim=(1, 2, 3)), inverted.error, rtol=1e-2, atol=1e-6)


def test_adam_is_torchs_adam():
    u = torch.nn.Parameter(normal(2, 3, 4))
    ours, mean, square = u.detach().clone(), torch.zeros(2, 3, 4).double(), torch.zeros(2, 3, 4).double()
    theirs = torch.optim.Adam([u], lr=1e-2)
    for step in range(1, 6):
        u.grad = normal(2, 3, 4, seed=step)
        theirs.step()
        ours, mean, square = adam_step(ours, u.grad, mean, square, step, 1e-2)
        torch.testing.assert_close(ours, u.detach(), rtol=0, atol=1e-12)


def test_images_that_are_done_leave_the_batch():
    calls = []

    def predict(u, rows):
        calls.append(rows.tolist())
        return u[:, :, :, None]

    target = torch.stack([torch.zeros(1, 2), torch.full((1, 2), 0.025), torch.ones(1, 2)])[:, :, :, None]
    start = torch.zeros(3, 1, 2)
    u, result, mse = fit_embedding(predict, start, target, lr=0.01, steps=4, tolerance=1e-4)
    assert calls == [[0, 1, 2], [1, 2], [1, 2], [2], [2]]
    assert torch.equal(u[0], start[0])
    torch.testing.assert_close(u[:, 0, 0], torch.tensor([0.0, 0.02, 0.04]), rtol=0, atol=1e-3)
    torch.testing.assert_close(result[..., 0], u)
    torch.testing.assert_close(mse, (u - target[..., 0]).square().mean(dim=(1, 2)))
    assert torch.equal(start, torch.zeros(3, 1, 2))


def test_progress_counts_the_timesteps_of_each_image(tiny, latents):
    seen = []
    settings = Invert(num_steps=3, nti_inner_steps=0)
    null_text_invert(
        tiny, latents[:3], conditions(tiny)[:3], settings, batch_size=2, progress=lambda *done: seen.append(done)
    )
    assert seen == [(count, 9) for count in (1, 2, 3, 5, 7, 9)]  # one image, then two


def test_inversions_survive_their_files(tiny, latents, tmp_path):
    inverted = null_text_invert(tiny, latents[:2], conditions(tiny)[:2], Invert(num_steps=3, nti_inner_steps=1))
    paths = [tmp_path / f"{index:03d}.safetensors" for index in range(2)]
    for index, path in enumerate(paths):
        path.write_bytes(inverted.support_bytes(index))
    loaded = load_supports(paths)
    assert all(torch.equal(getattr(loaded, f.name), getattr(inverted, f.name)) for f in fields(NullText))
    paths[1].write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"001\.safetensors: not a saved inversion"):
        load_supports(paths)
