from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tinyforge.distill.students import STUDENTS, Conv4, build_student, default_spec
from tinyforge.distill.timm_models import find_weights
from tinyforge.errors import MissingError, RecipeError


def count(module):
    return sum(p.numel() for p in module.parameters())


CASES = [("conv4", size) for size in (8, 15, 32, 48, 84)] + [("resnet12", 8), ("resnet12", 21), ("timm:resnet10t", 32)]


def test_the_cases_below_cover_the_table():
    assert {name for name, _ in CASES} >= set(STUDENTS)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_every_student_builds_and_answers_at_its_size(name, size):
    student = build_student(name, 5, input_size=size).eval()
    with torch.inference_mode():
        answer = student(torch.zeros(2, 3, size, size))
    assert answer.shape == (2, 5)
    assert torch.isfinite(answer).all()
    assert default_spec(name, size).size == (size, size)


def test_conv4_has_the_113_thousand_parameters_of_the_literature():
    student = Conv4(5, 32)
    assert count(student.blocks) == 3 * 64 * 9 + 3 * 64 * 64 * 9 + 4 * 2 * 64 == 112_832
    assert count(student.head) == 256 * 5 + 5
    assert Conv4(5, 84).head.in_features == 1600


@pytest.mark.parametrize("settled", [False, True], ids=["statistics of the batch", "kept statistics"])
@pytest.mark.parametrize("size", [32, 12])
def test_conv4_learns_in_another_order_what_its_layers_say(settled, size):
    torch.manual_seed(0)
    student = Conv4(5, size).double()
    for norm in (one for one in student.modules() if isinstance(one, nn.BatchNorm2d)):
        for values in (norm.weight, norm.bias, norm.running_mean):
            nn.init.uniform_(values, -1, 1)
        norm.train(not settled)
    x, answers = torch.randn(6, 3, size, size, dtype=torch.float64), []
    for blocks in (student.blocks, [nn.Sequential(*block) for block in student.blocks]):
        student.zero_grad()
        features = x
        for block in blocks:
            features = block(features)
        logits = student.head(features.flatten(1))
        logits.square().sum().backward()
        answers.append([logits, *(parameter.grad.clone() for parameter in student.parameters())])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other)
    assert not settled or int(student.blocks[0][1].num_batches_tracked) == 0


def test_resnet12_has_the_parameters_of_the_literature():
    assert 12.4e6 < count(build_student("resnet12", 5, input_size=32)) < 12.5e6


def test_a_transformer_student_is_built_at_the_input_size():
    student = build_student("timm:vit_tiny_patch16_224", 3, input_size=64).eval()
    with torch.inference_mode():
        assert student(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_timm_students_keep_their_own_mean_and_std():
    assert default_spec("conv4", 32).mean == (0.5, 0.5, 0.5)
    assert default_spec("timm:resnet10t", 32).mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("conv5", "conv4"), ("resnet-12", "resnet12"), ("timm:mobilenetv3_smal_050", "timm:mobilenetv3_small_050")],
)
def test_an_unknown_student_names_its_near_misses(name, hint):
    with pytest.raises(RecipeError, match=hint):
        build_student(name, 5, input_size=32)


def test_an_unknown_pretrained_tag_is_an_error():
    with pytest.raises(RecipeError, match="no model"):
        build_student("timm:resnet10t.no_such_tag", 5, input_size=32)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(RecipeError, match="at least"):
        build_student("conv4", 5, input_size=4)
    with pytest.raises(RecipeError, match="pretrained"):
        build_student("conv4", 5, input_size=32, pretrained=True)


def test_pretrained_weights_that_are_not_here_are_missing_not_downloaded(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingError, match="resnet10t"):
        build_student("timm:resnet10t.c3_in1k", 5, input_size=32, pretrained=True, offline=True)


@pytest.mark.parametrize(
    ("status", "words"),
    [(None, "the hub could not be reached: check the connection"), (401, "answers with status 401")],
)
def test_why_the_hub_gives_no_weights_is_told(monkeypatch, status, words):
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def download(*_, **__):
        if status is None:
            raise LocalEntryNotFoundError("no connection")
        fault = HfHubHTTPError.__new__(HfHubHTTPError)  # its arguments are other ones in every version
        fault.response = SimpleNamespace(status_code=status)
        raise fault

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(MissingError, match=words):
        find_weights("resnet10t.c3_in1k", offline=False)
