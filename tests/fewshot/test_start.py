"""Starting weights from base classes, and batches that also hold base images."""

import json

import pytest
import torch

from tinyforge.device.spec import InputSpec
from tinyforge.distill.batches import Method, batch_indices, generator_for, training_set
from tinyforge.distill.losses import UNLABELLED
from tinyforge.distill.pixels import standardise, to_unit
from tinyforge.distill.pretraining import train_start
from tinyforge.distill.start import begin, classifier_names, imprint, load_start
from tinyforge.distill.students import build_student
from tinyforge.distill.train import learn, set_out
from tinyforge.errors import DataError, MissingError
from tinyforge.recipe import Distill

SIZE = 16
SETTINGS = Distill(epochs=8, steps_per_epoch=10, batch_size=30, augment="none", ema_decay=0.5, dtype="float32")


def colours(per_class: int = 10) -> tuple[torch.Tensor, list[int]]:
    """Red, green and blue noise: uint8 (n, 3, SIZE, SIZE) and labels."""
    pixels = torch.randint(0, 80, (3 * per_class, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    labels = [i % 3 for i in range(3 * per_class)]
    for row, label in enumerate(labels):
        pixels[row, label] += 150
    return pixels.to(torch.uint8), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("start")
    pixels, labels = colours()
    train_start(pixels, labels, ("red", "green", "blue"), InputSpec((SIZE, SIZE)), SETTINGS, where, seed=0)
    return where


def test_it_learns_the_base_classes_and_tells_how(folder):
    about = json.loads((folder / "start.json").read_text())
    assert about["last"]["accuracy"] > 0.9
    assert (about["classes"], about["images"], about["settings"]["epochs"]) == (["red", "green", "blue"], 30, 8)
    assert not (folder / "checkpoint").exists()


@pytest.mark.parametrize("num_classes", [3, 5])
def test_a_student_takes_the_body_and_keeps_its_own_classifier(folder, num_classes):
    torch.manual_seed(1)
    student = build_student("conv4", num_classes, input_size=SIZE)
    own = student.head.weight.clone()
    start = load_start(folder, "conv4")
    begin(student, start)
    assert torch.equal(student.head.weight, own)
    body = {name: value for name, value in student.state_dict().items() if not name.startswith("head.")}
    assert all(torch.equal(value, start.weights[name]) for name, value in body.items())


def test_an_imprinted_classifier_takes_the_nearest_class_mean():
    torch.manual_seed(0)
    student = build_student("conv4", 3, input_size=SIZE).eval()
    x, labels = torch.randn(9, 3, SIZE, SIZE), torch.tensor([0, 1, 2] * 3)
    with torch.no_grad():
        feature = torch.flatten(student.blocks(x), 1)
        means = torch.stack([feature[labels == label].mean(0) for label in range(3)])
        nearest = torch.cdist(feature, means).argmin(1)
        imprint(student, x, labels)
        logits = student(x)
    assert torch.equal(logits.argmax(1), nearest)
    distances = torch.cdist(feature, means).square()
    spread = (feature - means.mean(0)).square().sum(1).mean()
    expected = -5 / spread * distances  # up to a constant per image
    assert torch.allclose(logits - logits[:, :1], expected - expected[:, :1], atol=1e-3)


def test_a_student_from_a_start_knows_its_classes_before_its_first_step(folder):
    pixels, labels = colours()
    data, spec, start = training_set(pixels[:9], labels[:9]), InputSpec((SIZE, SIZE)), load_start(folder, "conv4")
    student = build_student("conv4", 3, input_size=SIZE)
    run, settings = set_out(student, start, data, spec, SETTINGS, "cpu")
    assert settings.lr == pytest.approx(SETTINGS.lr * SETTINGS.start_lr_share)
    with torch.no_grad():
        answers = student.eval()(standardise(to_unit(pixels), spec)).argmax(1)
    assert answers.tolist() == labels
    before = {name: value.clone() for name, value in student.state_dict().items() if "running" in name}
    learn(run, to_unit(data.pixels), None, data.labels, spec, Method("x", False, "class", 1.0), settings)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in before.items())


def test_a_timm_student_names_its_classifier():
    student = build_student("timm:mobilenetv3_small_050", 3, input_size=32)
    assert classifier_names(student) == ("classifier.",)


def test_other_students_and_missing_folders_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="starting weights of conv4, but the student is resnet12"):
        load_start(folder, "resnet12")
    with pytest.raises(MissingError, match="no starting weights there"):
        load_start(tmp_path, "conv4")
    with pytest.raises(DataError, match="do not fit"):
        begin(build_student("resnet12", 3, input_size=SIZE), load_start(folder, "conv4"))


def share_of_parts(settings: Distill, num_synthetic: int, num_unlabelled: int) -> list[int]:
    """Of one batch: supports, synthetic images, images without a label."""
    blank = torch.zeros((200, 3, 1, 1), dtype=torch.uint8)
    data = training_set(blank[:10], [0] * 10, blank[:num_synthetic], [0] * num_synthetic, blank[:num_unlabelled])
    chosen = batch_indices(data, True, settings, generator_for(0))
    free = data.labels[chosen] == UNLABELLED
    return [int((chosen < 10).sum()), int(((chosen >= 10) & ~free).sum()), int(free.sum())]


def test_images_without_labels_get_their_share_of_a_batch():
    settings = Distill(batch_size=40, support_share=0.5)
    supports, synthetic, free = share_of_parts(settings, 20, 180)
    assert (supports, synthetic + free) == (20, 20)
    assert free > synthetic  # as many as they are
    half = settings.model_copy(update={"unlabelled_share": 0.5})
    assert share_of_parts(half, 20, 180) == [20, 10, 10]
    assert share_of_parts(half, 0, 180) == [20, 0, 20]
    assert share_of_parts(half, 20, 0) == [20, 20, 0]
