"""Engines of the UNet: each answers as eager PyTorch does, and 'auto' takes the fastest and remembers it."""

import shutil
from dataclasses import replace

import pytest
import torch

from tinyforge.diffusion import engine
from tinyforge.diffusion.backbone import load_backbone, save_backbone, tiny_backbone
from tinyforge.diffusion.engine import ENGINES, eager, measure, open_engine, quickest, sample
from tinyforge.diffusion.null_text import null_text_invert
from tinyforge.diffusion.sample import generate
from tinyforge.errors import MissingError, RecipeError
from tinyforge.recipe import Invert

SETTINGS = Invert(num_steps=3, nti_inner_steps=2, guidance_scale=3.0)
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
OTHERS = [
    pytest.param("compiled", marks=[NEEDS_COMPILER, pytest.mark.slow, pytest.mark.filterwarnings("default")]),
    "openvino",
]


@pytest.mark.parametrize("name", OTHERS)
def test_an_engine_answers_as_eager_does(name, images):
    plain = tiny_backbone()
    fast = replace(plain, engine=open_engine(name, plain.unet, 4, "tiny"))
    assert fast.engine.name == name
    cond = plain.embed([f"A photo of an {word}" for word in ("ape", "bee", "cat", "dog", "elk", "fox")])
    made = []
    for backbone in (plain, fast):
        z = backbone.encode(images)
        inverted = null_text_invert(backbone, z, cond, SETTINGS)
        drawn = generate(backbone, inverted.z_T, cond, inverted.null_embeddings, SETTINGS, batch_size=4)
        made.append((inverted.z_T, inverted.null_embeddings, drawn))
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@NEEDS_COMPILER
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_compiled_gradients_are_eager_ones(images):
    """Of batches that are filled up to the next power of two, too, whose copies must add nothing."""
    plain = tiny_backbone()
    fast = replace(plain, engine=open_engine("compiled", plain.unet, 4, "tiny"))
    z, t = plain.encode(images), torch.tensor([900, 500, 500, 100, 10, 700])
    words = plain.embed(["a b"]).detach()
    for count in (1, 2, 3, 6):
        found = []
        for backbone in (plain, fast):
            cond = words.repeat(count, 1, 1).requires_grad_()
            loss = backbone.eps(z[:count], t[:count], cond).square().sum()
            found.append(torch.autograd.grad(loss, cond)[0])
        torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_gradients_are_eager_elsewhere(images):
    plain = tiny_backbone()

    def forbidden(*inputs):
        raise AssertionError

    fast = replace(plain, engine=replace(plain.engine, predict=forbidden))
    cond = plain.embed(["a b"]).detach().requires_grad_()
    z = plain.encode(images[:1])
    (gradient,) = torch.autograd.grad(fast.eps(z, 500, cond).sum(), cond)
    assert gradient.abs().sum() > 0
    with torch.no_grad(), pytest.raises(AssertionError):
        fast.eps(z, 500, cond)


def test_auto_measures_once_and_remembers(tmp_path, monkeypatch):
    unet = tiny_backbone().unet
    tried = []

    def make(name):
        def build(unet):
            tried.append(name)
            return eager(unet)

        return build

    def broken(unet):
        raise RuntimeError("no such library\nand more")

    monkeypatch.setattr(engine, "ENGINES", {"eager": make("eager"), "compiled": broken, "openvino": make("openvino")})
    monkeypatch.setattr(engine, "measure", lambda made, inputs: dict(zip(made, (2.0, 1.0), strict=True)))
    file = tmp_path / "deep/engines.json"
    first = open_engine("auto", unet, 2, "tiny", file)
    assert (first.name, first.seconds) == ("openvino", {"eager": 2.0, "openvino": 1.0})
    assert first.failed == {"compiled": "no such library"}
    tried.clear()
    again = open_engine("auto", unet, 2, "tiny", file)
    assert (again.name, again.seconds, again.failed) == (first.name, first.seconds, first.failed)
    assert tried == ["openvino"]
    open_engine("auto", unet, 3, "tiny", file)  # another batch is another question
    assert tried == ["openvino", "eager", "openvino"]
    tried.clear()
    open_engine("auto", tiny_backbone(dtype="bfloat16").unet, 2, "tiny", file)  # and so is another arithmetic
    assert tried == ["eager", "openvino"]


def test_eager_stays_unless_another_is_clearly_faster():
    assert quickest({"eager": 1.0, "openvino": 0.96}) == "eager"
    assert quickest({"eager": 1.0, "openvino": 0.9}) == "openvino"


def test_the_least_of_the_rounds_counts():
    unet, ticks = tiny_backbone().unet, iter([0, 5, 5, 6, 10, 12, 20, 29, 30, 31, 40, 44])
    found = measure({"a": eager(unet), "b": eager(unet)}, sample(unet, 1), clock=lambda: float(next(ticks)))
    assert found == {"a": 1.0, "b": 1.0}


def test_one_that_cannot_work_is_told():
    half = tiny_backbone(dtype="bfloat16")
    with pytest.raises(MissingError, match="'openvino' does not work here: it computes in float32"):
        open_engine("openvino", half.unet, 2, "tiny")
    with pytest.raises(RecipeError, match="is none of"):
        open_engine("abacus", half.unet, 2, "tiny")
    assert set(ENGINES) == {"eager", "compiled", "openvino"}


def test_a_loaded_backbone_has_the_engine_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "ENGINES", {"eager": eager, "openvino": eager})
    save_backbone(tiny_backbone(), tmp_path)
    assert load_backbone(tmp_path).engine.name == "eager"
    assert load_backbone(tmp_path, engine="openvino").engine.name == "openvino"
