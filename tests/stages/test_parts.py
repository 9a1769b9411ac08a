"""The pure parts of the stages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyforge import embedded
from tinyforge.device.preprocess import decode
from tinyforge.loading import load_recipe
from tinyforge.recipe import Distill, Invert, with_defaults
from tinyforge.stages.pictures import as_batch, as_pixels, png, shrink
from tinyforge.stages.road import complete
from tinyforge.stages.synthesize import plan
from tinyforge.stages.telling import confusion


@given(
    st.integers(1, 40),
    st.integers(0, 30),
    st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=1, max_size=4, unique=True),
)
def test_a_plan_deals_supports_and_alphas_evenly(shots, images_per_class, alphas):
    labels = np.repeat(np.arange(3), shots)
    made = plan(labels, 3, images_per_class, alphas)
    assert len({one.file for one in made}) == len(made) == 3 * images_per_class
    assert all(labels[one.support] == one.label for one in made)
    for label in range(3):
        pairs = [(one.support, one.alpha) for one in made if one.label == label]
        counts = [pairs.count((s, a)) for s in np.flatnonzero(labels == label) for a in alphas]
        assert max(counts) - min(counts) <= 1
        each = [sum(a == alpha for _, a in pairs) for alpha in alphas]
        assert max(each) - min(each) <= 1, "also with more supports than images"


def test_a_longer_plan_begins_with_the_shorter():
    labels = np.array([0, 0, 1])
    short, long = plan(labels, 2, 3, [0.2, 0.4]), plan(labels, 2, 9, [0.2, 0.4])
    assert [one for one in long if one.index < 3] == short


def test_pictures_survive_the_way_to_a_tensor_and_to_a_file():
    rgb = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    assert np.array_equal(as_pixels(as_batch([rgb], 12))[0], rgb)
    assert np.array_equal(decode(png(rgb)), rgb)


@pytest.mark.parametrize(("like", "expected"), [((8, 8), (8, 8)), ((40, 40), (32, 32)), ((16, 64), (16, 32))])
def test_shrink_never_enlarges(like, expected):
    assert shrink(np.zeros((32, 32, 3), np.uint8), like).shape[:2] == expected


def test_a_backbone_fills_only_what_the_recipe_left_open():
    filled = with_defaults(Invert(ti_steps=7), {"ti_steps": 100, "guidance_scale": 3.0})
    assert (filled.ti_steps, filled.guidance_scale, filled.num_steps) == (7, 3.0, 25)
    assert with_defaults(Distill(), {}) == Distill()


def test_the_paper_s_preset_wins_over_the_backbone_s_suggestion_and_what_is_written_over_both():
    recipe = load_recipe("raspi", ["preset='paper'", "invert.ti_steps=7"])
    done = complete(recipe, str(embedded.path("glyphs", "backbone")), str(embedded.path("glyphs", "teacher")))
    invert, suggested = done.invert, complete(load_recipe("raspi"), str(embedded.path("glyphs", "backbone")), "")
    assert (invert.ti_steps, invert.ti_batch_size, invert.ti_lr) == (7, 1, 1e-3)
    assert (invert.num_steps, invert.guidance_scale, invert.nti_inner_steps, invert.nti_lr) == (25, 7.5, 10, 1e-2)
    assert (done.synthesize.images_per_class, done.synthesize.alphas) == (100, [1.0])
    assert (suggested.invert.ti_steps, suggested.invert.num_steps) != (5000, 25)
    assert done.distill == suggested.distill  # a preset says nothing of the student


def test_confusion_counts_rows_as_truth():
    assert confusion({"labels": [0, 0, 1], "predicted": [0, 1, 1]}, 2).tolist() == [[1, 1], [0, 1]]
