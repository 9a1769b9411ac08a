"""Supports and test images of a set: K shots, or a stratified share."""

import pytest

from tinyforge.splits import holdout_split, k_shot_split

from .test_images import fault_lines, in_memory


@pytest.mark.parametrize("shots", [1, 3])
def test_k_shots_of_every_class(shots):
    images = in_memory({"a": 4, "b": 7})
    support, test = k_shot_split(images, shots, 0)
    assert support.counts() == {"a": shots, "b": shots}
    assert sorted(support.names + test.names) == sorted(images.names)


def test_k_shots_follow_the_seed():
    images = in_memory({"a": 30, "b": 30})
    chosen = {k_shot_split(images, 5, seed)[0].names for seed in range(5)}
    assert len(chosen) == 5
    assert k_shot_split(images, 5, 3)[0].names == k_shot_split(images, 5, 3)[0].names


def test_k_shots_of_a_class_do_not_depend_on_other_classes():
    with_more = k_shot_split(in_memory({"a": 9, "b": 9, "c": 9}), 2, 0)[0].names
    assert set(k_shot_split(in_memory({"a": 9, "b": 9}), 2, 0)[0].names) <= set(with_more)


def test_more_shots_contain_fewer_shots():
    images = in_memory({"a": 9, "b": 9})
    assert set(k_shot_split(images, 2, 0)[0].names) <= set(k_shot_split(images, 5, 0)[0].names)


def test_all_images_as_supports_leave_no_test_set():
    assert k_shot_split(in_memory({"a": 2, "b": 2}), 2, 0)[1] is None


def test_every_class_with_too_few_is_named():
    lines = fault_lines(k_shot_split, in_memory({"a": 1, "b": 5, "c": 2}), 3, 0)
    assert [line.strip() for line in lines[1:]] == [
        "class 'a' has 1 image, 3 are needed",
        "class 'c' has 2 images, 3 are needed",
    ]


def test_holdout_is_stratified():
    images = in_memory({"a": 50, "b": 100})
    support, test, reason = holdout_split(images, 0.2, 10, 0)
    assert test.counts() == {"a": 10, "b": 20}
    assert sorted(support.names + test.names) == sorted(images.names)
    assert "30 of 150" in reason


def test_holdout_needs_enough_images_in_every_class():
    images = in_memory({"a": 49, "b": 100})
    support, test, reason = holdout_split(images, 0.2, 10, 0)
    assert (len(support), test) == (149, None)
    assert "class 'a' is 9, fewer than 10" in reason


def test_holdout_counts_are_exact():
    assert holdout_split(in_memory({"a": 100, "b": 100}), 0.29, 1, 0)[1].counts() == {"a": 29, "b": 29}
