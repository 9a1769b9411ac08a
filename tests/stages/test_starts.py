"""`pretrain photos --student`: starting weights from the pool's training classes."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tinyforge.cli import program
from tinyforge.errors import RecipeError
from tinyforge.images import ImageSet, Item
from tinyforge.loading import load_recipe
from tinyforge.recipe import Distill
from tinyforge.stages.budget.entrants import nets_of
from tinyforge.stages.inputs import Inputs
from tinyforge.stages.starts import start_folder, start_for


@pytest.fixture
def photos(tmp_path):
    """Two classes to train on; a beetle, which is for validation; a lion, which is excluded."""
    rng = np.random.default_rng(0)
    for name in ("apple", "orange", "beetle", "lion"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(4):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def run(*arguments):
    return CliRunner().invoke(program, ["pretrain", *map(str, arguments)])


def test_weights_of_another_student_are_refused_at_once_and_left_out_by_a_race(tmp_path):
    (tmp_path / "start.json").write_text('{"student": "conv4"}')
    wanted = Distill(student="resnet12", start=str(tmp_path))
    with pytest.raises(RecipeError, match="has starting weights of conv4, but the student is resnet12"):
        start_folder(wanted)
    own = Distill(student="conv4", start=str(tmp_path))
    assert start_folder(own) == tmp_path
    assert [start_for(student, own) for student in ("conv4", "resnet12")] == [str(tmp_path), "random"]
    assert start_for("resnet12", Distill(start="photos")) == "photos"
    words = [f'distill.start="{tmp_path}"', 'budget.students=["conv4", "resnet12"]']
    support = ImageSet(("a", "b"), tuple(Item(str(i), i, str(i), np.zeros((48, 48, 3), np.uint8)) for i in range(2)))
    (tmp_path / "start.json").write_text('{"student": "conv4", "input": {"size": [64, 64]}}')
    assert [str(net) for net in nets_of(load_recipe("smoke", words), Inputs(support, None))] == [
        "conv4 64 px", "resnet12 48 px",
    ]  # fmt: skip


def test_only_training_classes_are_seen_and_a_student_can_start(photos, tmp_path):
    from tinyforge.distill.start import begin, load_start
    from tinyforge.distill.students import build_student

    out = tmp_path / "out"
    done = run("photos", "--data", photos, "--out", out, "--student", "conv4", "--epochs", 2, "--size", 16)
    assert done.exit_code == 0, done.output
    about = json.loads((out / "students" / "conv4" / "start.json").read_text())
    assert about["classes"] == ["apple", "orange"]
    assert (about["images"], about["settings"]["epochs"], about["input"]["size"]) == (8, 2, [16, 16])
    start = load_start(out / "students" / "conv4", "conv4")
    student = begin(build_student("conv4", 5, input_size=32), start)  # the body fits any size
    assert student.head.out_features == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("glyphs", "--student", "conv4"), "--student is for photos"),
        (("photos", "--student", "conv4", "--part", "unet"), "leave them out with --student"),
        (("photos", "--student", "conv4", "--from", "models"), "leave them out with --student"),
        (("photos", "--student", "conv4", "--minutes", 5), "leave them out with --student"),
        (("photos", "--student", "conv4", "--fonts", "fonts"), "--fonts is for glyphs"),
        (("photos", "--fonts", "fonts"), "--fonts is for glyphs"),
        (("glyphs", "--every-class"), "--every-class is for photos"),
        (("photos", "--epochs", 12), "are of --student"),
        (("photos", "--size", 32), "are of --student"),
        (("photos", "--student", "conv4"), "photos need --data"),
        (("photos", "--student", "conv5"), "did you mean 'conv4'"),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments, message, tmp_path, photos):
    given = ("--data", photos) if "conv5" in arguments else ()
    refused = run(*arguments, *given, "--out", tmp_path / "out")
    assert refused.exit_code == 2, refused.output
    assert message in refused.output


def test_a_pool_of_other_data_is_not_taken_for_the_data_given(photos, tmp_path):
    given = ("photos", "--out", tmp_path / "out", "--student", "conv4", "--epochs", 1, "--size", 16)
    first = run(*given, "--data", photos)
    assert first.exit_code == 0, first.output
    moved = photos.rename(tmp_path / "moved")
    assert run(*given, "--data", moved).exit_code == 0, "the same files elsewhere are the same data"
    assert run(*given).exit_code == 0, "without --data it goes on"
    (moved / "apple" / "3.png").unlink()
    refused = run(*given, "--data", moved)
    assert refused.exit_code == 2, refused.output
    assert "made from other files than those given now" in refused.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("glyphs", "--fonts", "/nope"), "no fonts below /nope"),
        (("photos", "--data", "PHOTOS", "--device", "nope"), "--device nope: is no device"),
        (("photos", "--data", "PHOTOS", "--device", "nope", "--student", "conv4"), "--device nope: is no device"),
        (("glyphs", "--device", "meta"), "only cpu and cuda"),
        (("glyphs", "--out", "/dev/null"), "/dev/null is not a folder"),
        (("photos", "--data", "PHOTOS", "--out", "/dev/null"), "/dev/null is not a folder"),
        (("photos", "--data", "PHOTOS", "--out", "/dev/null/x", "--student", "conv4"), "/dev/null is not a folder"),
        (("glyphs", "--data", "/nope"), "/nope: no strokes_"),
    ],
)
def test_what_is_no_font_device_or_folder_is_refused_at_once(arguments, message, tmp_path, photos):
    place = () if "--out" in arguments else ("--out", tmp_path / "out")
    refused = run(*(photos if one == "PHOTOS" else one for one in arguments), *place)
    assert refused.exit_code == 2, refused.output
    assert message in refused.output
    assert not (tmp_path / "out").exists()


def test_the_recipe_says_where_a_student_starts(photos, tmp_path):
    from tinyforge.errors import RecipeError
    from tinyforge.recipe import Distill
    from tinyforge.stages.starts import shipped_start, start_fingerprint, start_of

    assert start_of(Distill()) is None
    shipped = start_of(Distill(start="photos"))
    assert shipped.fingerprint == start_fingerprint(Distill(start="photos"))
    assert start_of(Distill(start="photos", student="resnet12")) is None, "none ship for it"
    assert start_of(Distill(start=str(shipped_start("conv4")))).fingerprint == shipped.fingerprint
    with pytest.raises(RecipeError, match="no starting weights there"):
        start_of(Distill(start=str(tmp_path)))
    lcnet = {"student": "timm:lcnet_050", "pretrained": True}
    assert start_of(Distill(start="photos", **lcnet)) is None, "timm's weights, which the recipe asks for"
    with pytest.raises(RecipeError, match="two beginnings"):
        start_of(Distill(start=str(shipped_start("timm:lcnet_050")), **lcnet))


@pytest.mark.parametrize(("trained_at", "short_side", "expected"), [(48, 32, 48), (48, 64, 64), (16, 20, 32)])
def test_a_student_sees_no_fewer_pixels_than_its_starting_weights_did(tmp_path, trained_at, short_side, expected):
    from tinyforge.images import ImageSet, Item
    from tinyforge.recipe import Distill
    from tinyforge.stages.inputs import input_size

    (tmp_path / "start.json").write_text(json.dumps({"student": "conv4", "input": {"size": [trained_at] * 2}}))
    support = ImageSet(("a",), (Item("a/0", 0, "", np.zeros((short_side, 90, 3), np.uint8)),))
    assert input_size(Distill(start=str(tmp_path)), support) == expected
    assert input_size(Distill(start=str(tmp_path), input_size=40), support) == 40, "the recipe decides"
