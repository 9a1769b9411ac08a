"""Which embedded stack a task gets, on real digits and on real photos."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from tinyforge import embedded
from tinyforge.images import read_images
from tinyforge.recipe import Backbone
from tinyforge.stages.domain import USUAL_FLOOR_DB, choose_domain, floor_db, held_db
from tinyforge.stages.road import Choice, backbone_choice, teacher_choice


@pytest.fixture(scope="module")
def digits():
    return list(read_images("digits").rgb[:12])


@pytest.fixture(scope="module")
def letters():
    """Dark capitals on light paper, 96 px."""
    drawn = []
    for letter in "ABCDEFGHKLMN":
        paper = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(paper).text((20, 10), letter, fill=(20, 20, 20), font=ImageFont.load_default(70))
        drawn.append(np.asarray(paper))
    return drawn


@pytest.fixture(scope="module")
def photos():
    """Patches of scikit-learn's two sample photos."""
    return [
        image[y : y + 192, x : x + 192] for image in load_sample_images().images for y in (0, 200) for x in (0, 300)
    ]


def test_the_domain_asked_for_is_taken_unseen(photos):
    for name in embedded.domains():
        assert choose_domain(name, photos) == (name, f"the domain '{name}', as asked")


def test_one_domain_needs_no_trial(photos):
    assert choose_domain("auto", photos, ["glyphs"]) == ("glyphs", "'glyphs' is the only domain here")


def test_the_autoencoder_that_holds_the_images_is_chosen(digits, letters, photos):
    assert choose_domain("auto", digits)[0] == "glyphs"
    assert choose_domain("auto", letters)[0] == "glyphs"
    domain, reason = choose_domain("auto", photos)
    assert domain == "photos"
    assert "with colour" in reason


def test_each_domain_knows_its_own_images_and_not_the_other_s(digits, photos):
    for name, own, others in (("glyphs", digits, photos), ("photos", photos, [])):
        folder = embedded.path(name, "backbone")
        assert held_db(folder, own) > floor_db(str(folder))
        assert not others or held_db(folder, others) < floor_db(str(folder))
    assert floor_db("stable-diffusion-v1-5/stable-diffusion-v1-5") == USUAL_FLOOR_DB


def test_the_teacher_follows_the_backbone_s_domain(digits, photos):
    for images, domain in ((digits, "glyphs"), (photos, "photos")):
        backbone = backbone_choice(Backbone(name="embedded"), images, offline=True)
        assert backbone.source == str(embedded.path(domain, "backbone"))
        assert teacher_choice("embedded", backbone, images).source == str(embedded.path(domain, "teacher"))
        assert teacher_choice("glyphs", backbone, images).source == str(embedded.path("glyphs", "teacher"))
    elsewhere = Choice("owner/name", "as asked")
    assert teacher_choice("embedded", elsewhere, photos).source == str(embedded.path("photos", "teacher"))
    assert teacher_choice("timm:resnet18", elsewhere, photos).source == "timm:resnet18"
