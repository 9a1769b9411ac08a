"""Rates and extrapolations of benchmarks/tint.py, and its parts on a tiny backbone."""

import pytest

from tinyforge.diffusion.architectures import TINY
from tinyforge.diffusion.backbone import tiny_backbone
from tinyforge.recipe import Invert


@pytest.fixture
def tint(script):
    return script("tint")


def test_the_share_is_that_of_the_better_ceiling(tint):
    part = tint.Part("x", "image", 10, lambda: None)
    times = [tint.Took(4.0, 2.0), tint.Took(4.0, 2.0), tint.Took(8.0, 2.0)]
    found = tint.row(part, times, 100e9, {"matmul": 100e9, "convolution": 200e9}, None, "cpu")
    assert found["per_s"] == 2.5  # by the wall
    assert found["gflop_per_unit"] == 10.0
    assert found["gflop_s"] == 50.0  # by the processor
    assert found["share"] == 0.25
    assert tint.row(part, times, 100e9, {"matmul": 100e9, "convolution": 1.0}, None, "cuda")["share"] == 0.25


def test_what_all_steps_would_take_follows_from_the_rates(tint):
    costs = {"VAE decode": 0.1, "textual inversion": 0.05, "null-text inversion": 0.5, "generation": 0.5}
    rows = [{"part": name, "per_s": 1 / cost} for name, cost in {**costs, "UNet forward": 0.1}.items()]
    run, full = Invert(ti_steps=1, num_steps=4, nti_inner_steps=2), Invert(ti_steps=100, ti_batch_size=4)
    far = tint.extrapolate(rows, run, full, classes=2, shots=5)
    assert far["textual_inversion_s"] == pytest.approx(2 * 100 * 4 * 0.05)
    assert far["null_text_inversion_s"] == pytest.approx(2 * 5 * 25 * (0.3 + 10 * 0.1))
    assert far["image_s"] == pytest.approx(0.1 + 25 * 0.1)
    assert tint.extrapolate(rows, run, run, 1, 1)["image_s"] == pytest.approx(0.5)


def test_every_part_runs_and_its_operations_grow_with_its_steps(tint, script):
    count = script("measure").count_flops
    size = tint.Size(classes=2, shots=1, images=2, batch=2)

    def flops(**steps):
        few = {"nti_inner_steps": 1, "ti_steps": 1, "num_steps": 2, **steps}
        settings = Invert(prompt="a {}", initializer="o", **few)
        return {part.name: count(part.run) for part in tint.diffusion_parts(tiny_backbone(), settings, size)}

    one, more = flops(), flops(ti_steps=3, nti_inner_steps=2)
    assert all(value > 0 for value in one.values())
    assert more["textual inversion"] == 3 * one["textual inversion"]
    assert more["null-text inversion"] > one["null-text inversion"]
    assert more["generation"] == one["generation"]


def test_operations_counted_on_shapes_are_those_of_a_run(tint, script):
    """The tiny architecture's, run with the same settings; the text encoder is what the count leaves out."""
    count, backbone = script("measure").count_flops, tiny_backbone()
    settings = Invert(prompt="a {}", initializer="o", ti_steps=2, num_steps=2, nti_inner_steps=1)
    told = tint.operations(TINY, settings, shots=1)
    parts = {part.name: part for part in tint.diffusion_parts(backbone, settings, tint.Size(1, 1, 1, 1))}
    assert 1e12 * told["UNet forward"] == count(parts["UNet forward"].run)
    assert 1e12 * told["VAE encode"] == count(parts["VAE encode"].run)
    assert 1e12 * told["an image"] == pytest.approx(count(parts["generation"].run))
    of_text = count(lambda: backbone.embed(["a b"]))
    inverted = 1e12 * (told["null-text inversion of 1 supports"] - told["VAE encode"])
    real = count(parts["null-text inversion"].run) - of_text
    assert inverted == pytest.approx(real)


def test_help_tells_what_can_be_asked(tint, capsys):
    with pytest.raises(SystemExit) as stop:
        tint.parse(["--help"])
    assert stop.value.code == 0
    assert "--whole" in capsys.readouterr().out
