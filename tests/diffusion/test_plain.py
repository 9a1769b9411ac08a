"""The fast path against inversion as its sources write it, all savings at once and with every option."""

import pytest
import torch

from tinyforge.diffusion.null_text import null_text_invert
from tinyforge.diffusion.plain import invert_plainly, learn_plainly, weights_collecting_gradients
from tinyforge.diffusion.textual_inversion import learn_concepts
from tinyforge.recipe import Invert

CLASSES, LABELS = ["ape", "bee", "cat"], torch.tensor([0, 0, 0, 1, 2, 2])


@pytest.mark.parametrize(
    "settings",
    [
        Invert(ti_steps=7),
        Invert(ti_steps=6, ti_batch_size=3, num_vectors=2, ti_schedule="cosine", ti_lr=0.1),
        Invert(ti_steps=55, ti_batch_size=2, ti_lr=0.3, ti_patience=10),
    ],
    ids=["the paper's", "several samples and vectors", "until nothing is gained"],
)
def test_one_learned_row_is_the_whole_table_with_its_other_rows_put_back(settings, tiny64, images):
    images = images.double()
    fast, losses = learn_concepts(tiny64, tiny64.encode(images), LABELS, CLASSES, settings, 3)
    plain, plain_losses = learn_plainly(tiny64, images, LABELS, CLASSES, settings, 3)
    assert (fast.classes, fast.placeholders) == (plain.classes, plain.placeholders)
    torch.testing.assert_close(fast.embeddings, plain.embeddings, rtol=0, atol=1e-5)  # rows learn in float32
    torch.testing.assert_close(losses, plain_losses)
    if settings.ti_patience:
        assert len(losses[:, 0].unique()) < settings.ti_steps  # so that a class did stop


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nti_tolerance": 3e-3},
        {"nti_start": "condition", "guidance_interval": [0.3, 0.8]},
        {"nti_inner_steps": 0},
    ],
)
def test_images_inverted_together_are_images_inverted_plainly(options, tiny64, images):
    settings = Invert(**{"num_steps": 4, "nti_lr": 0.1, "nti_inner_steps": 6, "guidance_scale": 3.0} | options)
    cond = tiny64.embed([f"A photo of an {name}" for name in CLASSES]).detach()[LABELS]
    images = images.double()
    fast = null_text_invert(tiny64, tiny64.encode(images), cond, settings)
    plain = invert_plainly(tiny64, images, cond, settings)
    for name, value in vars(fast).items():
        torch.testing.assert_close(value, getattr(plain, name), rtol=0, atol=1e-7, msg=name)


def test_weights_are_frozen_again(tiny64):
    with weights_collecting_gradients(tiny64):
        assert all(p.requires_grad for p in tiny64.unet.parameters())
        tiny64.unet.conv_in.bias.sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in tiny64.unet.parameters())


def test_progress_counts_steps_and_timesteps(tiny, images):
    seen, settings = [], Invert(ti_steps=2, num_steps=3, nti_inner_steps=1)
    learn_plainly(tiny, images, LABELS, CLASSES, settings, 0, progress=lambda *told: seen.append(told))
    invert_plainly(tiny, images, tiny.embed(["a"] * 6).detach(), settings, progress=lambda *told: seen.append(told))
    assert seen == [*((done, 6) for done in range(1, 7)), *((done, 18) for done in range(3, 19, 3))]
