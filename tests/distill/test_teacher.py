import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from tinyforge.distill.extractor import as_extractor, load_teacher, timm_spec
from tinyforge.distill.prototypes import (
    Teacher,
    agreement,
    cosine_logits,
    features,
    load_adapted,
    prototypes,
    remembering,
    save_teacher,
)
from tinyforge.distill.teacher import adapt, choose_lr, fold_of
from tinyforge.errors import DataError, MissingError, RecipeError
from tinyforge.recipe import Teacher as Settings

from .conftest import SPEC, TinyExtractor, toy_images

ONLY_PROTOTYPES = Settings(fine_tune_lrs=[0.0])
QUICK = Settings(fine_tune_lrs=[0.0, 0.01], fine_tune_steps=5, folds=2)


def test_prototypes_and_logits_by_hand():
    feature = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    prototype = prototypes(feature, torch.tensor([1, 0, 1]), 2)
    torch.testing.assert_close(prototype, torch.tensor([[0.0, 1.0], [0.8, 0.4]]))
    answer = cosine_logits(torch.tensor([[2.0, 0.0]]), prototype, 10.0)
    torch.testing.assert_close(answer, torch.tensor([[0.0, 8 / 0.8**0.5]]))


def test_adapt_without_fine_tuning_is_prototypes(extractor):
    images, labels = toy_images(3, 0)
    teacher = adapt(extractor, images, labels, ONLY_PROTOTYPES, seed=0)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        feature = features(extractor.module, x, SPEC)
    by_hand = torch.stack([feature[torch.from_numpy(labels == k)].mean(0) for k in range(3)])
    torch.testing.assert_close(teacher.prototypes, by_hand)
    expected = 10 * F.normalize(feature, dim=1) @ F.normalize(by_hand, dim=1).T
    torch.testing.assert_close(teacher.logits(x), expected)
    np.testing.assert_allclose(teacher.predict_logits(images), expected.numpy(), atol=1e-5)
    assert teacher.lr == 0


def test_fine_tuning_fits_the_supports_and_leaves_the_extractor_alone(extractor):
    images, labels = toy_images(4, 0)
    before = {k: v.clone() for k, v in extractor.module.state_dict().items()}
    plain = adapt(extractor, images, labels, ONLY_PROTOTYPES, seed=0)
    tuned = adapt(extractor, images, labels, Settings(fine_tune_lrs=[0.01], fine_tune_steps=20), seed=0)
    truth = torch.from_numpy(labels)
    loss = [F.cross_entropy(torch.from_numpy(t.predict_logits(images)), truth) for t in (plain, tuned)]
    assert loss[1] < loss[0] / 10
    assert tuned.lr == 0.01
    after = extractor.module.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    statistics = tuned.extractor.module.state_dict()["body.1.running_mean"]
    assert torch.equal(statistics, before["body.1.running_mean"]), "batch norm keeps its statistics"


def test_the_search_records_every_lr_and_depends_on_the_seed_alone(extractor):
    images, labels = toy_images(3, 1)
    first, second = (adapt(extractor, images, labels, QUICK, seed=4) for _ in range(2))
    assert first.record == second.record
    assert torch.equal(first.prototypes, second.prototypes)
    assert list(first.record["accuracies"]) == ["0", "0.01"]
    assert (first.record["chosen_by"], first.record["num_held_out"]) == ("2-fold", 9)


def test_with_one_image_per_class_nothing_can_be_held_out(extractor):
    images, labels = toy_images(1, 1)
    teacher = adapt(extractor, images, labels, QUICK, seed=4)
    assert teacher.lr == 0
    assert teacher.record == {"chosen_by": "smallest: one image per class", "num_held_out": 0, "accuracies": {}}


def test_a_class_with_a_single_image_does_not_stop_the_search(extractor):
    images, labels = toy_images(2, 1)
    record = adapt(extractor, images[:-1], labels[:-1], QUICK, seed=4).record
    assert (record["chosen_by"], record["num_held_out"]) == ("leave-one-out", 4)


def test_renaming_the_classes_permutes_the_answers(extractor):
    images, labels = toy_images(2, 3)
    order = np.array([2, 0, 1])
    teacher = adapt(extractor, images, labels, ONLY_PROTOTYPES, seed=0)
    renamed = adapt(extractor, images, order[labels], ONLY_PROTOTYPES, seed=0)
    np.testing.assert_allclose(renamed.predict_logits(images)[:, order], teacher.predict_logits(images), atol=1e-5)


def test_a_class_without_a_support_is_an_error(extractor):
    images, labels = toy_images(2, 0)
    with pytest.raises(DataError, match=r"\[1\]"):
        adapt(extractor, images, np.where(labels == 1, 2, labels), ONLY_PROTOTYPES, seed=0)
    with pytest.raises(DataError, match="0 images"):
        adapt(extractor, [], [], ONLY_PROTOTYPES, seed=0)


def test_folds_hold_out_each_image_once_and_never_a_classs_only_one():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    folds = fold_of(labels, 5)
    assert folds.tolist() == [0, 1, 2, -1, 0, 1]
    for fold in range(3):
        assert set(labels[folds != fold].tolist()) == {0, 1, 2}
    assert fold_of(torch.zeros(40, dtype=torch.int64), 5).bincount().tolist() == [8] * 5
    assert fold_of(torch.tensor([1, 0]), 5).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("hits", "expected"),
    [
        ({0.0: [1, 0, 1, 0], 0.1: [1, 0, 1, 0], 1.0: [0, 0, 0, 0]}, 0.0),  # a tie
        ({0.1: [1, 0, 1, 0], 1.0: [1, 1, 0, 0]}, 0.1),  # a tie without 0
        ({0.0: [1] * 20 + [0] * 20, 0.1: [1] * 21 + [0] * 19}, 0.0),  # better by one image: within one standard error
        ({0.0: [1] * 20 + [0] * 20, 0.1: [1] * 30 + [0] * 10}, 0.1),
        ({0.0: [0, 0, 0, 0], 0.1: [1, 1, 1, 1], 1.0: [1, 1, 1, 1]}, 0.1),
    ],
)
def test_the_lr_chosen(hits, expected):
    assert choose_lr({lr: np.array(values, dtype=bool) for lr, values in hits.items()}) == expected


def test_logits_accept_any_size_and_see_the_same_picture(extractor):
    images, labels = toy_images(3, 0)
    teacher = adapt(extractor, images, labels, ONLY_PROTOTYPES, seed=0)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    large = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(teacher.logits(large).argmax(1), teacher.logits(x).argmax(1))


def test_what_a_teacher_remembers_is_what_it_answers(extractor, monkeypatch):
    teacher = adapt(extractor, *toy_images(3, 2), ONLY_PROTOTYPES, seed=0)
    first, second = (torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    alike, asked, answer = remembering(teacher), [], Teacher.logits
    monkeypatch.setattr(Teacher, "logits", lambda self, x: asked.append(1) or answer(self, x))
    for x in (first, second, first, first.clone(), second):
        torch.testing.assert_close(alike.logits(x), answer(teacher, x), rtol=0, atol=0)
    assert len(asked) == 2
    assert alike.fingerprint == teacher.fingerprint
    assert alike.to("cpu").known is alike.known, "a copy on a device keeps the memory"


def test_fine_tuning_in_bfloat16_ends_near_float32(extractor):
    images, labels = toy_images(4, 0)
    wide, narrow = (
        adapt(extractor, images, labels, Settings(fine_tune_lrs=[0.01], fine_tune_steps=5, dtype=dtype), seed=0)
        for dtype in ("float32", "bfloat16")
    )
    assert wide.fingerprint != narrow.fingerprint
    torch.testing.assert_close(narrow.prototypes, wide.prototypes, rtol=0, atol=0.1)
    assert all(value.dtype == torch.float32 for value in narrow.extractor.module.parameters())


@pytest.mark.parametrize("lrs", [[0.0], [0.01]])
def test_a_saved_teacher_answers_as_before(extractor, tmp_path, lrs):
    images, labels = toy_images(2, 0)
    teacher = adapt(extractor, images, labels, Settings(fine_tune_lrs=lrs, fine_tune_steps=3), seed=0)
    save_teacher(teacher, tmp_path)
    loaded = load_adapted(tmp_path, extractor)
    np.testing.assert_array_equal(loaded.predict_logits(images), teacher.predict_logits(images))
    assert (loaded.lr, loaded.scale, loaded.record) == (teacher.lr, teacher.scale, teacher.record)
    assert loaded.fingerprint == teacher.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher.json", "teacher.safetensors"]


def test_a_saved_teacher_refuses_another_extractor(extractor, tmp_path):
    images, labels = toy_images(2, 0)
    save_teacher(adapt(extractor, images, labels, ONLY_PROTOTYPES, seed=0), tmp_path)
    with pytest.raises(DataError, match="other weights"):
        load_adapted(tmp_path, as_extractor(TinyExtractor(), SPEC, "tiny"))


def test_agreement_keeps_what_the_teacher_believes_and_counts_per_class(extractor):
    images, labels = toy_images(4, 0)
    teacher = adapt(extractor, images, labels, Settings(fine_tune_lrs=[0.01], fine_tune_steps=20), seed=0)
    wrong = labels.copy()
    wrong[0] = 1  # a red bar called green
    result = agreement(teacher, images, wrong, 0.3)
    truth = torch.from_numpy(teacher.predict_logits(images)).softmax(1)
    np.testing.assert_allclose(result.probability, truth.numpy()[np.arange(12), wrong], atol=1e-6)
    assert not result.keep[0]
    assert result.keep[1:].all()
    assert (result.kept, result.total) == ([3, 4, 4], [3, 5, 4])
    assert agreement(teacher, images, wrong, 0.0).keep.all()


def test_a_timm_checkpoint_of_this_machine(tmp_path):
    import timm

    network = timm.create_model("resnet10t", pretrained=False, num_classes=7)
    file = tmp_path / "mine.safetensors"
    save_file(network.state_dict(), file)
    loaded = load_teacher(f"timm:resnet10t@{file}")
    assert loaded.spec == timm_spec(network)
    assert loaded.spec.fit == "crop"
    assert load_teacher(f"timm:resnet10t@{file}").fingerprint == loaded.fingerprint
    x = torch.rand(1, 3, 64, 64)
    network.reset_classifier(0)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(x), network.eval()(x))


def test_an_embedded_folder(tmp_path):
    network = pytest.importorskip("tinyforge.embedded.network")
    config = {"architecture": "timm:resnet10t", "kwargs": {"num_classes": 0}, "input": SPEC.to_json(), "name": "glyphs"}
    module = network.build(config["architecture"], config["kwargs"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    loaded = load_teacher(tmp_path)
    assert (loaded.spec, loaded.name) == (SPEC, "glyphs")
    assert loaded.fingerprint == as_extractor(module, SPEC, "x").fingerprint


def test_sources_that_cannot_be_used_say_why(tmp_path):
    other, pickled = tmp_path / "other.safetensors", tmp_path / "model.pth"
    save_file({"a": torch.zeros(1)}, other)
    pickled.write_bytes(b"x")
    for source, error, reason in [
        (f"timm:resnet10t@{tmp_path / 'none.safetensors'}", MissingError, "no checkpoint"),
        (f"timm:resnet10t@{pickled}", RecipeError, "safetensors"),
        (f"timm:resnet10t@{other}", RecipeError, "missing or unknown"),
        (other, RecipeError, "which network"),
        (tmp_path / "nowhere", RecipeError, "no teacher"),
        ("timm:resnet10tt", RecipeError, "timm:resnet10t"),
    ]:
        with pytest.raises(error, match=reason):
            load_teacher(source)


def test_the_default_teacher_has_its_own_preprocessing():
    import timm

    spec = timm_spec(timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0))
    assert (spec.size, spec.fit, spec.crop_pct, spec.resize) == ((224, 224), "crop", 0.9, "bicubic")
    assert spec.mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.fixture
def teacher_folder(tmp_path):
    from tinyforge.embedded.network import GlyphNet

    kwargs = {"widths": [4, 4, 4], "depth": 1, "embedding_dim": 8}
    save_file(GlyphNet(**kwargs).state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "embedded:GlyphNet", "kwargs": kwargs, "input": {"size": [16, 16]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_truncated_teacher_is_told_as_such(teacher_folder):
    file = teacher_folder / "model.safetensors"
    for count in (len(file.read_bytes()) - 10, 20, 0):
        file.write_bytes(file.read_bytes()[:count])
        with pytest.raises(RecipeError, match="damaged or cut short"):
            load_teacher(teacher_folder)
    file.unlink()
    with pytest.raises(MissingError, match="no checkpoint"):
        load_teacher(teacher_folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{}", "has no 'architecture'"),
        ("[1", "is no JSON"),
        ("7", "is no JSON"),
        ('{"architecture": 3, "input": {"size": [16, 16]}}', "config"),
        ('{"architecture": "embedded:GlyphNet", "kwargs": {"width": 1}, "input": {"size": [16, 16]}}', "width"),
        ('{"architecture": "embedded:GlyphNet", "input": {"size": [16, 16]}}', "size mismatch"),
    ],
)
def test_a_teacher_with_another_config_is_told_as_such(teacher_folder, config, message):
    (teacher_folder / "config.json").write_text(config)
    with pytest.raises(RecipeError, match=message):
        load_teacher(teacher_folder)
