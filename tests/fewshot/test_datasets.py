"""Layouts of the benchmarks, built in small; the class lists that ship."""

import pytest

from tinyforge.errors import DataError
from tinyforge.fewshot.datasets import find_classes, read_classes, read_splits, split_classes


def touch(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


@pytest.mark.parametrize(
    ("benchmark", "sizes"), [("cifar-fs", (64, 16, 20)), ("mini-imagenet", (64, 16, 20)), ("cub", (100, 50, 50))]
)
def test_the_shipped_splits_are_disjoint_and_complete(benchmark, sizes):
    splits = [split_classes(benchmark, split, None) for split in ("train", "val", "test")]
    assert tuple(map(len, splits)) == sizes
    assert len({name for names in splits for name in names}) == sum(sizes)


def test_cifar_fs_joins_the_train_and_test_folders(tmp_path):
    touch(tmp_path, "train/apple/a_1.png", "test/apple/a_2.png", "train/apple/notes.txt", "train/.hidden/x.png")
    assert find_classes(tmp_path, "cifar-fs") == {"apple": ("test/apple/a_2.png", "train/apple/a_1.png")}


def test_mini_imagenet_joins_whatever_tree_there_is(tmp_path):
    touch(tmp_path, "train/n01532829/1.jpg", "val/n01532829/2.JPEG", "deep/er/n01558993/3.jpg")
    found = find_classes(tmp_path, "mini-imagenet")
    assert {name: len(files) for name, files in found.items()} == {"n01532829": 2, "n01558993": 1}


@pytest.mark.parametrize("below", ["", "CUB_200_2011/images/"])
def test_cub_goes_by_the_number_of_the_folder(tmp_path, below):
    numbers = [f"{number:03d}" for number in range(1, 201)]
    touch(tmp_path, *(f"{below}{number}.Bird_{number}/x.jpg" for number in numbers), "segmentations/mask.png")
    test = read_classes(tmp_path, "cub", "test")
    assert list(test)[:3] == ["004", "008", "012"]
    assert test["004"] == (f"{below}004.Bird_004/x.jpg",)


def test_a_folder_is_read_by_its_outermost_folders(tmp_path):
    touch(tmp_path, "cup/kitchen/1.jpg", "cup/2.jpg", "train/plate/3.jpg", "test/plate/4.jpg", "stray.jpg")
    assert {name: len(files) for name, files in find_classes(tmp_path, "folder").items()} == {"cup": 2, "plate": 2}
    assert list(read_classes(tmp_path, "folder", "test")) == ["cup", "plate"]


def test_own_class_lists(tmp_path):
    touch(tmp_path / "data", *(f"{name}/1.jpg" for name in "abcd"))
    lists = tmp_path / "splits.txt"
    lists.write_text("# mine\n[train]\na\nb\n\n[test]\nc\n")
    assert list(read_classes(tmp_path / "data", "folder", "test", lists)) == ["c"]
    assert list(read_classes(tmp_path / "data", "folder", "train", lists)) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n[test]\n", "before any"),
        ("[train]\na\n[test]\na\n", "more than once: a"),
        ("[train]\na\n", "unknown split"),
    ],
)
def test_faulty_class_lists_are_refused(tmp_path, text, message):
    (tmp_path / "splits.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        split_classes("folder", "test", tmp_path / "splits.txt")


def test_an_unreadable_class_list_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_splits(tmp_path / "none.txt")


def test_missing_classes_are_named(tmp_path):
    touch(tmp_path, "train/baby/1.png", "train/bed/1.png")
    with pytest.raises(DataError, match=r"18 of the 20 classes of cifar-fs's 'test' split are missing: bicycle"):
        read_classes(tmp_path, "cifar-fs", "test")


@pytest.mark.parametrize(
    ("make", "benchmark", "split", "message"),
    [
        ((), "cifar-fs", "test", "no class folders"),
        (("a/1.jpg",), "folder", "train", "no 'train' split of its own"),
        (("a/1.jpg",), "cifar", "test", "did you mean 'cifar-fs'"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, make, benchmark, split, message):
    with pytest.raises(DataError, match=message):
        read_classes(touch(tmp_path, *make), benchmark, split)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_classes(tmp_path / "none", "folder")
