"""Paired differences from raw answers, of episodes and of a bundle."""

import json

import pytest


def test_episodes_are_compared_each_with_itself(script, tmp_path):
    write_episodes(tmp_path, [([0, 0, 1, 1], [0, 1, 1, 1]), ([0, 0, 1, 0], [1, 1, 0, 1])])
    paired = script("paired")
    count, difference, low, high = paired.over_episodes(*(paired.episode_scores(tmp_path)[name] for name in "ab"))
    assert (count, difference) == (2, pytest.approx((0.25 + 0.5) / 2))
    assert low < difference < high


def test_a_method_of_fewer_episodes_is_compared_on_its_own(script, tmp_path):
    write_episodes(tmp_path, [([0, 0, 1, 1], [0, 1, 1, 1]), ([0, 0, 1, 0], [0, 1, 0, 1]), ([1, 1, 0, 0], None)])
    paired = script("paired")
    count, difference, *_ = paired.over_episodes(*(paired.episode_scores(tmp_path)[name] for name in "ab"))
    assert (count, difference) == (2, pytest.approx(0.25))
    rows = paired.table(tmp_path, ["a"]).splitlines()
    assert rows[0] == "| method | episodes | accuracy | minus `a` |"
    assert rows[2].startswith("| `a` | 3 | 58.3 [")
    assert rows[3].startswith("| `b` | 2 | 62.5 [")
    assert "| -25.0 [" in rows[3]


def write_episodes(folder, answers) -> None:
    """(answers of a, answers of b or None) per episode, of the classes 0, 0, 1, 1."""
    (folder / "episodes").mkdir()
    for index, pair in enumerate(answers):
        methods = {name: {"predicted": given} for name, given in zip("ab", pair, strict=True) if given is not None}
        record = {"index": index, "queries": [2, 2], "methods": methods}
        (folder / "episodes" / f"{index}.json").write_text(json.dumps(record))


def test_images_are_compared_each_with_itself(script, tmp_path):
    (tmp_path / "predictions").mkdir()
    for name, predicted in (("a", [0, 1, 1, 0]), ("b", [0, 0, 1, 1])):
        record = {"labels": [0, 1, 1, 1], "predicted": predicted}
        (tmp_path / "predictions" / f"{name}.json").write_text(json.dumps(record))
    count, difference, low, high = script("paired").over_images(tmp_path, "a", "b")
    assert (count, difference) == (4, pytest.approx(0))
    assert low <= difference <= high
