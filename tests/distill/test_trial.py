from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyforge.distill.batches import methods, training_set
from tinyforge.distill.losses import UNLABELLED
from tinyforge.distill.pixels import pack, to_unit
from tinyforge.distill.prototypes import cosine_logits
from tinyforge.distill.teacher import adapt, fold_of
from tinyforge.distill.trial import Candidate, Court, Views, draw_views, held_out_logits, label_views, view_features
from tinyforge.recipe import Distill, Teacher

from .conftest import SPEC, toy_images

SETTINGS = Distill(epochs=1, steps_per_epoch=12, batch_size=16, lr=0.02, augment="light", dtype="float32")
WAYS = {one.name: one for one in methods(SETTINGS)}


@pytest.fixture(scope="module")
def court():
    """Three supports of each of three classes, and two images 'made from' each."""
    supports, labels = toy_images(3, 0)
    made, made_labels = toy_images(6, 1)
    origin = [*range(9), *np.repeat(np.arange(9), 2)]
    data = training_set(pack(supports, SPEC), labels, pack(made, SPEC), made_labels)
    return Court(data, torch.tensor(origin), fold_of(torch.tensor(labels), 3), SPEC, SETTINGS, 3, seed=4)


@pytest.fixture(scope="module")
def views(court):
    return draw_views(court.data, court.settings, court.seed)


def sit(court, way: str, fold: int, views: Views, soft=None) -> np.ndarray:
    soft = torch.zeros(len(views.image), court.num_classes) if soft is None else soft
    everything = torch.ones(len(court.data.labels), dtype=torch.bool)
    return held_out_logits(court, Candidate(WAYS[way], 0.5, everything), fold, views, soft)


def test_every_support_has_a_view_however_few_are_drawn(court):
    few = draw_views(court.data, SETTINGS.model_copy(update={"steps_per_epoch": 1, "batch_size": 2}), 0)
    assert few.num_of_supports == 9
    assert sorted(few.image[:9].tolist()) == list(range(9))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=20), st.integers(2, 5), st.data())
def test_every_support_is_held_out_once_unless_it_is_alone_and_its_images_with_it(labels, most, data):
    labels = torch.tensor(labels)
    num = len(labels)
    made = data.draw(st.lists(st.integers(-1, num - 1), max_size=10))
    origin = torch.tensor([*range(num), *made])
    one = Court(None, origin, fold_of(labels, most), SPEC, SETTINGS, 4, seed=0)
    asked = [int(i) for fold in range(one.num_folds) for i in one.held_out(fold)]
    alone = [i for i in range(num) if int((labels == labels[i]).sum()) == 1]
    assert sorted(asked + alone) == list(range(num))
    for fold in range(one.num_folds):
        out, allowed = set(one.held_out(fold).tolist()), one.allowed(fold)
        assert all(bool(allowed[i]) == (int(origin[i]) not in out) for i in range(len(origin)))
        assert set(labels[allowed[:num]].tolist()) == set(labels.tolist())


def test_views_show_every_image_equally_often(court, views):
    shown = torch.bincount(views.image, minlength=len(court.data.labels))
    for part in (shown[:9], shown[9:]):
        assert int(part.max()) - int(part.min()) <= 1
    assert int((views.image[: views.num_of_supports] < 9).all()) == 1
    assert views.pixels.dtype == torch.uint8


def test_many_views_repeat_rather_than_fill_the_memory(court, monkeypatch):
    monkeypatch.setattr("tinyforge.distill.trial.VIEW_BYTES", 2 * 10 * court.data.pixels[0].numel())
    assert draw_views(court.data, court.settings, 0).num_of_supports == 10


def test_images_without_a_label_have_their_share_as_in_full_length(monkeypatch):
    supports, labels = toy_images(3, 0)
    made, made_labels = toy_images(6, 1)
    free, _ = toy_images(30, 2)
    data = training_set(pack(supports, SPEC), labels, pack(made, SPEC), made_labels, pack(free, SPEC))
    settings = SETTINGS.model_copy(update={"unlabelled_share": 0.25, "steps_per_epoch": 3})
    origin = torch.tensor([*range(9), *np.repeat(np.arange(9), 2), *[-1] * len(free)])
    court = Court(data, origin, fold_of(torch.tensor(labels), 3), SPEC, settings, 3, seed=4)
    seen = []
    monkeypatch.setattr("tinyforge.distill.trial.learn", lambda run, view, taught, labels, *rest: seen.append(labels))
    sit(court, "tint-teacher", 0, draw_views(data, settings, 4))
    assert [int((one == UNLABELLED).sum()) for one in seen] == [2, 2, 2]  # a quarter of the eight beside supports


def test_what_stems_from_a_held_out_support_teaches_nothing(court, views):
    """Other pixels in every view of the held-out supports and of their images: the same answers, bit by bit."""
    before = sit(court, "tint-class", 0, views)
    stems = torch.isin(court.origin[views.image], court.held_out(0))
    scrambled = torch.where(stems[:, None, None, None], 255 - views.pixels, views.pixels)
    assert np.array_equal(sit(court, "tint-class", 0, replace(views, pixels=scrambled)), before)
    others = torch.where(stems[:, None, None, None], views.pixels, 255 - views.pixels)
    assert not np.array_equal(sit(court, "tint-class", 0, replace(views, pixels=others)), before)


def test_supports_alone_do_not_see_synthetic_images(court, views):
    made = (torch.arange(len(views.image)) >= views.num_of_supports)[:, None, None, None]
    other = replace(views, pixels=torch.where(made, 255 - views.pixels, views.pixels))
    assert np.array_equal(sit(court, "support-hard", 1, other), sit(court, "support-hard", 1, views))


def test_a_student_learns_from_the_other_folds(court, views):
    long = replace(court, settings=SETTINGS.model_copy(update={"steps_per_epoch": 60}))
    labels = court.data.labels[:9]
    hits = [
        (sit(long, "support-hard", fold, views).argmax(1) == labels[court.held_out(fold)].numpy()).mean()
        for fold in range(3)
    ]
    assert np.mean(hits) >= 0.8


def test_wrong_labels_of_the_teacher_mislead(court, views):
    long = replace(court, settings=SETTINGS.model_copy(update={"steps_per_epoch": 40, "hard_label_share": 0.0}))
    wrong = 20 * torch.eye(3)[(court.data.labels[views.image] + 1) % 3]
    way = replace(WAYS["support-kd"], hard_label_share=0.0)
    everything = torch.ones(len(court.data.labels), dtype=torch.bool)
    found = held_out_logits(long, Candidate(way, 0.5, everything), 0, views, wrong).argmax(1)
    assert (found == court.data.labels[court.held_out(0)].numpy()).mean() < 0.5


def test_features_at_hand_give_the_labels_of_the_teacher_itself(court, views, extractor):
    supports, labels = toy_images(3, 0)
    teacher = adapt(extractor, supports, labels, Teacher(fine_tune_lrs=[0.0]), seed=0)
    known = view_features(extractor, views, "cpu")
    assert torch.equal(label_views(teacher, views, "cpu", known), label_views(teacher, views, "cpu"))
    direct = torch.cat([teacher.logits(to_unit(part)) for part in views.pixels.split(256)])
    torch.testing.assert_close(label_views(teacher, views, "cpu"), direct)
    assert cosine_logits(known, teacher.prototypes, 1.0).abs().max() <= 1 + 1e-5
