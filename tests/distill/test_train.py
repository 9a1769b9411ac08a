import itertools

import numpy as np
import pytest
import torch

from tinyforge.device.spec import InputSpec
from tinyforge.distill import batches, prototypes, train
from tinyforge.distill.batches import Method, batch_indices, deal, generator_for, methods, num_distinct, training_set
from tinyforge.distill.checkpoint import CHECKPOINT
from tinyforge.distill.losses import UNLABELLED
from tinyforge.distill.pixels import pack
from tinyforge.distill.start import Start
from tinyforge.distill.teacher import adapt
from tinyforge.distill.train import average_decay, learning_rate, predict_logits, seeded_student, train_student
from tinyforge.errors import DataError, RecipeError
from tinyforge.recipe import Distill, Teacher

from .conftest import SPEC, toy_images

SHORT = Distill(input_size=16, epochs=3, steps_per_epoch=3, batch_size=12, augment="light", dtype="float32")
METHODS = methods(SHORT)


class Stop(Exception):
    pass


@pytest.fixture
def teacher(extractor):
    return adapt(extractor, *toy_images(3, 0), Teacher(fine_tune_lrs=[0.01], fine_tune_steps=20), seed=0)


def toy_set(unlabelled=True):
    supports, labels = toy_images(2, 0)
    synthetic, synthetic_labels = toy_images(4, 1)
    more = pack(toy_images(1, 2)[0], SPEC) if unlabelled else None
    return training_set(pack(supports, SPEC), labels, pack(synthetic, SPEC), synthetic_labels, more)


def run(method, settings=SHORT, *, seed=0, teacher=None, data=None, **options):
    student = seeded_student(settings, 3, 16, seed)
    return train_student(student, SPEC, data or toy_set(), method, settings, seed=seed, teacher=teacher, **options)


def same_weights(a, b):
    a, b = a.student.state_dict(), b.student.state_dict()
    return all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(method, teacher):
    first = run(method, teacher=teacher)
    assert same_weights(first, run(method, teacher=teacher))
    assert not same_weights(first, run(method, seed=1, teacher=teacher))


@pytest.mark.parametrize("stop_at", [3, 7])
def test_an_interrupted_run_ends_in_the_same_weights(stop_at, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)  # after every step
    method = METHODS[3]
    whole = run(method, teacher=teacher)

    def interrupt(step, num_steps):
        if step == stop_at:
            raise Stop

    with pytest.raises(Stop):
        run(method, teacher=teacher, checkpoint=tmp_path, progress=interrupt)
    assert (tmp_path / CHECKPOINT).is_file()
    steps = []
    continued = run(method, teacher=teacher, checkpoint=tmp_path, progress=lambda step, _: steps.append(step))
    assert steps[0] == stop_at + 1, "it must continue, not start again"
    assert same_weights(whole, continued)
    assert continued.history == whole.history


def test_batches_repeat_and_the_teacher_labels_each_once(teacher, monkeypatch):
    asked, embed = [], prototypes.embed
    monkeypatch.setattr(prototypes, "embed", lambda extractor, x: asked.append(x.clone()) or embed(extractor, x))
    monkeypatch.setattr(batches, "VIEWS_EACH", 1)  # of 6 supports and 15 others, 6 in a batch each
    run(METHODS[3], SHORT.model_copy(update={"distinct_batches": 1}), teacher=teacher)
    assert len(asked) == 3
    run(METHODS[3], SHORT, teacher=teacher)
    assert len(asked) == 3 + SHORT.epochs * SHORT.steps_per_epoch
    assert all(torch.equal(first, second) for first, second in zip(asked[:3], asked[3:], strict=False))
    assert not torch.equal(asked[3], asked[6])


@pytest.mark.parametrize(("least", "number"), [(0, 0), (50, 50), (3, 13)])
def test_images_are_seen_often_enough_before_batches_repeat(least, number):
    settings, data = SHORT.model_copy(update={"distinct_batches": least}), toy_set()
    assert num_distinct(data, settings) == number
    drawn = [batch_indices(data, True, settings, generator_for(0, "batch", i)) for i in range(number)]
    seen = torch.bincount(torch.cat(drawn), minlength=21) if drawn else torch.zeros(21)
    assert number == 0 or min(seen[:6].float().mean(), seen[6:].float().mean()) >= batches.VIEWS_EACH


def test_an_interrupted_run_of_repeated_batches_ends_in_the_same_weights(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(batches, "VIEWS_EACH", 1)
    settings = SHORT.model_copy(update={"distinct_batches": 4})

    def interrupt(step, num_steps):
        if step == 6:
            raise Stop

    with pytest.raises(Stop):
        run(METHODS[3], settings, teacher=teacher, checkpoint=tmp_path, progress=interrupt)
    continued = run(METHODS[3], settings, teacher=teacher, checkpoint=tmp_path)
    assert same_weights(run(METHODS[3], settings, teacher=teacher), continued)


def test_a_checkpoint_of_another_run_is_not_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    run(METHODS[0], seed=1, checkpoint=tmp_path)
    steps = []
    other = run(METHODS[0], checkpoint=tmp_path, progress=lambda step, _: steps.append(step))
    assert steps[0] == 1
    assert same_weights(other, run(METHODS[0]))


@pytest.mark.parametrize("name", ["support-hard", "tint-class", "tint-teacher"])
def test_a_separable_task_is_learned(name, teacher):
    method = {one.name: one for one in METHODS}[name]
    settings = SHORT.model_copy(update={"epochs": 4, "steps_per_epoch": 10})
    result = run(method, settings, teacher=teacher)
    images, labels = toy_images(10, 9)
    accuracy = (predict_logits(result.student, images, SPEC).argmax(1) == labels).mean()
    assert accuracy >= 0.9
    assert len(result.history) == 4
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_the_teacher_reaches_the_student_through_soft_labels_alone(teacher):
    soft_only = Method("soft", True, "teacher", 0.0)
    data = toy_set()
    nobody_knows = training_set(data.pixels[:6], [UNLABELLED] * 6, data.pixels[6:], [UNLABELLED] * 15)
    assert same_weights(run(soft_only, teacher=teacher, data=data), run(soft_only, teacher=teacher, data=nobody_knows))


def test_bfloat16_trains_as_well():
    settings = SHORT.model_copy(update={"epochs": 4, "steps_per_epoch": 10, "dtype": "bfloat16"})
    result = run(METHODS[0], settings)
    images, labels = toy_images(10, 9)
    assert (predict_logits(result.student, images, SPEC).argmax(1) == labels).mean() >= 0.9
    assert all(p.dtype == torch.float32 for p in result.student.parameters())


def test_a_training_that_diverges_is_told_as_such():
    with pytest.raises(RecipeError, match=r"diverged in epoch 1: .* smaller distill\.lr"):
        run(METHODS[0], SHORT.model_copy(update={"lr": 1e30, "dtype": "float32"}))


def test_without_an_average_the_student_is_the_last_step_s():
    settings = SHORT.model_copy(update={"ema_decay": 0.0})
    assert not same_weights(run(METHODS[0], settings), run(METHODS[0]))


def test_supports_alone_ignore_the_synthetic_images():
    supports = toy_set()
    alone = training_set(supports.pixels[:6], supports.labels[:6])
    assert same_weights(run(METHODS[0]), run(METHODS[0], data=alone))
    assert not same_weights(run(METHODS[2]), run(METHODS[2], data=alone))


def test_a_method_with_soft_labels_needs_a_teacher():
    with pytest.raises(DataError, match="needs a teacher"):
        run(METHODS[1])


def test_predictions_go_through_the_device_s_preprocessing(monkeypatch):
    from tinyforge.device.preprocess import prepare

    student = seeded_student(SHORT, 3, 16, 0).eval()
    images = [np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), dtype=np.uint8) for i in range(3)]
    one_by_one = [student(torch.from_numpy(prepare(rgb, SPEC))).detach().numpy()[0] for rgb in images]
    np.testing.assert_allclose(predict_logits(student, images, SPEC), one_by_one, atol=1e-5)
    monkeypatch.setattr("tinyforge.distill.pixels.CPU_CHUNK", 2)
    np.testing.assert_allclose(predict_logits(student, images, SPEC), one_by_one, atol=1e-5)
    assert all(value.is_contiguous() for value in student.parameters()), "as it was, for whoever exports it"
    with pytest.raises(DataError):
        predict_logits(student, [], SPEC)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    run(METHODS[0])
    assert torch.equal(torch.get_rng_state(), before)


# --- pure parts


def test_the_learning_rate_rises_then_falls():
    rates = [learning_rate(step, 100, 0.4) for step in range(100)]
    assert rates[0] == pytest.approx(0.4 / 5)
    assert max(rates) == rates[4] == rates[5] == pytest.approx(0.4)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.001


def test_the_average_forgets_the_start():
    assert average_decay(0, 0.98) == pytest.approx(0.1)
    assert average_decay(10_000, 0.98) == 0.98
    assert average_decay(50, 0.0) == 0.0


@pytest.mark.parametrize("count", [0, 3, 7, 20])
def test_dealing_is_fair(count):
    dealt = deal(count, 5, 12, generator_for("a")).tolist()
    assert len(dealt) == count
    times = [dealt.count(index) for index in range(5, 12)]
    assert sum(times) == count
    assert max(times) - min(times) <= 1


@pytest.mark.parametrize(("share", "from_supports"), [(0.0, 0), (0.25, 3), (1.0, 12)])
def test_a_batch_holds_the_support_share_asked_for(share, from_supports):
    data, settings = toy_set(), SHORT.model_copy(update={"support_share": share})
    chosen = batch_indices(data, True, settings, generator_for(0))
    assert len(chosen) == 12
    assert int((chosen < data.num_supports).sum()) == from_supports
    assert int((batch_indices(data, False, settings, generator_for(0)) < data.num_supports).sum()) == 12


def test_the_four_methods_differ_only_in_images_and_labels():
    table = {m.name: (m.use_synthetic, m.labels, m.hard_label_share) for m in METHODS}
    assert table == {
        "support-hard": (False, "class", 1.0),
        "support-kd": (False, "teacher", 0.5),
        "tint-class": (True, "class", 1.0),
        "tint-teacher": (True, "teacher", 0.5),
    }


def test_a_training_set_must_add_up():
    supports, labels = toy_images(1, 0)
    with pytest.raises(DataError, match="no support"):
        training_set(pack([], SPEC), [])
    with pytest.raises(DataError, match="2 labels"):
        training_set(pack(supports, SPEC), labels[:2])
    data = toy_set()
    assert data.num_supports == 6
    assert data.labels[-3:].tolist() == [UNLABELLED] * 3
    assert len(data.labelled().labels) == 18


@pytest.mark.parametrize("start", [False, True])
def test_the_teacher_sees_larger_views_whole_and_the_student_sees_them_shrunk(teacher, start, monkeypatch):
    supports, labels = toy_images(2, 0)
    large = training_set(pack(supports, InputSpec(size=(24, 24))), labels)
    labelled, seen = [], []
    whole = prototypes.Teacher.logits
    monkeypatch.setattr(prototypes.Teacher, "logits", lambda self, x: labelled.append(tuple(x.shape)) or whole(self, x))
    student = seeded_student(SHORT, 3, 16, 0)
    begun = Start("conv4", seeded_student(SHORT, 3, 16, 1).state_dict(), "") if start else None
    student.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[1:])))
    train_student(student, SPEC, large, METHODS[1], SHORT, seed=0, teacher=teacher, start=begun)
    assert set(labelled) == {(12, 3, 24, 24)}
    assert set(seen) == {(3, 16, 16)}


@pytest.mark.parametrize("start", [False, True])
def test_long_gradients_are_shortened_with_starting_weights_only(start, monkeypatch):
    """Seen with photos: under a teacher sure of itself the first epochs spoiled the starting weights."""
    begun = Start("conv4", seeded_student(SHORT, 3, 16, 1).state_dict(), "") if start else None
    settings = SHORT.model_copy(update={"weight_decay": 0.0})

    def trained(longest):
        monkeypatch.setattr(train, "LONGEST_GRADIENT", longest)
        student = seeded_student(SHORT, 3, 16, 0)
        return train_student(student, SPEC, toy_set(), METHODS[0], settings, seed=0, start=begun)

    usual, held = trained(1e6), trained(1e-9)
    assert same_weights(usual, trained(1e9)), "shorter ones are left alone"
    assert same_weights(usual, held) == (not start)
    if start:
        body = held.student.state_dict()
        assert all(torch.allclose(body[name], value) for name, value in begun.weights.items() if "head" not in name)
