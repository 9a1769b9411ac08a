"""Paired differences from raw answers, of episodes and of a bundle."""

import json

import pytest


def test_episodes_are_compared_each_with_itself(script, tmp_path):
    (tmp_path / "episodes").mkdir()
    for index, (a, b) in enumerate([([0, 0, 1, 1], [0, 1, 1, 1]), ([0, 0, 1, 0], [1, 1, 0, 1])]):
        methods = {"a": {"predicted": a}, "b": {"predicted": b}}
        (tmp_path / "episodes" / f"{index}.json").write_text(json.dumps({"queries": [2, 2], "methods": methods}))
    count, difference, low, high = script("paired").over_episodes(tmp_path, "a", "b")
    assert (count, difference) == (2, pytest.approx((0.25 + 0.5) / 2))
    assert low < difference < high


def test_images_are_compared_each_with_itself(script, tmp_path):
    (tmp_path / "predictions").mkdir()
    for name, predicted in (("a", [0, 1, 1, 0]), ("b", [0, 0, 1, 1])):
        record = {"labels": [0, 1, 1, 1], "predicted": predicted}
        (tmp_path / "predictions" / f"{name}.json").write_text(json.dumps(record))
    count, difference, low, high = script("paired").over_images(tmp_path, "a", "b")
    assert (count, difference) == (4, pytest.approx(0))
    assert low <= difference <= high
