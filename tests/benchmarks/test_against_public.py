"""benchmarks/against_public.py without the public code: arithmetic, and our side of it on a tiny backbone."""

import math

import numpy as np
import pytest
import torch

from tinyforge.diffusion.backbone import load_backbone, save_backbone, tiny_backbone
from tinyforge.errors import UsageError
from tinyforge.images import ImageSet, Item
from tinyforge.recipe import Invert
from tinyforge.stages.pictures import as_batch
from tinyforge.stages.synthesize import plan


@pytest.fixture
def against(script):
    script("measure")
    return script("against_public")


@pytest.fixture
def task(against, tmp_path):
    """Two classes of two random images, with settings that the public code has too."""
    save_backbone(tiny_backbone(), tmp_path)
    rng = np.random.default_rng(0)
    items = [Item(str(i), i // 2, "", rng.integers(0, 256, (8, 8, 3), np.uint8)) for i in range(4)]
    supports = ImageSet(("a", "b"), tuple(items))
    settings = Invert(prompt="a {}", initializer="o", ti_steps=3, num_steps=2, guidance_scale=2.0, nti_inner_steps=2)
    planned = plan(supports.labels, 2, 3, [0.0, 0.5])
    return against.Task(
        tmp_path, settings, supports, as_batch(supports.rgb, 8), planned, 0, "cpu", "float32", 4
    )  # fmt: skip


def test_the_ratio_is_taken_block_by_block(against):
    def one(total):
        return {"generation": against.Took(total, total / 2), "load": against.Took(0.0, 0.0)}

    public = [one(10.0), one(10.0), one(40.0), one(40.0)]  # the machine became four times slower half way
    ours = [one(8.0), one(32.0)]
    found = against.ratios(public, ours, 4, "all", "wall")
    assert found["ratio_by_block"] == pytest.approx([5.0, 5.0])
    assert found["ratio"] == pytest.approx(5.0)
    assert found["ratio_interval"] == pytest.approx([5.0, 5.0])
    assert found["public_all_classes"] == 100.0
    assert against.ratios(public, ours, 4, "generation", "processor")["ours_all_classes"]["median"] == 10.0
    assert against.ratios(public, ours, 8, "all", "wall")["ratio"] == pytest.approx(10.0)  # four of eight classes
    assert "ratio_interval" not in against.ratios(public, ours[:1], 4, "all", "wall")


def test_quality_is_compared_in_pairs(against):
    ours = {"ti_loss": [1.0, 2.0], "latent_mse": [0.1, 0.2], "psnr_db": [30.0, 31.0], "agrees": [True] * 9 + [False]}
    public = {**ours, "ti_loss": [1.5, 2.5], "agrees": [True] * 10}
    found = against.compare(ours, public)
    assert found["ti_loss"]["difference"] == pytest.approx((-0.5, -0.5, -0.5))
    assert found["psnr_db"]["difference"] == pytest.approx((0.0, 0.0, 0.0))
    assert found["teacher_agreement"]["difference"][0] == pytest.approx(-0.1)


def test_another_folder_is_no_checkout(against, tmp_path):
    with pytest.raises(UsageError, match="no checkout"):
        against.public_code.open_checkout(tmp_path)


def test_our_side_runs_and_its_own_vectors_give_its_own_images(against, task):
    made = against.run_ours(task)
    assert made.images.shape == (6, 3, 8, 8)
    assert set(made.took) == set(against.STAGES)
    again = against.same_vectors(task, made)
    assert again["z_T_max_abs_difference"] == again["null_embeddings_rms_difference"] == 0.0
    equal = {"median": 999.0, "lowest": 999.0, "n": 6}
    assert again["image_psnr_db_own_inversions"] == again["image_psnr_db_same_inversions"] == equal


def test_some_classes_of_what_was_made_are_those_made_alone(against, task):
    made = against.run_ours(task)
    few = task.first(1)
    assert (len(few.supports), few.supports.classes, len(few.planned)) == (2, ("a",), 3)
    alone, part = against.run_ours(few), few.part(made)
    for name in ("vectors", "z_T", "null_embeddings", "images"):
        torch.testing.assert_close(getattr(part, name), getattr(alone, name), atol=1e-3, rtol=1e-3)


def test_quality_sees_a_worse_inversion(against, task):
    class Agreeable:
        def predict_logits(self, images):
            return np.tile([1.0, 0.0], (len(images), 1))

    backbone, made = load_backbone(task.source), against.run_ours(task)
    good = against.quality(backbone, task, made, Agreeable())
    made.null_embeddings = torch.zeros_like(made.null_embeddings)
    bad = against.quality(backbone, task, made, Agreeable())
    assert all(a < b for a, b in zip(good["latent_mse"], bad["latent_mse"], strict=True))
    assert good["ti_loss"] == bad["ti_loss"]
    assert all(math.isfinite(loss) for loss in good["ti_loss"])
    assert good["agrees"] == [True] * 3 + [False] * 3


def test_the_public_code_gets_the_noise_that_ours_draws(against):
    from tinyforge.diffusion.sample import draw_noise

    backbone = tiny_backbone()
    torch.manual_seed(against.noise_seed(3, "cup", 7))
    latents = torch.randn_like(torch.empty(1, *backbone.latent_shape))
    assert torch.equal(latents[0], draw_noise(backbone, 3, "cup", 7))


def test_equal_settings_are_one_sample_a_step_at_the_public_rate(against, tmp_path):
    (tmp_path / "tinyforge.json").write_text('{"invert": {"ti_lr": 0.01, "ti_batch_size": 4, "num_steps": 15}}')
    options = against.parse(["--public", "x", "--ti-steps", "40"])
    found = against.equal_settings(tmp_path, options)
    assert (found.ti_steps, found.ti_batch_size, found.ti_lr, found.num_steps) == (40, 1, 1e-3, 15)
    assert against.equal_settings(tmp_path, against.parse(["--public", "x", "--paper"])).num_steps == 25
    assert against.equal_settings(tmp_path, against.parse(["--public", "x", "--ddim-steps", "9"])).num_steps == 9


def test_help_tells_what_can_be_asked(against, capsys):
    with pytest.raises(SystemExit) as stop:
        against.parse(["--help"])
    assert stop.value.code == 0
    assert "--public" in capsys.readouterr().out
