"""What a build starts from: sources that are empty, endless, contradictory."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tinyforge.errors import DataError
from tinyforge.recipe import Data
from tinyforge.stages.inputs import gather, read_unlabelled


def draw(folder, names):
    """Another picture for every name."""
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        pixels = np.random.default_rng([len(folder.name), ord(folder.name[-1]), seed]).integers(0, 255, (8, 8, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)


@pytest.fixture
def photos(tmp_path):
    for kind in "ab":
        draw(tmp_path / "photos" / kind, ["0.png", "1.png"])
    return tmp_path / "photos"


def read(photos, **data):
    return gather(Data(path=str(photos), **data), None, 0)


def test_an_empty_path_is_not_the_sample_task():
    with pytest.raises(DataError, match="empty path"):
        read("")


@pytest.mark.parametrize("test", ["", "empty"])
def test_a_test_set_that_was_asked_for_must_hold_images(photos, tmp_path, monkeypatch, test):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"empty path|holds no images"):
        read(photos, test=test)


def test_test_images_that_are_the_supports_are_refused(photos):
    with pytest.raises(DataError, match="every image is a copy of a support"):
        read(photos, test=str(photos))


def test_a_folder_of_nothing_but_copies_is_built_without_test_images(photos):
    for kind in "ab":
        (photos / kind / "1.png").write_bytes((photos / kind / "0.png").read_bytes())
    found = read(photos, shots=1)
    assert found.test is None
    assert "being 2 copies of supports" in found.warnings[0]


def test_a_picture_with_two_labels_is_warned_about(photos):
    assert read(photos).warnings == ()
    Image.open(photos / "a" / "1.png").save(photos / "b" / "copy.bmp")
    assert read(photos).warnings == (
        "the same picture in two classes, one label must be wrong: a/1.png and b/copy.bmp",
    )


def test_notes_count_in_words_that_fit(photos):
    (photos / "a" / "notes.txt").write_text("")
    one, two = read(photos, shots=1).notes, read(photos, shots=2).notes
    assert one[0].startswith("1 support per class")
    assert two[0].startswith("2 supports per class")
    assert one[1] == "1 file ignored: no images by their extension"


def test_shots_are_taken_of_the_supports_beside_a_test_folder_too(photos, tmp_path):
    draw(tmp_path / "test" / "a", ["0.png", "1.png", "5.png", "6.png", "7.png"])
    for same in ("0.png", "1.png"):  # the first pictures of a class named like this are those of the supports
        (tmp_path / "test" / "a" / same).unlink()
    found = read(photos, shots=1, test=str(tmp_path / "test"))
    assert (found.support.counts(), len(found.test)) == ({"a": 1, "b": 1}, 3)
    assert "1 support per class by seed 0, 2 others not used" in found.notes[0]


def test_classes_that_are_not_those_of_the_sample_task(photos):
    with pytest.raises(DataError, match=r"'a' is not among the classes(?s:.)*no --data was given"):
        gather(Data(test=str(photos)), None, 0)


class TestUnlabelled:
    def test_never_holds_a_test_image(self, photos, tmp_path):
        draw(tmp_path / "further", ["8.png", "9.png"])
        for name in ("0.png", "1.png"):
            Image.open(photos / "a" / name).save(tmp_path / "further" / f"copy-{name[0]}.bmp")
        for kind in "ab":
            draw(tmp_path / "supports" / kind, ["0.png", "1.png", "2.png"])
            for same in ("0.png", "1.png"):
                (tmp_path / "supports" / kind / same).unlink()
        found = gather(Data(path=str(tmp_path / "supports"), test=str(photos)), str(tmp_path / "further"), 0)
        assert len(found.unlabelled) == 2
        assert "left out of distill.unlabelled: 2 copies of test images" in found.warnings

    def test_never_holds_a_support(self, photos):
        found = gather(Data(path=str(photos)), str(photos / "a"), 0)
        assert (len(found.unlabelled), found.warnings) == (0, ())
        assert "left out of distill.unlabelled: 2 copies of supports" in found.notes

    def test_needs_no_room_for_what_is_not_asked_for(self, photos, monkeypatch):
        monkeypatch.setattr("tinyforge.images._RESIDENT_BYTES", 0)
        found = read_unlabelled(str(photos), 10_000)
        assert [item.pixels for item in found.items] == [None] * len(found)
        assert found.rgb[0].shape[2] == 3

    def test_is_every_picture_once(self, photos):
        (photos / "again.png").write_bytes((photos / "a" / "0.png").read_bytes())
        assert len(read_unlabelled(str(photos), 10_000)) == 4

    @pytest.mark.parametrize("folder", ["", "gone"])
    def test_needs_a_folder(self, folder, photos, monkeypatch):
        monkeypatch.chdir(photos)
        with pytest.raises(DataError, match=r"no images there|gone: is no folder"):
            read_unlabelled(folder, 10_000)

    def test_what_never_ends_is_not_read(self, photos):
        os.mkfifo(photos / "x.png")
        (photos / "y.png").symlink_to("/dev/zero")
        (photos / "a" / "loop").symlink_to("..")
        with pytest.raises(DataError) as caught:
            read_unlabelled(str(photos), 10_000)
        first, *told = str(caught.value).splitlines()
        assert first == f"{photos}: 3 problems"
        assert ["regular file" in line for line in told] == [False, True, True]


@pytest.mark.parametrize(
    ("student", "teacher", "short_side", "count", "expected"),
    [
        (32, 64, 84, 500, 64),  # the teacher's
        (32, 224, 84, 500, 80),  # as much as the photos have
        (32, 64, 32, 500, 32),  # photos of the student's size
        (64, 48, 500, 500, 64),  # a teacher that sees less than the student
        (32, 224, 500, 10_000, 189),  # as much as may be kept in memory
        (32, 224, 500, 10_000_000, 32),
    ],
)
def test_a_teacher_labels_as_many_pixels_as_there_are(student, teacher, short_side, count, expected):
    from tinyforge.images import ImageSet, Item
    from tinyforge.stages.inputs import view_size

    support = ImageSet(("a",), (Item("a/0", 0, "", np.zeros((short_side, 900, 3), np.uint8)),))
    assert view_size(student, teacher, support, count) == expected


@pytest.mark.parametrize(("teacher_size", "taught"), [(32, 32), (224, 48), (16, 16), (None, 16)])
def test_students_that_a_teacher_labels_learn_from_images_of_its_size(teacher_size, taught):
    from tinyforge.device.spec import InputSpec
    from tinyforge.distill.batches import methods
    from tinyforge.images import NO_IMAGES, ImageSet, Item
    from tinyforge.recipe import Distill
    from tinyforge.stages.distill import Classroom

    wanted = Distill(input_size=16)
    support = ImageSet(("a",), (Item("a/0", 0, "", np.zeros((50, 60, 3), np.uint8)),))
    inputs = SimpleNamespace(support=support, unlabelled=NO_IMAGES)
    road = SimpleNamespace(recipe=SimpleNamespace(distill=wanted), inputs=inputs)
    extractor = SimpleNamespace(spec=InputSpec((teacher_size or 16,) * 2))
    teacher = None if teacher_size is None else SimpleNamespace(extractor=extractor)
    room = Classroom(road, teacher, [], np.zeros(0, int))
    sizes = {method.name: room.data_of(method).pixels.shape[-1] for method in methods(wanted)}
    assert sizes == {"support-hard": 16, "tint-class": 16, "support-kd": taught, "tint-teacher": taught}
